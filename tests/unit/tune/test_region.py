"""From which accuracy on a sweep counts, and that this is fixed once it is known."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from alast_tune.config import SweepConfig, parse
from alast_tune.results import DIRECTIONS, Region
from alast_tune.tune.attributes import ACCURACY_FLOOR, BASELINE
from alast_tune.tune.region import HIGHEST, fixed_region, region_of, search_floor
from alast_tune.tune.trials import open_study

SPACE = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}}
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def sweep(**options: Any) -> SweepConfig:
    return parse(SweepConfig, {"space": SPACE} | options)


def trial(state: TrialState, accuracy: float | None = None, baseline: str | None = None) -> FrozenTrial:
    values = None if accuracy is None else [accuracy, 1e12, 1e8]
    return create_trial(state=state, values=values, user_attrs={BASELINE: baseline} if baseline else {})


def full(state: TrialState, accuracy: float | None = None) -> FrozenTrial:
    return trial(state, accuracy, "full")


OTHERS = [trial(COMPLETE, 0.8), trial(COMPLETE, 0.7, "paper"), trial(PRUNED), trial(FAIL)]
NEAR = Region(source="full", floor=0.91, within=0.05)
PENDING, UNKNOWN = Region(source="pending", within=0.05), Region(source="unknown")


@pytest.mark.parametrize(
    ("options", "fulls", "region", "floor"),
    [
        ({}, [full(COMPLETE, 0.96)], NEAR, 0.91),
        ({"within": 0.2}, [full(COMPLETE, 0.96)], Region(source="full", floor=0.76, within=0.2), 0.76),
        ({"within": 1.0}, [full(COMPLETE, 0.96)], Region(source="full", floor=0.0, within=1.0), 0.0),
        ({}, [full(COMPLETE, 0.03)], Region(source="full", floor=0.0, within=0.05), 0.0),
        ({"within": 0.0}, [full(COMPLETE, 1.0)], Region(source="full", floor=HIGHEST, within=0.0), HIGHEST),
        ({}, [full(FAIL), full(COMPLETE, 0.96), full(COMPLETE, 0.5)], NEAR, 0.91),
        ({}, [full(TrialState.WAITING)], PENDING, 0.75),
        ({}, [full(TrialState.RUNNING)], PENDING, 0.75),
        ({}, [full(FAIL)], PENDING, 0.75),  # it may be run again
        ({}, [full(PRUNED)], UNKNOWN, 0.75),  # it breaks a limit
        ({}, [full(FAIL), full(PRUNED)], UNKNOWN, 0.75),
        ({}, [full(FAIL), full(TrialState.WAITING)], PENDING, 0.75),
        ({}, [], Region(), 0.0),
        ({"within": None}, [full(COMPLETE, 0.96)], Region(), 0.0),
        ({"within": None}, [full(TrialState.WAITING)], Region(), 0.0),
        ({"within": None, "min_accuracy": 0.6}, [full(COMPLETE, 0.96)], Region(), 0.6),  # as it was, both ways
        ({"min_accuracy": 0.6}, [full(COMPLETE, 0.96)], Region(source="min_accuracy", floor=0.6), 0.6),
        ({"min_accuracy": 1.0}, [full(PRUNED)], Region(source="min_accuracy", floor=HIGHEST), HIGHEST),
    ],
)
def test_what_counts(options: dict[str, Any], fulls: list[FrozenTrial], region: Region, floor: float) -> None:
    trials = [*OTHERS, *fulls]
    assert region_of(sweep(**options), {}, trials) == region
    assert search_floor(sweep(**options), {}, trials) == floor


def test_before_anything_is_complete_a_proposal_may_be_of_any_accuracy() -> None:
    assert search_floor(sweep(), {}, [full(TrialState.RUNNING)]) == 0.0
    assert search_floor(sweep(), {}, [full(TrialState.RUNNING), trial(COMPLETE, 0.02)]) == 0.0


def test_the_floor_is_fixed_in_the_study_and_stays_when_full_fine_tuning_is_run_again(tmp_path: Path) -> None:
    config = sweep(storage=tmp_path, name="s")
    study = open_study(config, tmp_path, new=True)
    study.add_trial(full(FAIL))
    assert fixed_region(study, config) == PENDING and ACCURACY_FLOOR not in study.user_attrs
    study.add_trial(full(COMPLETE, 0.96))
    assert fixed_region(study, config) == NEAR and study.user_attrs[ACCURACY_FLOOR] == 0.91
    resumed = open_study(config, tmp_path)
    resumed.add_trial(full(COMPLETE, 0.5))
    assert fixed_region(resumed, config) == NEAR
    assert region_of(config, resumed.user_attrs, [full(COMPLETE, 0.5)]) == NEAR
    assert search_floor(config, resumed.user_attrs, [full(COMPLETE, 0.5)]) == 0.91


def test_a_limit_and_a_sweep_of_an_older_version_leave_the_study_as_it_is() -> None:
    study = optuna.create_study(directions=list(DIRECTIONS))
    study.add_trial(full(COMPLETE, 0.96))
    for options in ({"min_accuracy": 0.6}, {"within": None}):
        fixed_region(study, sweep(**options))
    assert ACCURACY_FLOOR not in study.user_attrs
