"""Multi-objective asynchronous successive halving.

Stops trials that others outdo at the same epoch (Li et al. 2020, ASHA; Schmucker et al. 2021,
MO-ASHA). Trials are only ever compared at equal epochs, where costs that grow with training are
comparable; what a stopped trial reached is never taken for a result (see :mod:`alast_tune.tune.search`).
Whoever is not dominated goes on: with three objectives most of a rung may be, and the half of them that
successive halving would drop holds members of the final front. But only in the region that the sweep looks for: a trial
that lies further below full fine-tuning at the same epoch than the final front may is not spared for being cheap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from alast_tune.config import Limits, SweepConfig
from alast_tune.front import dominating, hypervolume_contributions, pareto_rank
from alast_tune.near_full import SLACK
from alast_tune.objectives import DIRECTIONS, objective_values
from alast_tune.scores import SCORES, Score
from alast_tune.storage import address_of
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.storage_errors import storage_trouble
from alast_tune.tune.trials import curve_of

REDUCTION = 2
"""One in so many goes on from a rung to the next; each rung has so many times the epochs of the one before."""

WINDOW = 512
"""A rung remembers so many, the latest: the time of a comparison does not grow with the sweep."""


class Rungs:
    """Who has reached which rung, and with what; decides who goes on.

    ``floors`` has the accuracy, by epoch, from which on a trial is in the region; a rung without one has no region.

    Args:
        epochs: of a whole run; no rung lies there.
        grace: epochs of the first rung.
        reduction: see :data:`REDUCTION`.
        score: measure of quality that ``accuracy`` stands for.
    """

    def __init__(self, epochs: int, grace: int = 1, reduction: int = REDUCTION, score: Score = "accuracy") -> None:
        self._reduction, self._label = reduction, SCORES[score]
        self.floors: dict[int, float] = {}
        self._rungs: dict[int, dict[int, Sequence[float]]] = {}
        level = grace
        while level < epochs:
            self._rungs[level] = {}
            level *= reduction

    def record(self, number: int, epoch: int, values_M: Sequence[float]) -> None:
        """Take in a trial's objectives after an epoch, for others to be compared with."""
        rung = self._rungs.get(epoch)
        if rung is not None:
            rung[number] = tuple(values_M)
            if len(rung) > WINDOW:
                del rung[next(iter(rung))]

    def report(self, number: int, epoch: int, values_M: Sequence[float]) -> bool:
        """Take in a trial's objectives after an epoch, and say whether it goes on.

        At a rung it does if it is in the region and nobody there dominates it, or if it is among the best
        ``1 / reduction`` of those that have come so far. Those below the region come after those in it.
        """
        self.record(number, epoch, values_M)
        rung = self._rungs.get(epoch, {})
        if len(rung) < self._reduction:
            return True
        place, rank = place_in_region(list(rung.values()), list(rung).index(number), self.floors.get(epoch))
        return rank == 0 or place < math.ceil(len(rung) / self._reduction)

    def why(self, number: int, epoch: int) -> str:
        """Say how a trial stands at a rung that it has reached, and which trials dominate it there."""
        rung = self._rungs[epoch]
        values_TM, row = list(rung.values()), list(rung).index(number)
        place, rank = place_in_region(values_TM, row, self.floors.get(epoch))
        if rank is None:
            least = (
                f"{self._label} {values_TM[row][0]:.4f} is below {self.floors[epoch]:.4f}, from which it counts there"
            )
            return f"place {place + 1} of {len(rung)} there: {least}"
        ahead = [f"{n:04d}" for n, better in zip(rung, dominating(values_TM, row, DIRECTIONS), strict=True) if better]
        more = f" and {len(ahead) - 3} more" if len(ahead) > 3 else ""
        return f"place {place + 1} of {len(rung)} there, dominated by {', '.join(ahead[:3])}{more}"


def place_by_front(values_TM: Sequence[Sequence[float]], row: int) -> tuple[int, int]:
    """Place a trial among others by front (non-dominated sorting), and within its front by what it adds.

    Args:
        values_TM: (T, M) objectives at the same epoch, in the order of :data:`~alast_tune.results.OBJECTIVES`.
        row: of the trial.

    Returns:
        How many are better, and the number of its front, both from 0. Better within a front is who contributes more
        to its hypervolume.
    """
    ranks_T = pareto_rank(values_TM, DIRECTIONS)
    peers = np.flatnonzero(ranks_T == ranks_T[row])
    added_P = hypervolume_contributions(np.asarray(values_TM)[peers], DIRECTIONS)
    mine = added_P[np.flatnonzero(peers == row)[0]]
    return int((ranks_T < ranks_T[row]).sum() + (added_P > mine).sum()), int(ranks_T[row])


