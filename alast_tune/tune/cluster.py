"""What every driver needs: a cluster, and signals that only ask."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names (a job's own is set by Ray), else start one here."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # MLflow has it all
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer one prints a banner whatever its verbosity
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C comes as an exception, as SIGTERM does
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started = not ray.is_initialized()
    if started:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)  # type: ignore[arg-type]
        else:
            # Not left to Ray, which would look for the last head on this machine, and wait for it if that is gone.
            ray.init(address="local", include_dashboard=False, **quiet)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if started:
            ray.shutdown()


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
