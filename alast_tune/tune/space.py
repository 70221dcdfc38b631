"""The search space: configuration paths on one side, Optuna's distributions on the other; and where a search begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from alast_tune.config import (
    AlastConfig,
    Distribution,
    FloatRange,
    Floors,
    FullConfig,
    IntRange,
    MethodConfig,
    SweepConfig,
    TrialConfig,
    Variants,
    apply_params,
    choices_of,
    flatten,
    parse,
    with_whole_images,
)
from alast_tune.errors import ConfigError

BASELINES: dict[str, MethodConfig] = {"full": FullConfig(), "paper": AlastConfig(reading="paper")}
"""What sweeps run first and to the end: full fine-tuning, and the paper's configuration."""

_LIKE_FULL = AlastConfig(trainable_blocks=1_000_000, floors=Floors(early=1.0, middle=1.0, late=1.0), target_budget=1.0)


def to_optuna(space: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    """Turn a sweep's space into Optuna's distributions, keyed by the same paths (``method/alpha``)."""
    return {path: _distribution(item) for path, item in space.items()}


def _distribution(item: Distribution) -> BaseDistribution:
    if isinstance(item, FloatRange):
        return FloatDistribution(item.low, item.high, log=item.log)
    if isinstance(item, IntRange):
        return IntDistribution(item.low, item.high)
    return CategoricalDistribution(choices_of(item) or ())


def size_of(space: Mapping[str, BaseDistribution]) -> float:
    """Count a space's configurations; infinite with a real parameter."""

    def count(item: BaseDistribution) -> float:
        if isinstance(item, CategoricalDistribution):
            return len(item.choices)
        return (item.high - item.low) // item.step + 1 if isinstance(item, IntDistribution) else math.inf

    return math.prod(map(count, space.values()))


def trial_config(sweep: SweepConfig, params: Mapping[str, Any], baseline: str | None = None) -> TrialConfig:
    """Set a trial's parameters in the sweep's base; a baseline keeps its own method and takes the others.

    A baseline trains on all tokens of whole images, on no features, whatever the others do. Where micro-batches follow
    from a limit of memory, this is the sweep's.

    Raises:
        ConfigError: two parameters, each fine, that contradict each other.
    """
    settings = sweep.settings(params)
    if baseline is None:
        return sweep.with_limit(apply_params(sweep.trial, settings))
    own = _with_method(sweep.trial, BASELINES[baseline])
    others = {path: value for path, value in settings.items() if path.split("/")[0] != "method"}
    return sweep.with_limit(with_whole_images(apply_params(own, others)))


def baseline_params(base: TrialConfig, space: Mapping[str, Distribution], baseline: str) -> dict[str, Any]:
    """Find the point of the space that is nearest to a baseline: there a sampler sees its results.

    The paper takes the learning rate for alpha; what a baseline says nothing of is the base trial's.
    """
    like = _LIKE_FULL if baseline == "full" else BASELINES[baseline]
    own = _with_method(base, like)
    values = {"method/alpha": own.train.learning_rate}
    values |= {path: value for path, value in (flatten(base) | flatten(own)).items() if value is not None}
    return {path: _nearest(item, values.get(path)) for path, item in space.items()}


def is_point(sweep: SweepConfig, baseline: str) -> bool:
    """Whether a baseline is a point of the space itself, so that its accuracy is that point's."""
    try:
        config = trial_config(sweep, baseline_params(sweep.trial, sweep.space, baseline))
    except ConfigError:
        return False
    if config != with_whole_images(config):
        return False
    method, own = config.method, BASELINES[baseline]
    if baseline == "full" and isinstance(method, AlastConfig):
        blocks = sweep.space.get("method/trainable_blocks")  # at its most, as none but the model knows how many it has
        everything = isinstance(blocks, IntRange) and method.trainable_blocks == blocks.high
        return everything and method.floors == _LIKE_FULL.floors and method.lora is None
    if isinstance(method, AlastConfig) and isinstance(own, AlastConfig):
        rate = config.train.learning_rate
        own = own.model_copy(update={"alpha": rate})
        method = method.model_copy(update={"alpha": rate if method.alpha is None else method.alpha})
    return method == own


def begins_with(sweep: SweepConfig) -> list[str]:
    """Name the baselines that a sweep runs first: full fine-tuning, and the paper's where ALaST is searched."""
    if sweep.sampler == "grid":
        return []
    variants = [item.variants.values() for item in sweep.space.values() if isinstance(item, Variants)]
    methods = [settings.get("method") for choice in variants for settings in choice if "method" in settings]
    adaptive = isinstance(sweep.trial.method, AlastConfig) or any(
        method.get("name") == "alast" for method in methods if isinstance(method, Mapping)
    )
    return ["full", "paper"] if adaptive else ["full"]


def point(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Put parameters into a form that can be looked up."""
    return tuple(sorted(params.items()))


def _with_method(base: TrialConfig, method: MethodConfig) -> TrialConfig:
    values = method.model_dump(exclude_unset=True) | {"name": method.name}
    return parse(TrialConfig, base.given_values() | {"method": values})


def _nearest(item: Distribution, value: Any) -> bool | int | float | str:
    if not isinstance(item, FloatRange | IntRange):
        choices = choices_of(item) or ()
        return value if value in choices else choices[0]
    if not isinstance(value, int | float):
        return item.low
    return type(item.low)(min(max(value, item.low), item.high))
