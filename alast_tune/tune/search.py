"""The guarded Optuna searcher.

Ray's own OptunaSearch, with several objectives, leaves a trial with a NaN or missing objective
RUNNING for ever, calls a crashed or truncated one COMPLETE, and after a killed driver leaves
orphans. Here the Optuna study is the one truth: a trial is COMPLETE only if it ran its whole
budget and every objective is a finite number, and a resumed sweep hands out the study's own
RUNNING trials first, under their own numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher

from alast_tune.config import Limits, SweepConfig, TrialConfig, parameters, point_of, size_of
from alast_tune.errors import ConfigError
from alast_tune.failpoints import failpoint
from alast_tune.micro_batches import GROWTH
from alast_tune.objectives import objective_values
from alast_tune.plots import human_bytes, human_flops
from alast_tune.storage import address_of
from alast_tune.text import safe
from alast_tune.tune.attributes import BASELINE, DUPLICATE_OF
from alast_tune.tune.budget import Budget
from alast_tune.tune.forecast import Costs
from alast_tune.tune.live import LiveTrial, Observer
from alast_tune.tune.resources import Packing
from alast_tune.tune.samplers import sampler_for
from alast_tune.tune.space import Point, point, to_optuna, trial_config
from alast_tune.tune.trials import baselines, epochs_of, is_own, superseded, to_result

_LOG = logging.getLogger(__name__)

BROKEN: dict[str, Callable[[Any, Mapping[str, float]], str]] = {
    "max_memory": lambda of, got: f"peak {human_bytes(got['peak_bytes'])} is above {human_bytes(of.max_memory)}",
    "max_flops": lambda of, got: f"training {human_flops(got['train_flops'])} is above {human_flops(of.max_flops)}",
    "min_accuracy": lambda of, got: f"{of.trial.train.score} {got['accuracy']:.4f} is below {of.min_accuracy:g}",
}

_PATIENCE = 100
"""So many proposals in a row that are not worth launching end the search."""

_BURST = 8
"""So many proposals in a row are made before Tune's loop turns: the first ones start, and signals are heard."""

FLOPS_SLACK = 0.1
"""Share by which a trial whose budgets learn may come to fewer FLOPs than foreseen."""

_STARVED = 1.0
"""How far a trial that ran out of memory is told to be above the limit: by how much it really was nobody knows."""


