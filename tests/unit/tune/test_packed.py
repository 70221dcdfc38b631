"""A packed trial has the same attributes as the trial that it was made from."""

import copy
import pickle
from collections.abc import Callable
from datetime import datetime

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from alast_tune.tune.packed import PackedTrial, packed

SPACE = {"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(["a", "b"])}


def ended(number: int = 7) -> FrozenTrial:
    trial = create_trial(
        params={"kind": "b", "x": number / 100},  # in another order than their distributions
        distributions=dict(SPACE),
        values=[0.5, 2.0, 1.0],
        user_attrs={"epochs": 2, "epoch 1": [0.4, 1.0, 1.0, 30.0]},
        system_attrs={"note": "kept"},
        intermediate_values={1: 0.25},
        constraints={"max_memory": -1.0},
    )
    trial.number, trial._trial_id = number, number + 100
    return trial


def sent(trial: FrozenTrial) -> FrozenTrial:
    return pickle.loads(pickle.dumps(trial))


@pytest.mark.parametrize("through", [lambda one: one, copy.copy, copy.deepcopy, sent])
def test_a_packed_trial_says_what_it_said_before(through: Callable[[FrozenTrial], FrozenTrial]) -> None:
    trial = ended()
    found = through(packed(trial, {}))
    assert isinstance(found, PackedTrial)
    for name in (
        "number", "state", "params", "distributions", "values", "user_attrs", "system_attrs", "constraints",
        "datetime_start", "datetime_complete", "duration", "intermediate_values", "last_step", "_trial_id",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(trial, name), name
    with pytest.raises(AttributeError, match="nonsense"):
        found.nonsense  # noqa: B018


def test_what_runs_is_not_packed_and_nothing_is_packed_twice() -> None:
    running = create_trial(state=TrialState.RUNNING, params={}, distributions={})
    running.datetime_start = datetime.now()
    assert packed(running, {}) is running
    once = packed(ended(), {})
    assert packed(once, {}) is once


def test_trials_of_one_space_share_what_they_have_in_common() -> None:
    alike = {}
    first, second = (packed(ended(number), alike) for number in (7, 8))
    assert first.distributions is second.distributions
    assert first.params != second.params
