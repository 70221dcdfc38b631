"""Wall-clock time of a run that may be interrupted and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since the run began, and those spent in training steps; resumed runs add up."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = 0.0
        self.train_seconds = 0.0

    @property
    def wall_seconds(self) -> float:
        """All the run's time: training, validation, measuring."""
        return self._before + time.monotonic() - self._started

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count what runs inside as training."""
        started = time.monotonic()
        yield
        self.train_seconds += time.monotonic() - started

    def state_dict(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        return {"wall_seconds": self.wall_seconds, "train_seconds": self.train_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self._started, self._before = time.monotonic(), state["wall_seconds"]
        self.train_seconds = state["train_seconds"]
