"""What a new sweep takes over from an earlier one: its results, or which points were its best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from alast_tune.config import (
    PLACES,
    Distribution,
    Parameter,
    SweepConfig,
    TrialConfig,
    Variants,
    check_point,
    flatten,
    point_of,
    stored_sweep,
)
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import FILE, Fingerprints, read_fingerprints
from alast_tune.front import pareto_mask
from alast_tune.results import DIRECTIONS, OBJECTIVES, FrontFile
from alast_tune.storage import fetch
from alast_tune.tracking import run_ids
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.space import baseline_params, nearest, to_optuna, trial_config
from alast_tune.tune.storage_errors import as_storage_error
from alast_tune.tune.trials import open_study, results

MOST = 8
"""Points of an earlier sweep that a new one begins with: of more than these some, spread over the costs."""


@dataclass(frozen=True)
class Earlier:
    """A result of an earlier sweep."""

    config: TrialConfig
    params: Mapping[str, Any]
    """As the earlier sweep had them: the names of variants are nowhere else."""
    values: tuple[float, ...]
    baseline: str | None
    origin: str
    mlflow_run_id: str | None
    test_accuracy: float | None


def earlier_results(sweep: SweepConfig, origin: Fingerprints, say: Callable[[str], None]) -> list[Earlier]:
    """Read what an earlier sweep of the same trial has measured.

    Args:
        sweep: the new one.
        origin: of its images and starting weights.
        say: prints a line if nobody knows those of the earlier sweep.

    Raises:
        ConfigError: not a sweep, or one whose trials are something else, so that results do not compare.
    """
    assert sweep.warm_start
    found = []
    for earlier in _read(sweep.warm_start, sweep.study, "warm_start"):
        params = _params(sweep, earlier)
        if None not in params.values():
            _check_same(sweep, trial_config(sweep, params, earlier.baseline), earlier)
        found.append(earlier)
    before = read_fingerprints(sweep.warm_start if sweep.warm_start.is_dir() else sweep.warm_start.parent)
    if before is None:
        of = sweep.warm_start
        say(f"note: there is no {FILE} of {of}; whether its data and starting weights were these is not known")
    elif differences := before.differences(origin):
        remedy = f"was run otherwise: here are {differences}; such results do not compare; run it anew"
        raise ConfigError("warm_start", sweep.warm_start, remedy)
    return found


def best_points(sweep: SweepConfig) -> tuple[dict[str, Any], ...]:
    """Find what did best in an earlier sweep, on whatever data: the points of this space nearest to it.

    Best is what no other trial there dominates and comes within ``within`` of its full fine-tuning, or of its most
    accurate trial if that is not known.

    Args:
        sweep: whose ``begin_with`` names the earlier one.

    Raises:
        ConfigError: not a sweep, or one without such a point.
    """
    source = sweep.begin_with
    assert isinstance(source, Path)
    every = list(_read(source, sweep.study, "begin_with"))
    own = [earlier for earlier in every if not earlier.baseline]
    best = max((earlier.values[0] for earlier in every), default=0.0)
    floor = next((earlier.values[0] for earlier in every if earlier.baseline == "full"), best)
    floor -= math.inf if sweep.within is None else sweep.within
    member = pareto_mask([earlier.values for earlier in own], DIRECTIONS) if own else ()
    near = [earlier for earlier, there in zip(own, member, strict=True) if there and earlier.values[0] >= floor]
    points: list[dict[str, Any]] = []
    for earlier in sorted(near, key=lambda earlier: earlier.values[1]):
        params = _params(sweep, earlier, nearest)
        with suppress(ConfigError):  # a variant that is not here, or values that contradict each other here
            check_point(sweep.space, params, "begin_with")
            trial_config(sweep, params)
            if params not in points:
                points.append(params)
    if not points:
        remedy = "has no trial near its full fine-tuning that could be tried in this space; leave it out"
        raise ConfigError("begin_with", source, remedy)
    step = max(1.0, (len(points) - 1) / (MOST - 1))
    return tuple(points[round(place * step)] for place in range(min(MOST, len(points))))


def feed(study: optuna.Study, sweep: SweepConfig, earlier: Sequence[Earlier]) -> int:
    """Tell a new study earlier results; returns how many lie in the sweep's space, the others being left out."""
    space = to_optuna(sweep.space)
    trials: list[FrozenTrial] = []
    tested: dict[str, float] = {}
    for result in earlier:
        named = {objective.name: value for objective, value in zip(OBJECTIVES, result.values, strict=True)}
        attributes = {"origin": result.origin, "epochs": sweep.trial.train.epochs}
        attributes |= {BASELINE: result.baseline} if result.baseline else {}
        attributes |= {"mlflow_run_id": result.mlflow_run_id} if result.mlflow_run_id else {}
        params = _params(sweep, result)
        with suppress(ValueError):
            trial = create_trial(
                state=TrialState.COMPLETE,
                params=params,
                distributions={name: space[name] for name in params},
                values=result.values,
                user_attrs=attributes,
                constraints=sweep.excess(**named),
            )
            if result.test_accuracy is not None:
                tested[str(len(trials))] = result.test_accuracy
            trials.append(trial)
    there = len(study.get_trials(deepcopy=False))  # more than none if a driver was killed in the middle of this
    study.add_trials(trials[there:])
    study.set_user_attr("test_accuracy", tested)
    return len(trials)


