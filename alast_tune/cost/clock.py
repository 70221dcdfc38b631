"""Wall-clock time of a run that may be interrupted and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since the run began, and those spent in training steps; a resumed run's begin with those before."""

    def __init__(self, wall_seconds: float = 0.0, train_seconds: float = 0.0) -> None:
        self._began = time.monotonic() - wall_seconds
        self._train_seconds = train_seconds
        self._training_since: float | None = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count what runs inside as training."""
        self._training_since = time.monotonic()
        yield
        self._train_seconds, self._training_since = self._trained(), None

    def _trained(self) -> float:
        running = 0.0 if self._training_since is None else time.monotonic() - self._training_since
        return self._train_seconds + running

    def read(self) -> dict[str, float]:
        """Give both: all the run's time (training, validation, measuring), and that in training steps."""
        return {"wall_seconds": time.monotonic() - self._began, "train_seconds": self._trained()}
