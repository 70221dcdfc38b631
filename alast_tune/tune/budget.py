"""How long a sweep may start trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import optuna

USED = "seconds searched"
"""The study's attribute that says for how long drivers have searched."""


class TimeBudget:
    """The time in which a sweep starts trials, over all its drivers.

    A trial that runs when it is used up is finished: stopped, it would be lost. Of a driver that is killed, the time
    since a trial last ended, and up to a second before, does not count.

    Args:
        study: keeps what is used.
        seconds: that there are; None: no limit.
        clock: seconds that pass.
    """

    def __init__(self, study: optuna.Study, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._study = study
        self._seconds = math.inf if seconds is None else seconds
        self._clock = clock
        used: float = study.user_attrs.get(USED, 0.0)
        self._started = clock() - used
        self._kept = -math.inf

    @property
    def over(self) -> bool:
        """Whether no trial may start any more."""
        return self._clock() - self._started >= self._seconds

    def keep(self, every: float = 0.0) -> None:
        """Keep what is used in the study, if the last time was longer ago than ``every`` seconds."""
        used = self._clock() - self._started
        if used - self._kept >= every:
            self._kept = used
            self._study.set_user_attr(USED, round(used, 1))