def _params(
    sweep: SweepConfig, earlier: Earlier, fitted: Callable[[Distribution, Any], Any] = lambda item, value: value
) -> dict[str, Any]:
    if earlier.baseline:
        return baseline_params(sweep.trial, sweep.space, earlier.baseline)
    values = {**earlier.params, **flatten(earlier.config)}

    def value_of(one: Parameter) -> Any:
        """Look a value up; None for variants of other names, which cannot be."""
        value, item = values.get(one.path), one.distribution
        return None if isinstance(item, Variants) and value not in item.variants else fitted(item, value)

    return point_of(sweep.space, value_of)


def _read(source: Path, study_of: str | None, field: str) -> Iterator[Earlier]:
    fetch(source)
    if (source / "sweep.json").exists():
        sweep = stored_sweep(source, field)
        if (
            "://" in (sweep.study or "") and sweep.study != study_of
        ):  # a file of somebody else's does not choose who is called
            remedy = f"its trials are in {sweep.study}; give its front.json, or the same as --study"
            raise ConfigError(field, source, remedy)
        with as_storage_error(source):
            study = open_study(sweep, source)
        tested = study.user_attrs.get("test_accuracy", {})
        runs = run_ids(source)
        for result in results(study, sweep):
            if result.values is not None:
                origin, test = result.origin or sweep.name, tested.get(str(result.number))
                run_id = runs.get(result.number, result.mlflow_run_id)
                yield Earlier(result.config, result.params, result.values, result.baseline, origin, run_id, test)
        return
    if not source.is_file():
        raise ConfigError(field, source, "is neither the folder of a sweep nor a front.json")
    front = FrontFile.read(source, field)
    for member in front.front:
        values = tuple(member.objectives[objective.name] for objective in OBJECTIVES)
        origin = member.origin or front.sweep
        yield Earlier(
            member.config, member.params, values, member.baseline, origin, member.mlflow_run_id, member.test_accuracy
        )


def _check_same(sweep: SweepConfig, config: TrialConfig, earlier: Earlier) -> None:
    """Refuse a result of another trial: with other data, model or epochs it does not compare."""
    ours, theirs = flatten(config), flatten(earlier.config)
    for path in sorted((ours.keys() | theirs.keys()) - {*PLACES}):
        mine, other = ours.get(path), theirs.get(path)
        if mine != other and not (isinstance(mine, float) and isinstance(other, float) and math.isclose(mine, other)):
            remedy = f"its trials have {path} = {other}, this sweep's {mine}: such results do not compare; run it anew"
            raise ConfigError("warm_start", sweep.warm_start, remedy)
