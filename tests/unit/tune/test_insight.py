"""Importances and curves of small studies whose answer is known."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from alast_tune.config import Parameter, SweepConfig, point_of
from alast_tune.results import DIRECTIONS
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.insight import LEAST_TRIALS, importance, report_search
from alast_tune.tune.preview import value_at
from alast_tune.tune.space import to_optuna
from tests.unit.tune import conditional

SWEEP = SweepConfig.model_validate(
    {
        "space": {
            "method/alpha": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
            "method/floors/early": {"type": "float", "low": 0.1, "high": 1.0},
            "method/trainable_blocks": {"type": "int", "low": 3, "high": 3},
            "method/frozen_backward": {"type": "categorical", "choices": ["exact", "residual"]},
        }
    }
)


def study(count: int, values: Callable[[dict[str, Any]], list[float]], **attrs: Any) -> optuna.Study:
    """A study of random points with these objectives."""
    found = optuna.create_study(directions=list(DIRECTIONS))
    draw = np.random.default_rng(0)
    for _ in range(count):
        params = {
            "method/alpha": float(draw.uniform(1e-3, 1)),
            "method/floors/early": float(draw.uniform(0.1, 1)),
            "method/trainable_blocks": 3,
            "method/frozen_backward": str(draw.choice(["exact", "residual"])),
        }
        found.add_trial(
            create_trial(
                params=params, distributions=to_optuna(SWEEP.space), values=values(params), user_attrs=dict(attrs)
            )
        )
    return found


def by_floor_and_choice(params: dict[str, Any]) -> list[float]:
    return [params["method/floors/early"], float(params["method/frozen_backward"] == "exact"), 5.0]


def test_what_an_objective_depends_on_has_the_importance() -> None:
    report = report_search(study(40, by_floor_and_choice), SWEEP)
    assert report.importances["accuracy"]["method/floors/early"] > 0.9
    assert report.importances["train_flops"]["method/frozen_backward"] > 0.6
    assert "peak_bytes" not in report.importances  # all alike
    for shares in report.importances.values():
        assert shares.keys() == SWEEP.space.keys()
        assert math.isclose(sum(shares.values()), 1.0)
        assert shares["method/trainable_blocks"] == 0  # never varied


def test_baselines_say_nothing_about_parameters_that_only_stand_for_them() -> None:
    found = study(20, by_floor_and_choice)
    before = importance(found, SWEEP, 0)
    for baseline in study(1, lambda params: [1000.0, 1e9, 1.0], **{BASELINE: "full"}).trials:
        found.add_trial(baseline)
    assert importance(found, SWEEP, 0) == before


def test_too_few_trials_tell_nothing() -> None:
    assert report_search(study(LEAST_TRIALS - 1, by_floor_and_choice), SWEEP).importances == {}
    assert report_search(study(0, by_floor_and_choice), SWEEP).importances == {}
    assert report_search(study(LEAST_TRIALS, by_floor_and_choice), SWEEP).importances


def test_curves_have_times_where_they_were_kept() -> None:
    found = study(1, by_floor_and_choice, curve=[[0.1, 1, 2], [0.2, 2, 2]], seconds=[3.0, 4.0])
    found.add_trial(create_trial(state=TrialState.PRUNED, user_attrs={"curve": [[0.1, 1, 2]]}))  # of an older version
    found.add_trial(create_trial(state=TrialState.FAIL))
    curves = report_search(found, SWEEP).curves
    assert curves.keys() == {0, 1}
    assert curves[0].tolist() == [[0.1, 1, 2, 3], [0.2, 2, 2, 4]]
    assert curves[1][0, :3].tolist() == [0.1, 1, 2] and math.isnan(curves[1][0, 3])


def test_ends_are_counted_from_the_first_start_and_forecasts_are_those_that_were_kept() -> None:
    found = study(0, by_floor_and_choice)
    begun = datetime(2026, 1, 1, 12)
    for after, minutes, attributes in (
        (30, 60, {"predicted_bytes": 5e7}),
        (0, 30, {}),
        (-1000, 1, {"origin": "before", "predicted_bytes": 4e7}),
    ):
        trial = create_trial(values=[0.5, 1.0, 2.0], user_attrs=attributes)
        trial.datetime_start = begun + timedelta(minutes=after)
        trial.datetime_complete = trial.datetime_start + timedelta(minutes=minutes)
        found.add_trial(trial)
    report = report_search(found, SWEEP)
    assert report.ended_hours == {0: 1.5, 1: 0.5}  # without the one of an earlier sweep
    assert report.predicted_bytes == {0: 5e7, 2: 4e7}
    assert report_search(study(0, by_floor_and_choice), SWEEP).ended_hours == {}


def test_what_only_one_variant_has_is_told_within_its_trials() -> None:
    sweep, found, draw = conditional.sweep(), optuna.create_study(directions=list(DIRECTIONS)), np.random.default_rng(0)
    space = to_optuna(sweep.space)

    def drawn(one: Parameter) -> Any:
        return str(draw.choice(["lora", "head"])) if one.name == "way" else value_at(one.distribution, draw.random())

    for _ in range(60):
        params = point_of(sweep.space, drawn)
        rate = params.get("lora/train/learning_rate", 0.0)
        values = [rate, float(params["train/batch_size"]), 1.0 + (params["way"] == "head")]
        distributions = {name: space[name] for name in params}
        found.add_trial(create_trial(params=params, distributions=distributions, values=values))
    accuracy, flops, peak = (importance(found, sweep, place) for place in range(3))
    assert accuracy["lora/train/learning_rate"] > 0.8 and flops["train/batch_size"] > 0.9 and peak["way"] > 0.9
    for shares in (accuracy, flops):
        assert math.isclose(shares["train/batch_size"] + shares["way"], 1.0)
        assert math.isclose(shares["lora/method/rank"] + shares["lora/train/learning_rate"], 1.0)
        assert not any(name.startswith("full/") for name in shares)  # never tried
    assert peak.keys() == {"train/batch_size", "way"}  # within the variant all alike
