"""A sweep's folder in the hands of one driver: a lock on this machine, and for a copy a lease beside the original."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from alast_tune.errors import ConfigError, StorageError
from alast_tune.storage import (
    ELSEWHERE,
    LEASE,
    STUDY,
    address_of,
    download,
    driver_lock,
    is_copy,
    opened,
    unusable,
    words_of,
)


@dataclass(frozen=True)
class Timing:
    """How a lease runs out, and what tells the time; a test has its own."""

    lease_seconds: float = 30.0
    """A driver that has not renewed its lease for so long is dead."""
    renewal_seconds: float = 7.5
    """So often a living one renews it."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970, since machines compare them."""
    sleep: Callable[[float], None] = time.sleep


TIMING = Timing()


class Hold:
    """A sweep's folder, held by this process alone.

    For a copy the hold is an object beside the original, renewed by a thread: another driver waits until it is old.

    Args:
        folder: of the sweep.
        timing: of the lease.

    Raises:
        ConfigError: the object storage cannot be used.
    """

    def __init__(self, folder: Path, timing: Timing = TIMING) -> None:
        self.folder = folder
        self._timing = timing
        self._copy = is_copy(folder)
        self._address = address_of(folder)
        self._filesystem, self._root = opened(folder)
        self._owner = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._kept: dict[str, tuple[int, int]] = {}
        self._saved = 0.0
        self._renewal = threading.Thread(target=self._stay, daemon=True, name="lease")
        self._released = threading.Event()
        self._lost = False

    def save(self, every: float = 0.0) -> None:
        """Bring what has changed to where the folder is kept, if the last time was longer ago than ``every`` seconds.

        Raises:
            StorageError: it cannot be written, or another driver has taken over.
        """
        if not self._copy or 0 <= self._timing.clock() - self._saved < every:  # a clock may be put back
            return
        if self._lost:
            raise StorageError(f"storage {self._address}: another driver has taken over; this one ends here")
        try:
            for file in sorted(_files(self.folder), key=lambda file: file.name != STUDY):  # the truth first
                stamp, name = _stamp(file), self._name(file)
                if self._kept.get(name) != stamp:
                    self._write(name, _contents(file))
                    self._kept[name] = stamp
        except OSError as error:
            raise StorageError(
                f"storage {self._address}: {words_of(error)}; nothing finished is lost: "
                f"once it is back, then go on with --resume {self.folder.name}"
            ) from None
        self._saved = self._timing.clock()

    def take(self, setting: str, say: Callable[[str], None]) -> None:
        """Wait until no other driver says that it is alive, and bring the copy up to date.

        Raises:
            ConfigError: another driver is, or the object storage does not answer.
        """
        if not self._copy:
            return
        try:
            last, seconds = self._lease(), self._timing.lease_seconds
            left = min(seconds, last["at"] + seconds - self._timing.clock()) if last else 0.0
            if last and left > 0:
                which = f"{self.folder.name}: its last driver, on {last['host']},"
                say(f"{which} may be alive; waiting {left:.0f} s for a sign of it")
            while last and (now := self._lease()):  # none: it was given back in the meantime
                if now["at"] != last["at"]:
                    raise _taken(setting, self.folder, f", on {now['host']}")
                if left <= 0:
                    break
                self._timing.sleep(1)
                left -= 1
            self._renew()
            self._timing.sleep(1)  # of several that come at the same time, the last to write has it
            if (holder := self._lease()) and holder["owner"] != self._owner["owner"]:
                raise _taken(setting, self.folder, f", on {holder['host']}")
        except OSError as error:
            raise unusable(self.folder, error) from None
        download(self.folder)
        self._kept = {self._name(file): _stamp(file) for file in _files(self.folder)}
        self._renewal.start()

    def release(self) -> None:
        """Let others have it."""
        self._released.set()
        if self._renewal.is_alive():
            self._renewal.join()
        if self._copy and not self._lost:
            with suppress(OSError):
                self._filesystem.delete_file(f"{self._root}/{LEASE}")

    def _stay(self) -> None:
        while not self._lost and not self._released.wait(self._timing.renewal_seconds):
            with suppress(OSError):  # an outage: the next time
                self._stay_or_lose()

    def _stay_or_lose(self) -> None:
        """Renew the lease, unless it is another's by now: that driver took this one for dead."""
        lease = self._lease()
        self._lost = lease is not None and lease["owner"] != self._owner["owner"]
        if not self._lost and not self._released.is_set():
            self._renew()

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _lease(self) -> dict[str, Any] | None:
        try:
            with self._filesystem.open_input_stream(f"{self._root}/{LEASE}") as file:
                found: dict[str, Any] = json.loads(file.read())
                return found
        except FileNotFoundError:
            return None
        except ValueError as error:  # read while it was written: an outage of a moment
            raise OSError(f"the lease cannot be read ({error})") from None

    def _renew(self) -> None:
        self._write(LEASE, json.dumps(self._owner | {"at": self._timing.clock()}).encode())

    def _write(self, name: str, contents: bytes) -> None:
        with self._filesystem.open_output_stream(f"{self._root}/{name}") as out:
            out.write(contents)


@contextmanager
def only_driver(
    folder: Path, setting: str = "name", say: Callable[[str], None] = print, timing: Timing = TIMING
) -> Iterator[Hold]:
    """Keep a folder to this process, whose hold goes with it, however it dies; a copy is brought up to date and saved.

    Args:
        folder: is made if it is not there.
        setting: that names the folder, for the error.
        say: prints a line, should it have to wait for a driver that has been killed elsewhere.
        timing: of the lease.

    Raises:
        ConfigError: another process has it.
    """
    lock, hold = driver_lock(folder), Hold(folder, timing)
    try:
        lock.acquire()
    except Timeout:
        raise _taken(setting, folder) from None
    try:
        hold.take(setting, say)
        try:
            yield hold
        finally:
            try:
                hold.save()
            finally:
                hold.release()
    finally:
        lock.release()


def _taken(setting: str, folder: Path, where: str = "") -> ConfigError:
    return ConfigError(setting, folder.name, f"another driver is at work on it{where}; wait for it or stop it")


def _files(folder: Path) -> Iterator[Path]:
    for top in folder.iterdir():
        if top.name not in ELSEWHERE:
            for file in [top] if top.is_file() else top.rglob("*"):
                if file.is_file() and not file.name.endswith(("-wal", "-shm", ".tmp")):
                    yield file


def _stamp(file: Path) -> tuple[int, int]:
    """Tell one state of a file from another; SQLite writes beside it first."""
    beside = Path(f"{file}-wal")
    stat = beside.stat() if file.suffix == ".db" and beside.exists() else file.stat()
    return stat.st_mtime_ns, stat.st_size


def _contents(file: Path) -> bytes:
    if file.suffix != ".db":
        return file.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = Path(scratch) / STUDY
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(snapshot)) as target:
            source.backup(target)
        return snapshot.read_bytes()
