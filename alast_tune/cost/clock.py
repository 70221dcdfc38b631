"""Wall-clock time of a run that may be interrupted and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since the run began, and those spent in training steps; a resumed run's begin with those before."""

    def __init__(self, wall_seconds: float = 0.0, train_seconds: float = 0.0) -> None:
        self._began = time.monotonic() - wall_seconds
        self.train_seconds = train_seconds

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count what runs inside as training."""
        started = time.monotonic()
        yield
        self.train_seconds += time.monotonic() - started

    def read(self) -> dict[str, float]:
        """Give both: all the run's time (training, validation, measuring), and that in training steps."""
        return {"wall_seconds": time.monotonic() - self._began, "train_seconds": self.train_seconds}
