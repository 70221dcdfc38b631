"""How long a sweep may start trials, how much they may train, and what they must promise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import optuna

from alast_tune.config import flops_of
from alast_tune.plots import human_flops
from alast_tune.tune.sampler import EhviSampler
from alast_tune.tune.trials import epochs_of

USED = "seconds searched"
"""The study's attribute that says for how long drivers have searched."""
GAIN = "expected gain"
"""The study's attribute that says what a driver last expected of the next trials, for one that resumes the sweep."""


class Budget:
    """The time and the training FLOPs in which a sweep starts trials, over all its drivers.

    A trial that runs when one of the two is used up is finished: stopped, it would be lost. Of a driver that is killed,
    the time since a trial last ended, and up to a second before, does not count. FLOPs are those of all epochs that the
    study knows: of trials that run, were stopped or have failed, too, but not of those of an earlier sweep.

    Args:
        study: keeps what is used.
        seconds: that there are; None: no limit.
        flops: most training FLOPs, or a multiple of full fine-tuning's, as ``20x``; None: no limit.
        full_flops: of full fine-tuning, predicted.
        min_gain: least share that the next trials are expected to add to the front's hypervolume; None: no limit.
        owed: training FLOPs of what is to follow the search, which are kept for it, as is the time that they will take
            at the search's pace. That is known once as much as full fine-tuning takes is trained: before, the start of
            all, and a cheap trial that ends first, would make hours of what is owed.
        clock: seconds that pass.
    """

    def __init__(
        self,
        study: optuna.Study,
        seconds: float | None = None,
        flops: float | str | None = None,
        full_flops: float = math.nan,
        min_gain: float | None = None,
        owed: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self._seconds = math.inf if seconds is None else seconds
        self._flops = math.inf if flops is None else flops_of(flops, full_flops)
        self._full_flops = full_flops
        self._min_gain = 0.0 if min_gain is None else min_gain
        self._owed = owed
        self._ended = 0.0
        """Training FLOPs of the trials that have ended."""
        self._taken = 0
        """Number of trials that were counted or are in ``_open``: the first ones of the study."""
        self._open: list[int] = []
        """Numbers of those that had not ended when they were last looked at."""
        self._clock = clock
        used: float = study.user_attrs.get(USED, 0.0)
        self._started = clock() - used
        self._kept = -math.inf

    @property
    def over(self) -> str:
        """Why no trial may start any more: ``time``, ``FLOPs`` or ``gain``; empty: one may."""
        seconds, owed = self._clock() - self._started, self._owed()
        if owed and (trained := self.flops) >= self._full_flops:
            seconds *= 1 + owed / trained
        if seconds >= self._seconds:
            return "time"
        if self._flops < math.inf and self.flops + owed >= self._flops:
            return "FLOPs"
        return "gain" if (gain := self.gain) is not None and gain < self._min_gain else ""

    @property
    def gain(self) -> float | None:
        """Share that the next trials are each expected to add to the front's hypervolume; None if that is not known.

        A resumed sweep's sampler has not made enough proposals yet: until then what an earlier driver expected holds.
        """
        sampler = self._study.sampler
        if not isinstance(sampler, EhviSampler):
            return None
        found = sampler.expected_gain
        return self._study.user_attrs.get(GAIN) if found is None else found if math.isfinite(found) else None

    @property
    def flops(self) -> float:
        """Training FLOPs of all the sweep's trials so far."""
        trials = self._study.get_trials(deepcopy=False)
        looked_at = [*(trials[number] for number in self._open), *trials[self._taken :]]
        self._taken, self._open, running = len(trials), [], 0.0
        for trial in looked_at:
            rows = [] if "origin" in trial.user_attrs else epochs_of(trial.user_attrs)
            if trial.state.is_finished():
                self._ended += rows[-1][1] if rows else 0.0
            else:
                self._open.append(trial.number)
                running += rows[-1][1] if rows else 0.0
        return self._ended + running

    def used(self) -> str:
        """Say how much of a budget of FLOPs is used, and what the next trials are expected to bring."""
        used = [] if self._flops == math.inf else [f"{human_flops(self.flops)} of {human_flops(self._flops)} used"]
        if used and (owed := self._owed()):
            used[0] += f" and {human_flops(owed)} kept for other seeds"
        gain = self.gain
        return ", ".join(used if gain is None else [*used, f"{gain:+.1%} expected of the next trial"])

    def keep(self, every: float = 0.0) -> None:
        """Keep in the study the time that is used, and the gain, if that was last done ``every`` seconds ago."""
        used = self._clock() - self._started
        if used - self._kept >= every:
            self._kept = used
            self._study.set_user_attr(USED, round(used, 1))
            if (gain := self.gain) is not None and gain != self._study.user_attrs.get(GAIN):
                self._study.set_user_attr(GAIN, gain)
