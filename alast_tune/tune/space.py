"""The search space: configuration paths on one side, Optuna's distributions on the other."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from alast_tune.config import Choice, Distribution, FloatRange


def to_optuna(space: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    """Turn a sweep's space into Optuna's distributions, keyed by the same paths (``method/alpha``)."""
    return {path: _distribution(item) for path, item in space.items()}


def _distribution(item: Distribution) -> BaseDistribution:
    if isinstance(item, Choice):
        return CategoricalDistribution(item.choices)
    if isinstance(item, FloatRange):
        return FloatDistribution(item.low, item.high, log=item.log)
    return IntDistribution(item.low, item.high)
