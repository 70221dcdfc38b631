"""The guarded Optuna searcher.

Ray's own OptunaSearch, with several objectives, leaves a trial with a NaN or missing objective
RUNNING for ever, calls a crashed or truncated one COMPLETE, and after a killed driver leaves
orphans. Here the Optuna study is the one truth: a trial is COMPLETE only if it ran its whole
budget and every objective is a finite number, and a resumed sweep hands out the study's own
RUNNING trials first, under their own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.search import Searcher

from alast_tune.config import SweepConfig, TrialConfig, apply_params
from alast_tune.errors import ConfigError
from alast_tune.results import DIRECTIONS, OBJECTIVES, TrialResult
from alast_tune.tune.space import to_optuna

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


class Observer(Protocol):
    """Who wants to know how trials fare."""

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], run_id: str | None) -> str | None:
        """A trial was handed to a worker, for the first time or (with its tracking run's id) again; returns the id."""

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """It finished an epoch."""

    def ended(self, result: TrialResult) -> None:
        """The study knows how it ended."""


def open_study(sweep: SweepConfig, database: Path) -> optuna.Study:
    """Create or reopen the sweep's study in a SQLite file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{database}", study_name=sweep.name, directions=list(DIRECTIONS), load_if_exists=True
    )
    # A sampler that starts again where trials are already must not repeat their draws.
    study.sampler = _sampler(sweep, sweep.seed + 7919 * len(study.get_trials(deepcopy=False)))
    return study


def _sampler(sweep: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, sweep.trials // 4)))
    if sweep.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class StudySearcher(Searcher):
    """Hands the study's trials to Ray Tune and tells the study how they end.

    Args:
        study: with one direction an objective of :data:`~alast_tune.results.OBJECTIVES`.
        sweep: base trial, space, and the number of trials in all.
        observer: is told of every start, epoch and end.
        concurrent: trials out at a time.
        checkpoints: folders of a trial's checkpoints, newest first.
    """

    def __init__(
        self,
        study: optuna.Study,
        sweep: SweepConfig,
        observer: Observer,
        concurrent: int,
        checkpoints: Callable[[int], Iterable[Path]] = lambda number: (),
    ) -> None:
        super().__init__()
        self._study = study
        self._sweep = sweep
        self._observer = observer
        self._concurrent = concurrent
        self._checkpoints = checkpoints
        self._space = to_optuna(sweep.space)
        self._orphans = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
        self._live: dict[str, tuple[Trial, TrialConfig]] = {}

    @property
    def remaining(self) -> int:
        """Trials still to run: orphans of an earlier driver and those not yet proposed."""
        return len(self._orphans) + max(0, self._sweep.trials - len(self._study.get_trials(deepcopy=False)))

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: object
    ) -> bool:
        """Objectives and space are the study's; Tune has nothing to add."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override] # FINISHED is a string
        """Hand out an orphan, else a new trial; None while enough are out, FINISHED when none is left."""
        if len(self._live) >= self._concurrent:
            return None
        while self.remaining:
            trial = self._next()
            try:
                config = apply_params(self._sweep.trial, trial.params)
            except ConfigError as error:  # two parameters, each fine, that contradict each other
                self._tell(trial, TrialState.FAIL, None, str(error), epochs=0)
                continue
            self._live[trial_id] = trial, config
            run_id = self._observer.started(trial.number, config, trial.params, trial.user_attrs.get("mlflow_run_id"))
            trial.set_user_attr("mlflow_run_id", run_id)
            return {
                "number": trial.number,
                "trial": config.model_dump(mode="json"),
                "threads": self._sweep.cpus_per_trial,
                "resume_from": [str(folder) for folder in self._checkpoints(trial.number)],
            }
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on."""
        self._observer.reported(self._live[trial_id][0].number, _metrics(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study, once, what the trial really was."""
        if trial_id not in self._live:
            return
        trial, config = self._live.pop(trial_id)
        metrics = _metrics(result)
        if metrics:
            self._observer.reported(trial.number, metrics)
        epochs = int(metrics.get("epoch", 0))
        values = [metrics.get(objective.name, math.nan) for objective in OBJECTIVES]
        unusable = [o.name for o, value in zip(OBJECTIVES, values, strict=True) if not math.isfinite(value)]
        if error:
            self._tell(trial, TrialState.FAIL, None, "crashed", epochs)
        elif epochs < config.train.epochs:
            self._tell(
                trial, TrialState.PRUNED, None, f"stopped after {epochs} of {config.train.epochs} epochs", epochs
            )
        elif unusable:
            self._tell(trial, TrialState.FAIL, None, f"not a finite number: {', '.join(unusable)}", epochs)
        else:
            self._tell(trial, TrialState.COMPLETE, values, None, epochs)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher to restore from, and it is the study that a sweep resumes from."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved at every step."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed sweep reopens the study."""

    def _next(self) -> Trial:
        if not self._orphans:
            return self._study.ask(self._space)
        trial = Trial(self._study, self._orphans.pop(0)._trial_id)
        for path, distribution in self._space.items():
            trial._suggest(path, distribution)  # a driver killed while asking leaves some out; the others stay
        return trial

    def _tell(
        self, trial: Trial, state: TrialState, values: list[float] | None, reason: str | None, epochs: int
    ) -> None:
        trial.set_user_attr("epochs", epochs)
        if reason:
            trial.set_user_attr("reason", reason)
        self._study.tell(trial, values, state)
        told = self._study.get_trials(deepcopy=False)[trial.number]
        self._observer.ended(to_result(told, self._sweep.trial))


def _metrics(result: dict[str, Any] | None) -> dict[str, float]:
    """Take the epoch's metrics out of a Tune result, which Tune has flattened to ``report/accuracy``."""
    prefix = "report/"
    return {key.removeprefix(prefix): value for key, value in (result or {}).items() if key.startswith(prefix)}


def to_result(trial: FrozenTrial, base: TrialConfig) -> TrialResult:
    """Read one trial of the study."""
    try:
        config = apply_params(base, trial.params)
    except ConfigError:  # told FAIL for this very reason
        config = base
    complete = trial.state == TrialState.COMPLETE
    return TrialResult(
        number=trial.number,
        state=_STATES[trial.state],  # type: ignore[arg-type]
        config=config,
        params=dict(trial.params),
        values=tuple(trial.values) if complete else None,
        epochs=trial.user_attrs.get("epochs", 0),
        mlflow_run_id=trial.user_attrs.get("mlflow_run_id"),
        reason=trial.user_attrs.get("reason"),
    )


def results(study: optuna.Study, base: TrialConfig) -> list[TrialResult]:
    """Read every trial of the study, by number."""
    return [to_result(trial, base) for trial in study.get_trials(deepcopy=False)]
