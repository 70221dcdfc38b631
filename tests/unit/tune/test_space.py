"""Paths stay, distributions become Optuna's."""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from alast_tune.config import Choice, FloatRange, IntRange
from alast_tune.tune.space import to_optuna


def test_each_kind() -> None:
    space = {
        "method/alpha": FloatRange(low=1e-4, high=1.0, log=True),
        "method/trainable_blocks": IntRange(low=1, high=12),
        "method/frozen_backward": Choice(choices=("exact", "residual")),
    }
    assert to_optuna(space) == {
        "method/alpha": FloatDistribution(1e-4, 1.0, log=True),
        "method/trainable_blocks": IntDistribution(1, 12),
        "method/frozen_backward": CategoricalDistribution(("exact", "residual")),
    }
