"""Telling a disk that is full, or a database that is gone, from a trial that fails."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DatabaseError

from alast_tune.errors import StorageError
from alast_tune.storage import address_of
from alast_tune.text import safe
from alast_tune.tune.trials import database_said

_WORDS = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)),
    "database or disk is full",  # SQLite
    "disk I/O error",
    "attempt to write a readonly database",
    "PytorchStreamWriter failed",  # torch.save keeps the system's word to itself
)


_OBJECT_STORAGE = re.compile(r"AWS Error \w+ during \w+|google::cloud::Status\(\w+")


def storage_trouble(text: str) -> str | None:
    """Find the words for storage that cannot be written to in the text of an error, which may have come from afar."""
    remote = _OBJECT_STORAGE.search(text)
    return remote[0] if remote else next((words for words in _WORDS if words in text), None)


@contextmanager
def storage_said(folder: Path) -> Iterator[None]:
    """Put what a full disk or a lost database brings about, in Optuna, Tune, torch or the system, into one line.

    Raises:
        StorageError: in its place.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        words = storage_trouble("".join(traceback.format_exception(error)))
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
