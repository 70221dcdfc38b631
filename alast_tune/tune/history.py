"""The observations that a proposal is made from: the trials that have ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from alast_tune.front import hypervolume_contributions, pareto_mask
from alast_tune.results import DIRECTIONS
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.improvement import Floats
from alast_tune.tune.space import Point, point
from alast_tune.tune.trials import curve_of

Params = dict[str, Any]

BASELINE_ERROR = 0.02
"""Standard deviation of a baseline's accuracy from that of the nearest point of the space."""
MEMORY = 128
"""So many trials are learnt from, those on the front and the latest: time grows with their cube."""
LARGEST_FRONT = 100
"""So many points are to be improved upon, those that add most: time grows with their square."""

Observation = tuple[Params, tuple[float, float, float], float]
"""A trial's parameters, its objectives (costs NaN if not known), the standard deviation of its accuracy."""


class TrialHistory:
    """The trials that have ended, each looked at once: so that a proposal takes no longer when there are many.

    Args:
        teaching: baselines that are points of the space; others are on the front, and say nothing of the space.
    """

    def __init__(self, teaching: Collection[str] = ()) -> None:
        self._teaching = teaching
        self.known: set[Point] = set()
        """Parameters of all that were proposed."""
        self._baselines: list[int] = []
        """Their numbers."""
        self._taken = 0
        """So many trials, the first ones, have been looked at;"""
        self._open: list[int] = []
        """and these of them had not ended then."""
        self._members: list[FrozenTrial] = []
        """Complete trials that no other dominates."""
        self._front_F3: Floats | None = None
        """Kept until it changes."""
        self._others: deque[FrozenTrial] = deque(maxlen=MEMORY)
        self._curves: dict[int, list[list[float]]] = {}
        """Of the trials that were learnt from last."""

    def update(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Take in those that have ended since; returns those that have not.

        Args:
            trials: all of the study, by number.
        """
        others = [*(trials[place] for place in self._open), *trials[self._taken :]]
        self._baselines += [one.number for one in trials[self._taken :] if BASELINE in one.user_attrs]
        self._taken = len(trials)
        self._open = [trial.number for trial in others if not trial.state.is_finished()]
        fresh = [trial for trial in others if trial.state.is_finished()]
        self.known.update(point(trial.params) for trial in fresh if BASELINE not in trial.user_attrs)
        complete = [trial for trial in fresh if trial.state == TrialState.COMPLETE]
        self._others.extend(trial for trial in fresh if trial.state != TrialState.COMPLETE)
        if complete:
            candidates = self._members + complete
            on_front = pareto_mask([trial.values for trial in candidates], DIRECTIONS)
            self._front_F3 = None
            self._members = [trial for trial, member in zip(candidates, on_front, strict=True) if member]
            self._others.extend(trial for trial, member in zip(candidates, on_front, strict=True) if not member)
        return [trial for trial in others if not trial.state.is_finished()]

    def telling(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Of all trials of the study those that its region follows from: baselines, and the best complete ones."""
        return [*(trials[place] for place in self._baselines), *self._members]

    def front(self) -> Floats:
        """Objectives of the front, (F, 3); of a large one of the points that add most."""
        if self._front_F3 is None:
            front_F3 = np.array([trial.values for trial in self._members], dtype=np.float64).reshape(-1, 3)
            if len(front_F3) > LARGEST_FRONT:
                front_F3 = front_F3[np.argsort(hypervolume_contributions(front_F3, DIRECTIONS))[-LARGEST_FRONT:]]
            self._front_F3 = front_F3
        return self._front_F3

    def params(self) -> list[Params]:
        """Parameters of the front and of the latest others."""
        return [trial.params for trial in (*self._members, *self._others)]

    def observations(self) -> list[Observation]:
        """List the observations, no more than :data:`MEMORY` of it."""
        members = self._members[-3 * MEMORY // 4 :]
        kept = members + list(self._others)[len(members) - MEMORY :]
        complete = [trial for trial in kept if trial.state == TrialState.COMPLETE]
        worst = min((trial.values[0] for trial in complete), default=0.0)
        observations: list[Observation] = [
            (trial.params, (trial.values[0], math.nan, math.nan), BASELINE_ERROR)
            if BASELINE in trial.user_attrs
            else (trial.params, tuple(trial.values), 0.0)
            for trial in complete
            if trial.user_attrs.get(BASELINE, "") in {"", *self._teaching}
        ]
        known = self._curves
        self._curves = {t.number: known[t.number] if t.number in known else curve_of(t.user_attrs) for t in kept}
        curves = [curve for trial in complete if (curve := self._curves[trial.number])]
        for trial in kept:
            curve = self._curves[trial.number]
            if trial.state == TrialState.PRUNED and curve and fits(trial):
                observations.extend(_projected(trial.params, curve, curves))
            elif trial.state == TrialState.FAIL and not _crashed(trial):
                observations.append((trial.params, (worst, math.nan, math.nan), 0.0))
        return observations

    def fitting(self) -> tuple[list[Params], list[float]]:
        """Which of the latest trials fitted into memory: parameters, and 1 or 0."""
        kept = [trial for trial in (*self._members, *self._others) if BASELINE not in trial.user_attrs]
        ran = [trial for trial in kept[-MEMORY:] if trial.state == TrialState.COMPLETE or not fits(trial)]
        return [trial.params for trial in ran], [float(fits(trial)) for trial in ran]


def _crashed(trial: FrozenTrial) -> bool:
    """Whether a trial failed for no reason of its own; older studies have the word as the reason."""
    return bool(trial.user_attrs.get("crashed")) or trial.user_attrs.get("reason") == "crashed"


def fits(trial: FrozenTrial) -> bool:
    """Whether a trial neither ran out of memory nor was foreseen to."""
    return trial.constraints.get("max_memory", 0.0) <= 0


def _projected(params: Params, curve: list[list[float]], whole: list[list[list[float]]]) -> list[Observation]:
    """Expect what a stopped trial would have come to, as those that went on have; nothing without any."""
    epochs = len(curve)
    longer = [other for other in whole if len(other) > epochs]
    if not longer:
        return []
    last, then = (np.array([other[epoch] for other in longer]) for epoch in (-1, epochs - 1))
    gains = last[:, 0] - then[:, 0]
    accuracy, flops, peak = curve[-1]
    flops_grow, peak_grows = (last[:, 1:] / then[:, 1:]).mean(axis=0).tolist()  # later epochs may be on larger images
    error = max(0.01, float(gains.std()))
    return [(params, (accuracy + float(gains.mean()), flops * flops_grow, peak * peak_grows), error)]


def columns_of(observations: Sequence[Observation]) -> tuple[Floats, Floats]:
    """Objectives, (T, 3), and errors, (T,)."""
    return np.array([observation[1] for observation in observations]), np.array(
        [observation[2] for observation in observations]
    )
