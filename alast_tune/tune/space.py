"""The search space: configuration paths on one side, Optuna's distributions on the other; and where a search begins."""

from __future__ import annotations

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
    Parameter,
    SweepConfig,
    TrialConfig,
    Variants,
    apply_params,
    choices_of,
    flatten,
    is_conditional,
    parameters,
    parse,
    point_of,
    with_whole_images,
)
from alast_tune.errors import ConfigError

BASELINES: dict[str, MethodConfig] = {"full": FullConfig(), "paper": AlastConfig(reading="paper")}
"""What sweeps run first and to the end: full fine-tuning, and the paper's configuration."""

_WHOLE = 1_000_000
"""Pixels: as large as images are."""
_LIKE_FULL = AlastConfig(trainable_blocks=1_000_000, floors=Floors(early=1.0, middle=1.0, late=1.0), target_budget=1.0)


def to_optuna(space: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    """Turn a sweep's space into Optuna's distributions, by name (``method/alpha``), the conditional ones too."""
    return {name: _distribution(one.distribution) for name, one in parameters(space).items()}


def conditions_of(space: Mapping[str, Distribution]) -> dict[str, tuple[str, str]]:
    """Say of each conditional parameter, by name, which variants and which of them it takes to be in force."""
    return {name: one.condition for name, one in parameters(space).items() if one.condition}


def _distribution(item: Distribution) -> BaseDistribution:
    if isinstance(item, FloatRange):
        return FloatDistribution(item.low, item.high, log=item.log)
    if isinstance(item, IntRange):
        return IntDistribution(item.low, item.high)
    return CategoricalDistribution(choices_of(item) or ())


def trial_config(sweep: SweepConfig, params: Mapping[str, Any], baseline: str | None = None) -> TrialConfig:
    """Set a trial's parameters in the sweep's base; a baseline keeps its own method and takes the others.

    A baseline trains on all tokens of whole images, on no features, whatever the others do. Of a space with conditional
    parameters it takes nothing that belongs to variants of other methods. Where micro-batches follow from a limit of
    memory, this is the sweep's.

    Raises:
        ConfigError: two parameters, each fine, that contradict each other.
    """
    if baseline is None:
        return sweep.with_limit(apply_params(sweep.trial, sweep.settings(params)))
    own = _with_method(sweep.trial, BASELINES[baseline])
    settings = sweep.settings(_without_others(sweep.space, params, own.method.name))
    others = {path: value for path, value in settings.items() if path.split("/")[0] != "method"}
    return sweep.with_limit(with_whole_images(apply_params(own, others)))


def baseline_params(base: TrialConfig, space: Mapping[str, Distribution], baseline: str) -> dict[str, Any]:
    """Find the point of the space that is nearest to a baseline: there a sampler sees its results.

    The paper takes the learning rate for alpha; what a baseline says nothing of is the base trial's, and of images the
    largest size where that has none. In a space with
    conditional parameters the nearest variant is of the baseline's method, else of ALaST, else the first.
    """
    like = _LIKE_FULL if baseline == "full" else BASELINES[baseline]
    own = _with_method(base, like)
    values = {"method/alpha": own.train.learning_rate, "model/image_size": _WHOLE}
    values |= {path: value for path, value in (flatten(base) | flatten(own)).items() if value is not None}
    conditional = is_conditional(space)

    def value_of(one: Parameter) -> Any:
        if isinstance(one.distribution, Variants) and conditional:
            names = {_method_of(settings): name for name, settings in reversed(one.distribution.variants.items())}
            return names.get(BASELINES[baseline].name, names.get("alast", next(iter(one.distribution.variants))))
        return nearest(one.distribution, values.get(one.path))

    return point_of(space, value_of)


def full_config(sweep: SweepConfig) -> TrialConfig:
    """Give the full fine-tuning that a sweep runs as a baseline, and that all its trials are compared with."""
    return trial_config(sweep, baseline_params(sweep.trial, sweep.space, "full"), "full")


def is_point(sweep: SweepConfig, baseline: str) -> bool:
    """Whether a baseline is a point of the space itself, so that its accuracy is that point's."""
    params = baseline_params(sweep.trial, sweep.space, baseline)
    try:
        config, really = trial_config(sweep, params), trial_config(sweep, params, baseline)
    except ConfigError:
        return False
    if config.data.features == "auto":  # changes no accuracy, and is never refused
        config = config.model_copy(update={"data": really.data})
    if config.model_copy(update={"method": really.method}) != really:
        return False
    method, own = config.method, BASELINES[baseline]
    if baseline == "full" and isinstance(method, AlastConfig):
        blocks = next(  # at its most, as none but the model knows how many it has
            (
                one.distribution
                for one in parameters(sweep.space).values()
                if one.path == "method/trainable_blocks" and one.in_force(params)
            ),
            None,
        )
        everything = isinstance(blocks, IntRange) and method.trainable_blocks == blocks.high
        return everything and method.floors == _LIKE_FULL.floors and method.lora is None
    if isinstance(method, AlastConfig) and isinstance(own, AlastConfig):
        rate = config.train.learning_rate
        own = own.model_copy(update={"alpha": rate})
        method = method.model_copy(update={"alpha": rate if method.alpha is None else method.alpha})
    return method == own


def begins_with(sweep: SweepConfig) -> list[str]:
    """Name the baselines that a sweep runs first: full fine-tuning, and the paper's where ALaST alone is searched."""
    if sweep.sampler == "grid":
        return []
    choices = [item.variants.values() for item in sweep.space.values() if isinstance(item, Variants)]
    methods = {_method_of(settings) or sweep.trial.method.name for choice in choices for settings in choice}
    return ["full", "paper"] if (methods or {sweep.trial.method.name}) == {"alast"} else ["full"]


Point = tuple[Any, ...]
"""Parameters in a form that can be looked up: their names, which all that have the same ones share, and values."""


def point(params: Mapping[str, Any]) -> Point:
    """Put parameters into a form that can be looked up."""
    names = tuple(sorted(params))
    return _NAMES.setdefault(names, names), *(params[name] for name in names)


_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {}


def _with_method(base: TrialConfig, method: MethodConfig) -> TrialConfig:
    values = method.model_dump(exclude_unset=True) | {"name": method.name}
    return parse(TrialConfig, base.given_values() | {"method": values})


def _method_of(settings: Mapping[str, Any]) -> str | None:
    """Name the method that a variant sets, if it does."""
    method = settings.get("method")
    return method.get("name") if isinstance(method, Mapping) else None


def _without_others(space: Mapping[str, Distribution], params: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Leave variants of other methods out of a point, if the space has conditional parameters."""

    def is_other(name: str, value: Any) -> bool:
        item = space.get(name)
        return isinstance(item, Variants) and _method_of(item.variants[value]) not in {None, method}

    conditional = is_conditional(space)
    return {name: value for name, value in params.items() if not (conditional and is_other(name, value))}


def nearest(item: Distribution, value: Any) -> bool | int | float | str:
    """Find the value of a distribution that is nearest to another; the first of names, the lowest for nothing."""
    if not isinstance(item, FloatRange | IntRange):
        choices = choices_of(item) or ()
        numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
        if value in choices or not isinstance(value, int | float) or len(numbers) < len(choices):
            return value if value in choices else choices[0]
        return min(numbers, key=lambda number: abs(number - value))
    if not isinstance(value, int | float):
        return item.low
    return type(item.low)(min(max(value, item.low), item.high))
