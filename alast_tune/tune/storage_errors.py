"""Telling a disk that is full, or a database that is gone, from a trial that fails."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alast_tune.errors import StorageError
from alast_tune.storage import address_of
from alast_tune.text import safe

_WORDS = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)),
    "database or disk is full",  # SQLite
    "disk I/O error",
    "attempt to write a readonly database",
    "PytorchStreamWriter failed",  # torch.save keeps the system's word to itself
)


_ON_A_WORKER = "on a disk of the worker's own"

_FILE = re.compile(r"[\'\"<](/[^\'\"<>]+)[\'\">]")

_OBJECT_STORAGE = re.compile(r"AWS Error \w+ during \w+|google::cloud::Status\(\w+")


_DATABASE = re.compile(r"sqlalchemy\.exc\.OperationalError: (.+)")


def storage_trouble(text: str, storage: str = "") -> str | None:
    """Find the words for storage that cannot be written to in the text of an error, which may have come from afar.

    Args:
        text: of the error.
        storage: address of the sweep; an error about a file elsewhere, on a worker's own disk say, is not its trouble.
    """
    if remote := _OBJECT_STORAGE.search(text):
        return remote[0]
    for line in reversed(text.splitlines()):
        words = next((words for words in _WORDS if words in line), None)
        if words:  # further up is what that came of
            return words if not storage or _is_about(line, storage) else None
    return None


def of_a_worker(text: str) -> str:
    """Say in the text of an error that a disk of the worker's own is full, if one is: it may tell no path."""
    return f"{' '.join(text.split())} ({_ON_A_WORKER})" if any(words in text for words in _WORDS) else text


def _is_about(line: str, storage: str) -> bool:
    """Whether a line speaks of a file in the storage, or says nothing of where."""
    files = _FILE.findall(line)
    return _ON_A_WORKER not in line and (not files or any(file.startswith(storage) for file in files))


@contextmanager
def as_storage_error(folder: Path) -> Iterator[None]:
    """Put what a full disk or a lost database brings about, in Optuna, Tune, torch or the system, into one line.

    Raises:
        StorageError: in its place.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        # Not above: a worker needs this module too, but no study.
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DatabaseError

        from alast_tune.tune.trials import database_said

        text = "".join(traceback.format_exception(error))
        words = storage_trouble(text)
        if words is None and (found := _DATABASE.search(text)):  # Tune's error has it as text
            words = f"the study's database fails ({safe(found[1])})"
        if words is None and isinstance(error, DatabaseError | StorageInternalError):
            words = f"the study's database fails ({safe(database_said(error))})"
        if words is None:
            raise
        damaged = re.search("not a database|malformed|damaged", words)
        mend = "make room" if words in _WORDS else "put a copy in its place" if damaged else "once it is back"
        raise StorageError(
            f"storage {address_of(folder)}: {words}; nothing finished is lost: {mend}, "
            f"then go on with --resume {folder.name}"
        ) from None