class StudySearcher(Searcher):
    """Hands the study's trials to Ray Tune and tells the study how they end.

    Args:
        study: of :func:`open_study`, with its ``reference_point``; gets the sweep's sampler.
        sweep: base trial, space, limits, and the number of trials beside the study's baselines.
        observer: is told of every start, epoch and end.
        packing: says whether there is room for a trial, and what it takes.
        forecast: predicts a trial's costs, the second argument being how far class-token deltas grow in training.
        checkpoints: addresses of a trial's checkpoints, newest first.
        budget: says whether new trials may still start; None: as long as there are any.
    """

    def __init__(
        self,
        study: optuna.Study,
        sweep: SweepConfig,
        observer: Observer,
        packing: Packing,
        forecast: Callable[[TrialConfig, float], Costs],
        checkpoints: Callable[[int], Iterable[str]] = lambda number: (),
        budget: Budget | None = None,
    ) -> None:
        super().__init__()
        self._study = study
        self._sweep = sweep
        self._observer = observer
        self._packing = packing
        self._forecast = lru_cache(maxsize=32)(forecast)  # what is proposed has just been considered
        self._folder = address_of(sweep.storage / sweep.name)
        self._checkpoints = checkpoints
        self._budget = budget or Budget(study)
        self._space = to_optuna(sweep.space)
        self._grid = list(sweep.combinations()) if sweep.sampler == "grid" else None
        study.sampler = sampler_for(study, sweep, self._forecast)
        old = superseded(study)
        earlier = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and trial.number not in old
        ]
        self._orphans = [trial for trial in earlier if trial.state == TrialState.RUNNING]
        self._launched = sum(is_own(trial) for trial in earlier)
        self._baselines = sum(trial.state == TrialState.WAITING for trial in baselines(study))
        self._numbers: dict[Point, int] = {}
        """The first trial with these parameters."""
        of_space = parameters(sweep.space)
        for trial in earlier:
            own = trial.user_attrs.keys().isdisjoint({BASELINE, DUPLICATE_OF})  # what repeated another was never run
            if own and trial.params.keys() == {name for name, one in of_space.items() if one.in_force(trial.params)}:
                self._numbers.setdefault(point(trial.params), trial.number)
        self._live: dict[str, LiveTrial] = {}
        self._size = size_of(sweep.space)
        self._in_a_row = 0
        self._crashes: dict[int, tuple[str, bool]] = {}
        self._stops: dict[int, str] = {}
        self.waiting: list[int] = []
        """Orphans that fit no node now: left as they are, for a later driver on a larger cluster."""

    @property
    def remaining(self) -> int:
        """Trials still to run: orphans of an earlier driver, baselines that wait, and those not yet proposed."""
        if self._grid is None:
            return len(self._orphans) + self._baselines + max(0, self._sweep.trials - self._launched)
        return len(self._orphans) + sum(point(params) not in self._numbers for params in self._grid)

    @property
    def _used_up(self) -> bool:
        """Whether every configuration has been proposed, and no baseline waits."""
        return len(self._numbers) >= self._size and not self._study.get_trials(
            deepcopy=False, states=(TrialState.WAITING,)
        )

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: object
    ) -> bool:
        """Objectives and space are the study's; Tune has nothing to add."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override] # FINISHED is a string
        """Hand out an orphan, else a new trial; None while there is no room, FINISHED when none is left."""
        most = self._sweep.concurrent
        if len(self._live) == most or (most is None and not self._packing.room):
            return None  # asked for so many at a time, they may wait for room: a cluster that grows does so for them
        if self._in_a_row == _BURST:
            self._in_a_row = 0
            return None
        for _ in range(_PATIENCE):
            if not self.remaining or (self._budget.over and not self._orphans):
                break
            if not self._orphans and self._used_up:
                _LOG.info("all %d configurations of the space have been tried: the search ends", self._size)
                break
            live = self._orphan() if self._orphans else self._propose()
            if live is None:
                continue
            trial = live.trial
            self._in_a_row += 1
            self._live[trial_id] = live
            baseline = trial.user_attrs.get(BASELINE)
            self._observer.started(trial.number, live.config, trial.params, baseline)
            return {
                "number": trial.number,
                "baseline": baseline,
                "trial": live.config.model_dump(mode="json"),
                "threads": self._sweep.cpus_per_trial,
                "resources": live.request,
                "sweep": self._folder,
                "resume_from": list(self._checkpoints(trial.number)) if live.orphan else [],
            }
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on, and keep it."""
        self._in_a_row = 0
        self._live[trial_id].keep_device(result.get("device"))
        self._live[trial_id].keep_epoch(_metrics(result), self._observer)

    def crashed(self, number: int, reason: str, starved: bool) -> None:
        """Hear why a trial will end with an error; the first to say so knows best.

        Args:
            number: of the trial.
            reason: a line.
            starved: its worker was killed because the machine's memory ran out.
        """
        self._crashes.setdefault(number, (reason, starved))

    def outdone(self, number: int, why: str) -> None:
        """Hear why a trial is stopped at a rung."""
        self._stops[number] = why

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study, once, what the trial really was."""
        if trial_id not in self._live:
            return
        self._in_a_row = 0
        live = self._live.pop(trial_id)
        self._packing.release(live.request)
        metrics, trouble = _metrics(result), (result or {}).get("trouble")
        if metrics and not trouble:
            live.keep_device((result or {}).get("device"))
            live.keep_epoch(metrics, self._observer)
        epochs, budget = int(metrics.get("epoch", len(live.epochs))), live.config.train.epochs
        values = objective_values(metrics, live.config.train.score)
        unusable = [name for name, value in values.items() if not math.isfinite(value)]
        if error:
            why, starved = self._crashes.pop(live.trial.number, ("worker lost", False))
            if starved:
                _constrain_once(live.trial, "max_memory", _STARVED)
            else:
                live.trial.set_user_attr("crashed", True)  # which says nothing of its parameters
            self._tell(live.trial, TrialState.PRUNED if starved else TrialState.FAIL, why, epochs)
        elif (result or {}).get("out_of_memory"):
            _constrain_once(live.trial, "max_memory", _STARVED)
            self._tell(live.trial, TrialState.PRUNED, str(trouble), epochs)
        elif trouble:
            self._tell(live.trial, TrialState.FAIL, str(trouble), epochs)
        elif metrics and unusable:
            self._tell(live.trial, TrialState.FAIL, f"not a finite number: {', '.join(unusable)}", epochs)
        elif epochs < budget and not (result or {}).get("complete"):  # which a run that is out of patience is
            reason = [f"stopped after {epochs} of {budget} epochs"]
            reason += [self._stops.pop(live.trial.number)] if live.trial.number in self._stops else []
            if metrics:  # costs only grow: a limit that is broken now stays so; accuracy may yet rise
                reason += self._constrain(
                    live.trial, self._sweep, train_flops=values["train_flops"], peak_bytes=values["peak_bytes"]
                )
            self._tell(live.trial, TrialState.PRUNED, ": ".join(reason), epochs)
        else:
            broken = self._constrain(live.trial, self._sweep, **values)
            live.trial.set_user_attr("metrics", {name: value for name, value in metrics.items() if "/" not in name})
            self._tell(live.trial, TrialState.COMPLETE, ", ".join(broken) or None, epochs, list(values.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher to restore from, and it is the study that a sweep resumes from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved at every step."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep reopens the study."""

    def _orphan(self) -> LiveTrial | None:
        """Take up a trial of an earlier driver, with the curve it has so far."""
        frozen = self._orphans.pop(0)
        counted = is_own(frozen)
        trial = Trial(self._study, frozen._trial_id)
        self._choose(trial)  # a driver killed while asking leaves some out; the others stay
        if self._repeats(trial):
            self._launched -= counted
            return None
        live = self._admit(trial, orphan=True)
        if live is not None:
            live.orphan = True
            live.epochs.extend(epochs_of(frozen.user_attrs))
            live.device = frozen.user_attrs.get("device")
        return live

    def _propose(self) -> LiveTrial | None:
        """Ask for a new trial; None for one that is not launched."""
        failpoint("before-ask")
        trial = self._study.ask()
        self._choose(trial)
        failpoint("after-ask")
        if BASELINE in trial.user_attrs:
            self._baselines -= 1
        elif self._repeats(trial):
            return None
        else:
            self._launched += 1
        return self._admit(trial)

    def _choose(self, trial: Trial) -> None:
        """Let the sampler choose what is in force, step by step."""
        point_of(self._sweep.space, lambda one: trial._suggest(one.name, self._space[one.name]))

    def _repeats(self, trial: Trial) -> bool:
        """Whether an earlier trial has the same parameters; the study is told that this one is not run."""
        if BASELINE in trial.user_attrs:
            return False
        first = self._numbers.setdefault(point(trial.params), trial.number)
        if first == trial.number:
            return False
        trial.set_user_attr(DUPLICATE_OF, first)
        self._study.tell(trial, state=TrialState.PRUNED)
        return True

    def _admit(self, trial: Trial, *, orphan: bool = False) -> LiveTrial | None:
        """Find room for a trial; None for one that cannot work or be of use, which the study is told.

        An orphan that fits nowhere is not told: what it has done is not lost on a smaller cluster.
        """
        try:
            config = trial_config(self._sweep, trial.params, trial.user_attrs.get(BASELINE))
            costs = self._forecast(config, 0.0)
        except ConfigError as error:  # two parameters, each fine, that contradict each other
            self._tell(trial, TrialState.FAIL, str(error), epochs=0)
            return None
        trial.set_user_attr("predicted_bytes", costs.peak_bytes)
        foreseen = {"train_flops": costs.train_flops, "peak_bytes": float(costs.peak_bytes)}
        flops, limits = costs.train_flops * (1 - FLOPS_SLACK * config.method.learns()), self._sweep
        if (own := config.train.max_memory) is not None:
            limits = limits.model_copy(update={"max_memory": min(own, limits.max_memory or own)})
        if limits.allow(**foreseen | {"train_flops": flops}):
            try:
                return LiveTrial(trial, config, self._packing.place(self._forecast(config, GROWTH).peak_bytes))
            except ConfigError as error:
                if orphan:
                    self.waiting.append(trial.number)
                    return None
                _constrain_once(trial, "max_memory", _STARVED)
                broken = str(error)
        else:
            broken = " and ".join(self._constrain(trial, limits, **foreseen))
        if trial.user_attrs.get("launched", True):
            self._launched -= BASELINE not in trial.user_attrs
            trial.set_user_attr("launched", False)
        self._tell(trial, TrialState.PRUNED, f"never launched: predicted {broken}", epochs=0)
        return None

    def _constrain(self, trial: Trial, limits: Limits, **objectives: float) -> list[str]:
        """Set Optuna's constraints from measured or predicted objectives; say which limits are broken."""
        excess = limits.excess(**objectives)
        for limit, amount in excess.items():
            _constrain_once(trial, limit, amount)
        return [BROKEN[limit](limits, objectives) for limit, amount in excess.items() if amount > 0]

    def _tell(
        self, trial: Trial, state: TrialState, reason: str | None, epochs: int, values: list[float] | None = None
    ) -> None:
        trial.set_user_attr("epochs", epochs)
        if reason:
            trial.set_user_attr("reason", safe(reason))
        told = self._study.tell(trial, values, state)
        failpoint("after-tell")
        self._budget.keep(every=1)
        self._observer.ended(to_result(told, self._sweep))


def _constrain_once(trial: Trial, limit: str, excess: float) -> None:
    """Set one of Optuna's constraints, which it keeps as they are: a driver that was killed may have set it."""
    if limit not in trial.constraints:
        trial.set_constraint(limit, excess)


def _metrics(result: dict[str, Any] | None) -> dict[str, float]:
    """Take the epoch's metrics out of a Tune result, which Tune has flattened to ``report/accuracy``."""
    prefix = "report/"
    return {key.removeprefix(prefix): value for key, value in (result or {}).items() if key.startswith(prefix)}
