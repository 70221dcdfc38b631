"""A sweep's folder, kept to one driver: a lock on this machine, and for a copy a lease beside the original.

The lease is an object, each write of which depends on the version that the writer last saw. A driver renews it; another
one takes it over if it has not changed for as long as a lease lasts, by its own clock: no two machines' clocks are
compared. The first has by then stopped writing, by its own clock, which started earlier.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from alast_tune.errors import ConfigError, StorageError
from alast_tune.objects import Objects, OverwrittenError
from alast_tune.saver import Saver
from alast_tune.storage import LEASE, address_of, download, driver_lock, is_copy, objects_of, unusable, words_of


@dataclass(frozen=True)
class Timing:
    """How a lease runs out, and what tells the time; a test has its own."""

    lease_seconds: float = 30.0
    """A driver that has not renewed its lease for so long writes nothing more, and may be taken for dead."""
    renewal_seconds: float = 7.5
    """So often a living one renews it."""
    clock: Callable[[], float] = time.monotonic
    """Seconds since any moment: only this machine's are compared."""
    sleep: Callable[[float], None] = time.sleep


TIMING = Timing()


class SweepLease:
    """A sweep's folder, held by this process alone; one that is no copy needs nothing of it.

    Args:
        folder: of the sweep.
        timing: of the lease.
    """

    def __init__(self, folder: Path, timing: Timing = TIMING) -> None:
        self.folder = folder
        self._timing = timing
        self._address = address_of(folder)
        self._owner = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._objects: Objects | None = None
        self._saver: Saver | None = None
        self._saved = -math.inf
        self._renewals = 0
        self._renewed = -math.inf
        """When the last renewal that has arrived was sent."""
        self._lost = False
        self._released = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def save(self, every: float = 0.0) -> None:
        """Bring what has changed to where the folder is kept, if the last time was longer ago than ``every`` seconds.

        Raises:
            StorageError: it cannot be written, or another driver has taken over.
        """
        if self._saver is None or self._timing.clock() - self._saved < every:
            return
        try:
            self._saver.save()
        except OverwrittenError:
            raise self._taken_over() from None
        except OSError as error:
            raise self._trouble(words_of(error)) from None
        self._saved = self._timing.clock()

    def acquire(self, setting: str, say: Callable[[str], None]) -> None:
        """Wait until no other driver says that it is alive, and bring the copy up to date.

        Args:
            setting: that names the folder, for the error.
            say: prints a line.

        Raises:
            ConfigError: another driver is, or the object storage does not answer or has no conditional writes.
        """
        if not is_copy(self.folder):
            return
        try:
            self._objects = objects_of(self.folder, self._timing.lease_seconds / 3)
            self._wait(self._objects, setting, say)
            try:
                self._write(self._objects)
            except OverwrittenError:
                raise self._taken(setting, self._objects) from None
            self._try_conditions(self._objects)
        except OSError as error:
            raise unusable(self.folder, error) from None
        self._thread = threading.Thread(target=self._keep_renewing, args=(say,), daemon=True, name="lease")
        self._thread.start()
        objects = objects_of(self.folder)
        download(self.folder, objects)
        self._saver = Saver(self.folder, objects, self._check)

    def release(self) -> None:
        """Let others have it at once, if it is still this driver's."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if self._objects is not None and not self._lost and math.isfinite(self._renewed):
            with suppress(OSError):  # S3 cannot delete on a condition; in an outage, it runs out
                self._objects.put(LEASE, _line({"owner": None, "by": self._owner["owner"]}))

    def renew(self) -> None:
        """Say that this driver is alive, unless the lease is another's by now.

        Raises:
            OSError: the object storage does not answer.
        """
        with self._turn:
            if self._objects is None or self._lost or self._released.is_set():
                return
            try:
                try:
                    self._write(self._objects)
                except OverwrittenError:  # or a renewal whose answer was lost on the way: that was seen now
                    if _owner(self._objects.get(LEASE)).get("owner") != self._owner["owner"]:
                        raise
                    self._write(self._objects)
            except OverwrittenError:
                self._lost = True

    def _write(self, objects: Objects) -> None:
        began = self._timing.clock()
        self._renewals += 1
        objects.put(LEASE, _line(self._owner | {"renewal": self._renewals}))
        self._renewed = began

    def _wait(self, objects: Objects, setting: str, say: Callable[[str], None]) -> None:
        """Wait for as long as a lease lasts, unless it is given back, for a sign of the driver that has it."""
        found = last = objects.get(LEASE)
        seconds, began = self._timing.lease_seconds, self._timing.clock()
        if _owner(last).get("owner"):
            which = f"{self.folder.name}: its last driver, on {_owner(last).get('host')},"
            say(f"{which} may be alive; waiting {seconds:.0f} s for a sign of it")
        while _owner(found).get("owner"):
            if found != last:
                raise self._taken(setting, objects)
            if self._timing.clock() - began >= seconds:
                return
            self._timing.sleep(1)
            found = objects.get(LEASE)

    def _try_conditions(self, objects: Objects) -> None:
        """Try out that the store refuses what it should: one that does not would let two drivers write."""
        if not objects.refuses(LEASE, _line(self._owner)):
            remedy = "ignores If-None-Match and If-Match, which keep two drivers apart; use a store that heeds them"
            raise ConfigError("storage", self._address, remedy)

    def _keep_renewing(self, say: Callable[[str], None]) -> None:
        away = False
        while not self._lost and not self._released.wait(self._timing.renewal_seconds):
            try:
                self.renew()
                away = False
            except BaseException as error:  # whatever it is, obstore's panics too: the next time
                if not away:
                    with suppress(Exception):
                        say(f"{self._address}: its lease was not renewed ({words_of(error)}); trying again")
                away = True

    def _check(self) -> None:
        """Look whether this driver may write.

        Raises:
            StorageError: it may not.
        """
        if not self._lost and self._timing.clock() - self._renewed >= self._timing.lease_seconds:
            self.renew()  # it may have been asleep; if nobody took over meanwhile, then it goes on
        if self._lost:
            raise self._taken_over()

    def _taken(self, setting: str, objects: Objects) -> ConfigError:
        return _taken(setting, self.folder, f", on {_owner(objects.get(LEASE)).get('host')}")

    def _taken_over(self) -> StorageError:
        return StorageError(f"storage {self._address}: another driver has taken over; this one ends here")

    def _trouble(self, words: str) -> StorageError:
        return StorageError(
            f"storage {self._address}: {words}; nothing finished is lost: "
            f"once it is back, then go on with --resume {self.folder.name}"
        )


@contextmanager
def exclusive_driver(
    folder: Path, setting: str = "name", say: Callable[[str], None] = print, timing: Timing = TIMING
) -> Iterator[SweepLease]:
    """Keep a folder to this process, whose lease ends with it, however it dies; a copy is brought up to date and saved.

    Args:
        folder: is made if it is not there.
        setting: that names the folder, for the error.
        say: prints a line, should it have to wait for a driver that has been killed elsewhere.
        timing: of the lease.

    Raises:
        ConfigError: another process has it.
    """
    lock, lease = driver_lock(folder), SweepLease(folder, timing)
    try:
        lock.acquire()
    except Timeout:
        raise _taken(setting, folder) from None
    try:
        try:
            lease.acquire(setting, say)
            try:
                yield lease
            finally:
                lease.save()
        finally:
            lease.release()
    finally:
        lock.release()


def _taken(setting: str, folder: Path, where: str = "") -> ConfigError:
    return ConfigError(setting, folder.name, f"another driver is at work on it{where}; wait for it or stop it")


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


def _owner(lease: bytes | None) -> dict[str, Any]:
    """Read who has a lease; nothing if there is none."""
    try:
        found: dict[str, Any] = json.loads(lease or b"{}")
    except ValueError:  # of whom ever
        return {"owner": "unknown", "host": "an unknown host"}
    return found
