"""Which accuracy a sweep counts: what lies so near full fine-tuning, or above the sweep's limit.

Most of a front's box lies where nobody wants to be: cheap trials of little accuracy. So hypervolume, proposals,
stopping and the knee look at a region, whose floor is fixed as soon as full fine-tuning has a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from alast_tune.config import SweepConfig
from alast_tune.results import Region
from alast_tune.tune.attributes import ACCURACY_FLOOR, BASELINE

HIGHEST = 1 - 1e-6
"""No floor lies higher: what has accuracy 1 shall count, the more the less it costs."""


def region_of(sweep: SweepConfig, attributes: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> Region:
    """Say from which accuracy on hypervolume counts.

    Args:
        sweep: its settings. One of a version that had no ``within`` counts everything, as it was measured.
        attributes: of its study; a floor that is fixed there stays, whatever full fine-tuning comes to when run again.
        trials: of the study, those that wait included.
    """
    if sweep.within is None:
        return Region()
    if sweep.min_accuracy is not None:
        return Region(source="min_accuracy", floor=min(sweep.min_accuracy, HIGHEST))
    if (floor := attributes.get(ACCURACY_FLOOR)) is not None:
        return Region(source="full", floor=floor, within=sweep.within)
    full = [trial for trial in trials if trial.user_attrs.get(BASELINE) == "full"]
    if not full:
        return Region()
    done = next((trial for trial in full if trial.state == TrialState.COMPLETE), None)
    if done:
        return Region(source="full", floor=_below(done.values[0], sweep.within), within=sweep.within)
    states = {trial.state for trial in full} - {TrialState.FAIL}  # what has failed may be run again
    return Region(source="unknown") if states == {TrialState.PRUNED} else Region(source="pending", within=sweep.within)


def search_floor(sweep: SweepConfig, attributes: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> float:
    """Say from which accuracy on a proposal is worth anything, as far as that is known now.

    As :func:`region_of`; where full fine-tuning has no result, so far below the best complete trial, if there is one.
    A limit of accuracy holds in sweeps of older versions as well.
    """
    if sweep.min_accuracy is not None:
        return min(sweep.min_accuracy, HIGHEST)
    region = region_of(sweep, attributes, trials)
    if sweep.within is None or region.source not in {"unknown", "pending"}:
        return region.floor
    best = max((trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE), default=0.0)
    return _below(best, sweep.within)


def fixed_region(study: optuna.Study, sweep: SweepConfig) -> Region:
    """Say what :func:`region_of` does, and fix the floor in the study the first time that full fine-tuning sets it."""
    attributes = study.user_attrs
    region = region_of(sweep, attributes, study.get_trials(deepcopy=False))
    if region.source == "full" and ACCURACY_FLOOR not in attributes:
        study.set_user_attr(ACCURACY_FLOOR, region.floor)
    return region


def _below(accuracy: float, within: float) -> float:
    return min(max(0.0, round(accuracy - within, 9)), HIGHEST)
