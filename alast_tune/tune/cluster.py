"""What every driver needs: a cluster, and signals that only ask."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import cloudpickle
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as `ray health-check` does

from alast_tune.data.machine import available_bytes, cpu_count, is_limited
from alast_tune.errors import TRACEBACK, ConfigError
from alast_tune.plugins import all_registered, register_all
from alast_tune.text import one_line

PATIENCE = 6.0
"""So many seconds a cluster has to answer: its name to be found, and its port to be open."""

_SOCKET_PATH = 107
"""Bytes that the path of a socket may have."""
_SESSION = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Longest of what Ray puts behind its folder for such a path."""

_OBJECT_STORE = 1 << 30
"""Bytes of Ray's store of objects at most, where memory is limited: checkpoints do not go through it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names (a job's own is set by Ray), else start one here."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # MLflow has it all
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer one prints a banner whatever its verbosity
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C comes as an exception, as SIGTERM does
    if os.environ.get(TRACEBACK) != "1":  # of each trial that fails, whose reason has a line of its own
        logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started, folder = not ray.is_initialized(), None
    if started:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if set_up := _worker_setup():
            quiet["runtime_env"] = {"worker_process_setup_hook": set_up}
        address = os.environ.get("RAY_ADDRESS", "")
        if address in {"", "local"}:
            # Not left to Ray, which would look for the last head on this machine, and wait for it if that is gone.
            folder = _short_folder()
            ray.init(address="local", include_dashboard=False, _temp_dir=folder, **_this_machine(), **quiet)
        else:
            check_cluster()
            try:
                ray.init(**quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise ConfigError("RAY_ADDRESS", address, f"cannot be used ({one_line(error)}); {_REMEDY}") from None
    try:
        yield
    finally:
        if started:
            ray.shutdown()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)


def _worker_setup() -> Callable[[], None] | None:
    """Give what makes methods and data sets that are registered here known to a worker; None where there are none.

    What the driver's script defines itself travels whole, what a module defines by its name: workers look for modules
    where the driver does, so that one beside the script is found.
    """
    registered = all_registered()
    if not registered:
        return None
    pickled, path = cloudpickle.dumps(registered), [str(Path(place).absolute()) for place in sys.path]

    def set_up() -> None:  # no functools.partial: Ray asks it for its __name__
        sys.path.extend(place for place in path if place not in sys.path)
        register_all(cloudpickle.loads(pickled))

    return set_up


_REMEDY = "give HOST:PORT of a head that runs, or unset it for a Ray of this machine's own"


def check_cluster() -> None:
    """Refuse a cluster that is not there, before anything else takes its time; see :func:`check_address`."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in {"", "local"} and not ray.is_initialized():
        check_address(address)


def check_address(address: str) -> None:
    """Refuse a cluster that is not there: Ray would look for it without end.

    Args:
        address: ``HOST:PORT``; or ``auto``, the head that was last started on this machine.

    Raises:
        ConfigError: an address of another kind, of nobody, or nobody answers.
    """
    if address == "auto":
        try:
            from ray._private.services import canonicalize_bootstrap_address_or_die

            place = canonicalize_bootstrap_address_or_die("auto")
        except (ConnectionError, ValueError) as error:
            raise ConfigError("RAY_ADDRESS", address, f"{one_line(error)}; {_REMEDY}") from None
    else:
        place = address
    if address.startswith("ray://"):
        remedy = "a driver runs on the cluster, not at the end of a line to it: send it there with `alast-tune submit`"
        raise ConfigError("RAY_ADDRESS", address, remedy)
    parts = re.fullmatch(r"\[?([^\s/@\[\]]+?)\]?:([0-9]{1,5})", place)
    if parts is None or not 0 < int(parts[2]) < 65536:
        raise ConfigError("RAY_ADDRESS", address, f"is no address; {_REMEDY}")
    trouble = [f"no answer within {PATIENCE:.0f} s"]

    def call() -> None:
        try:
            socket.create_connection((parts[1], int(parts[2])), timeout=PATIENCE).close()
            GcsClient(address=place)  # proxies take a call to anywhere
            trouble.clear()
        except (OSError, UnicodeError, ray.exceptions.RayError) as error:
            trouble[:] = [(error.strerror if isinstance(error, OSError) else None) or one_line(error)]

    caller = threading.Thread(target=call, daemon=True)  # a name server may be silent, too
    caller.start()
    caller.join(PATIENCE)
    for why in trouble:
        raise ConfigError("RAY_ADDRESS", address, f"nobody there ({why}); {_REMEDY}")


def _this_machine() -> dict[str, Any]:
    """Say what a Ray of its own may use: Ray itself looks at neither affinity nor the control groups around it."""
    found: dict[str, Any] = {"num_cpus": cpu_count()}
    if is_limited():
        memory = available_bytes()
        store = min(memory // 10, _OBJECT_STORE)
        found |= {"_memory": memory - store, "object_store_memory": max(store, 80 << 20)}
    return found


def _short_folder() -> str | None:
    """Make a folder for Ray's sockets where the one that it would take has too long a path; None if it has not."""
    usual = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None) or "/tmp"
    if len(os.fsencode(str(Path(usual).absolute() / "ray"))) + _SESSION <= _SOCKET_PATH:
        return None
    return tempfile.mkdtemp(prefix="ray-", dir="/tmp")


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Let SIGTERM (`ray job stop` sends it, and SIGKILL 3 s later) and Ctrl-C end MLflow's runs on the way out."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only there may signals be caught
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    stop.listen()
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Stop:
    """Whether to stop: asked at every pulse of a driver's loop, so that nothing is cut off within a transaction."""

    def __init__(self) -> None:
        self._signum = 0

    def listen(self) -> None:
        """Be what signals reach, also after a library has put a handler of its own in the place."""
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                signal.signal(signum, self.request)

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Stop soon: the signals' handler; asked twice, at once."""
        if self._signum:
            raise KeyboardInterrupt
        self._signum = signum

    def check(self) -> None:
        """Stop if a signal has come."""
        if self._signum:
            raise SystemExit(128 + self._signum)
