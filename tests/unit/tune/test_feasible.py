"""Limits that nothing in a space keeps are refused before anything starts."""

from typing import Any

import pytest

from alast_tune.config import FullConfig, SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.feasible import check_limits
from alast_tune.tune.forecast import Costs

SPACE: dict[str, Any] = {
    "method/trainable_blocks": {"type": "int", "low": 1, "high": 1000},
    "train/batch_size": {"type": "int", "low": 1, "high": 1000},
}


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate({"name": "s", "space": SPACE} | settings)


class Forecast:
    """A megabyte for each block and each image; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, trial: TrialConfig) -> Costs:
        self.asked += 1
        blocks = getattr(trial.method, "trainable_blocks", 1000)
        return Costs(1e9 * trial.train.batch_size, int(1e6) * (blocks + trial.train.batch_size))


def test_what_keeps_the_limits_is_found_in_a_corner_of_the_space() -> None:
    check_limits(sweep(max_memory="2MB", max_flops=1e9), Forecast())


def test_nothing_more_is_asked_once_something_fits() -> None:
    forecast = Forecast()
    check_limits(sweep(max_memory="4GB"), forecast)
    assert forecast.asked == 1
    check_limits(sweep(min_accuracy=0.99), forecast)  # which nobody can foresee
    assert forecast.asked == 1


def test_of_anybodys_method_that_learns_what_is_forecast_may_be_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"train/batch_size": {"type": "categorical", "choices": [1, 2]}}
    full = sweep(max_flops=0.95e9, sampler="grid", space=space, trial={"method": {"name": "full"}})
    with pytest.raises(ConfigError, match="max_flops"):
        check_limits(full, Forecast())
    monkeypatch.setattr(FullConfig, "learns", lambda self: True)
    check_limits(full, Forecast())


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"max_memory": "1MB"}, r"max_memory = 977 KiB: .* nearest one peak 1.91 MiB is above 977 KiB \(2 times the"),
        ({"max_flops": 1e8}, r"max_flops = 100 MFLOP: .* nearest one training .* is above 100 MFLOP \(\S+ times the"),
    ],
)
def test_limits_that_nothing_keeps_are_refused_with_what_comes_nearest(limits: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_limits(sweep(**limits), Forecast())


def test_of_a_grid_every_point_is_looked_at() -> None:
    space = {"train/batch_size": {"type": "categorical", "choices": [64, 32, 8]}}
    grid = sweep(max_memory="1008MB", sampler="grid", space=space, trial={"method": {"name": "full"}})
    forecast = Forecast()
    check_limits(grid, forecast)
    assert forecast.asked == 3
    with pytest.raises(ConfigError, match="max_memory = 960 MiB"):
        check_limits(grid.model_copy(update={"max_memory": 1007 * 10**6}), forecast)


def test_a_limit_that_one_variants_own_parameter_keeps_is_no_reason_to_refuse() -> None:
    blocks = {"method": {"name": "alast"}, "method/trainable_blocks": SPACE["method/trainable_blocks"]}
    variants = {"full": {"method": {"name": "full"}}, "few": blocks}
    space = {"train/batch_size": SPACE["train/batch_size"], "way": {"type": "variants", "variants": variants}}
    check_limits(sweep(space=space, max_memory="2MB"), Forecast())
    with pytest.raises(ConfigError, match="max_memory"):
        check_limits(sweep(space=space, max_memory="1MB"), Forecast())