def place_in_region(
    values_TM: Sequence[Sequence[float]], row: int, floor: float | None = None
) -> tuple[int, int | None]:
    """Place a trial among others, those in the region first, by :func:`place_by_front` among themselves.

    Args:
        values_TM: (T, M), as there.
        row: of the trial.
        floor: accuracy from which on a trial is in the region; None: all are.

    Returns:
        How many are better, and the number of its front, both from 0; None for a front below the region, where who has
        more accuracy is better.
    """
    accuracy_T = np.asarray(values_TM, dtype=np.float64)[:, 0]
    inside = np.flatnonzero(accuracy_T >= (-math.inf if floor is None else floor - SLACK)).tolist()
    if row in inside:
        return place_by_front([values_TM[place] for place in inside], inside.index(row))
    return int((accuracy_T > accuracy_T[row]).sum()), None


_KILLED_FOR_MEMORY = ("running low on memory", "address the out of memory issue")
"""Words of Ray's memory monitor."""


def last_line(text: str) -> str:
    """Say in a line what a worker's error says last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(sign in text for sign in _KILLED_FOR_MEMORY):
        return "out of memory: Ray's memory monitor has killed the worker, as the machine had little left"
    return lines[-1] if lines else "worker lost"


class MoAsha(FIFOScheduler):
    """Ray Tune's side of :class:`Rungs`; also stops a trial whose costs have already broken a limit.

    The region at a rung lies as far below full fine-tuning's accuracy after the same epoch as the final region lies
    below its last one: by the sweep's ``within``, or, if there is a least accuracy, by what full fine-tuning has beyond
    that (at least 0), once it has ended. As long as full fine-tuning's accuracy is not known, there is none.

    Args:
        sweep: its epochs, limits, and whether trials are stopped early.
        study: has the curves of an earlier driver's trials, so that a resumed sweep compares with them too.
        crashed: is told why a trial has failed for good: its number, a line, whether its worker was killed because the
            machine's memory ran out.
        outdone: is told why a trial is stopped at a rung: its number, a few words.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        study: optuna.Study,
        crashed: Callable[[int, str, bool], None] = lambda *why: None,
        outdone: Callable[[int, str], None] = lambda *why: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._crashed, self._outdone = crashed, outdone
        self._storage = address_of(sweep.storage / sweep.name)
        self._limits: Limits = sweep.limits
        self._within, self._epochs = sweep.within, sweep.trial.train.epochs
        self._score = sweep.trial.train.score
        self._full: dict[int, float] = {}
        """Accuracy of full fine-tuning by epoch."""
        grace = sweep.grace_epochs or -(-self._epochs // 2)
        self._rungs = Rungs(self._epochs, grace, score=self._score) if sweep.stops_early else None
        for trial in study.get_trials(deepcopy=False):
            if trial.state != TrialState.FAIL:
                curve = curve_of(trial.user_attrs)
                for epoch, values in enumerate(curve, start=1):
                    last = trial.state == TrialState.COMPLETE and epoch == len(curve)
                    self._record(trial.number, epoch, values, trial.user_attrs.get(BASELINE), last)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> str:
        """Stop the trial or let it go on."""
        values = self._objectives(result)
        if not all(map(math.isfinite, values.values())):
            return str(TrialScheduler.STOP)  # what has left the numbers does not come back
        if not self._limits.allow(train_flops=values["train_flops"], peak_bytes=values["peak_bytes"]):
            return str(TrialScheduler.STOP)
        if self._rungs:
            report = trial.config["number"], int(result["report/epoch"]), list(values.values())
            if trial.config["baseline"]:  # it is compared with, and goes on whatever comes of it
                self._record(*report, trial.config["baseline"])
            elif not self._rungs.report(*report):
                self._outdone(report[0], self._rungs.why(*report[:2]))
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: Mapping[str, Any]) -> None:
        """Learn full fine-tuning's last accuracy: Tune hands the last epoch here."""
        values = list(self._objectives(result).values())
        if trial.config["baseline"] == "full" and all(map(math.isfinite, values)):
            self._record(trial.config["number"], int(result["report/epoch"]), values, "full", last=True)

    def _record(
        self, number: int, epoch: int, values_M: Sequence[float], baseline: str | None, last: bool = False
    ) -> None:
        """Take in an epoch for others to be compared with; one of full fine-tuning moves the region.

        What full fine-tuning has at its last epoch, it has at all later ones, should it have ended early.
        """
        if not self._rungs:
            return
        self._rungs.record(number, epoch, values_M)
        if baseline == "full" and self._within is not None:
            self._full |= dict.fromkeys(range(epoch, (self._epochs if last else epoch) + 1), values_M[0])
            within, final, least = self._within, self._full.get(self._epochs), self._limits.min_accuracy
            if least is not None:
                if final is None:
                    return
                within = max(0.0, final - least)
            self._rungs.floors = {at: accuracy - within for at, accuracy in self._full.items()}

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """End the sweep if its storage is full: the trial is not to blame, and a resumed sweep runs it.

        Tune asks here before it tells the searcher of a failure, which hears only here why.

        Raises:
            OSError: the storage is full.
        """
        text = Path(trial.error_file or os.devnull).read_text(errors="replace")
        words = storage_trouble(text, self._storage)
        if words:
            raise OSError(words)
        self._crashed(trial.config["number"], last_line(text), any(sign in text for sign in _KILLED_FOR_MEMORY))

    def _objectives(self, result: Mapping[str, Any]) -> dict[str, float]:
        return objective_values(result, self._score, "report/")
