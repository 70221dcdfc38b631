"""An Optuna study in a file that only grows, written by one process: no lock, and a wait for the disk once a second."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from alast_tune.tune.packed import Alike, packed


class StudyFile(BaseJournalBackend):
    """Optuna's log, a line of JSON an operation.

    Optuna's own backend takes a lock and flushes the disk for each; here the sweep's folder is kept to one driver. A
    process killed at any moment loses nothing, a machine that loses power at worst the last second.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = False
        """Whether the file is known to end with a whole line."""
        self._flushed = time.monotonic()
        self._read, self._offset = 0, 0
        """Lines and bytes that were read."""
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read the operations from a number on."""
        if log_number_from != self._read:
            self._read, self._offset = 0, 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # a process was killed, or writes it just now
                    return
                self._read, self._offset = self._read + 1, self._offset + len(line)
                if self._read > log_number_from:
                    yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations, all or none.

        Raises:
            OSError: the disk is full.
        """
        lines = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        if not self._whole:
            _drop_half_a_line(self._path)
            self._whole = True
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            except OSError:
                file.truncate(end)
                raise
            if time.monotonic() - self._flushed >= 1:
                os.fsync(file.fileno())
                self._flushed = time.monotonic()


class StudyJournal(JournalStorage):
    """Optuna's storage of such a file, which packs trials that have ended, already while it reads them.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._alike: Alike = {}
        super().__init__(StudyFile(path))

    def _sync_with_backend(self) -> None:
        """Apply what is new in the file, line by line."""
        trials = self._replay_result._trials
        for log in self._backend.read_logs(self._replay_result.log_number_read):
            self._replay_result.apply_logs([log])
            number = log.get("trial_id", len(trials) - 1)  # a new trial is the last one
            if number in trials:
                trials[number] = packed(trials[number], self._alike)


def _drop_half_a_line(path: Path) -> None:
    """Let a file end where its last whole line does: what a machine without power has left behind that."""
    with path.open("rb+") as file:
        end = start = file.seek(0, os.SEEK_END)
        found = b""
        while start and b"\n" not in found:
            start = max(0, start - (1 << 16))
            file.seek(start)
            found = file.read(min(end - start, 1 << 16))
        whole = start + found.rfind(b"\n") + 1
        if whole < end:
            file.truncate(whole)
