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
from sqlalchemy.exc import OperationalError

from alast_tune.errors import StorageError
from alast_tune.storage import address_of
from alast_tune.tune.trials import database_said

_WORDS = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)),
    "database or disk is full",  # SQLite
    "disk I/O error",
    "attempt to write a readonly database",
    "PytorchStreamWriter failed",  # torch.save keeps the system's word to itself
)


_OBJECT_STORAGE = re.compile(r"AWS Error \w+ during \w+|google::cloud::Status\(\w+")


_PATH = re.compile(r"""(?<=[\s'"<])/[^\s'">:]+""")


def storage_trouble(text: str, place: str | None = None) -> str | None:
    """Find the words for storage that cannot be written to in the text of an error, which may have come from afar.

    Args:
        text: of the error, traceback and all.
        place: address of the storage; a line that names other paths only speaks of another disk. None: any line counts.
    """
    if remote := _OBJECT_STORAGE.search(text):
        return remote[0]
    ours = (
        line
        for line in text.splitlines()
        if place is None or not (paths := _PATH.findall(line)) or any(path.startswith(place) for path in paths)
    )
    return next((words for line in ours for words in _WORDS if words in line), None)


def reason_of(text: str) -> str:
    """Put why a worker crashed into one line, from the text that Tune keeps of it."""
    if ray_out_of_memory(text):
        return "out of memory: Ray's memory monitor has killed its worker"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "worker lost"


def ray_out_of_memory(text: str) -> bool:
    """Whether Ray has killed a worker because its machine's memory ran short."""
    return "running low on memory" in text or "address the out of memory issue" in text


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
        if words is None and isinstance(error, OperationalError | StorageInternalError):
            words = f"the study's database fails ({database_said(error)})"
        if words is None:
            raise
        mend = "make room" if words in _WORDS else "once it is back"
        raise StorageError(
            f"storage {address_of(folder)}: {words}; nothing finished is lost: {mend}, "
            f"then go on with --resume {folder.name}"
        ) from None
