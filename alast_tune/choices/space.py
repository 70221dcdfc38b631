"""``space: auto``: all methods that a model allows, each with its own ranges, by what docs/results.md shows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from alast_tune.config import (
    Choice,
    Distribution,
    FloatRange,
    IntRange,
    MethodConfig,
    SweepConfig,
    TrialConfig,
    Variants,
    find_method,
    known_methods,
    parse,
)
from alast_tune.data import load_splits
from alast_tune.data.decoded import worth_keeping
from alast_tune.errors import ConfigError
from alast_tune.models import input_spec, outline
from alast_tune.models.backbone import Backbone

ADAPTERS, WEIGHTS = ("lora", "alast-lora", "tome-lora"), ("full", "alast", "tome", "top_k", "bsr")

RATES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(WEIGHTS, (1e-5, 4e-4)),
    **dict.fromkeys(ADAPTERS, (2e-4, 4e-3)),
    "apla": (1e-4, 2e-3),
    "reader": (5e-4, 2e-2),
    "head": (3e-3, 1e-1),
}
"""Learning rates that are searched, by variant, of pretrained models."""
EMBEDDED_RATES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(WEIGHTS, (5e-4, 5e-3)),
    **dict.fromkeys(ADAPTERS, (1e-3, 2e-2)),
    "apla": (2e-3, 2e-2),
    "reader": (1e-3, 3e-2),
    "head": (1e-2, 3e-1),
}
"""Those of the embedded model, which is narrow and knows little: each is best at some ten times as much."""
RATE, EMBEDDED_RATE = 5e-5, 1e-3
"""Learning rates of the baselines."""
LAYERED = 3.0
"""Factor of the learning rates of methods that train the blocks' own weights with layer decay: lower blocks get less.

On 400 digits, 4 epochs of `full`, the embedded model, one seed: accuracy 0.905 by the paper's recipe at 1e-3 (0.643 at
3e-3), by the modern one 0.894 at 1e-3, 0.933 at 3e-3, 0.916 at 1e-2.
"""
AROUND = 10.0
"""A method of which nothing else is known is searched from its own learning rate divided by this to that times this."""

ON_REQUEST = ("top_k", "bsr")
"""Methods that are searched if they are named: exploring costs them more than ``full`` from a block on takes."""

FIRST: tuple[tuple[str, dict[str, float | str]], ...] = (
    ("apla", {"method/from_block": 0.0, "train/token_keep": 0.7}),
    ("reader", {"method/read": "linear", "train/weight_decay": 0.1}),
    ("full", {"method/from_block": 1.0, "train/token_keep": 1.0}),
    ("apla", {"method/from_block": 0.7, "train/token_keep": 1.0}),
)
"""What is tried first, by variant: the rows of docs/results.md that come near to full fine-tuning for least.

``from_block`` as a share of the highest that is searched; each at the middle of its learning rates.
"""

BLOCKS_LEFT = 3
"""Blocks that always train, of the depth: with ``from_block`` as high as it is searched."""
FEW_PATCHES = 30
"""With fewer patch tokens none is left out at random, and none is merged in every block;"""
DEEP = 6
"""nor with fewer blocks."""
SMALLER = 0.75
"""Of the side of the images: the smaller size that is tried, in whole patches."""
LEAST_SIDE = 5
"""Patches of an image's side: with fewer no smaller images are tried."""


def auto_space(
    model: Backbone,
    name: str,
    methods: Sequence[str] = (),
    fixed: Collection[str] = (),
    layered: bool = False,
) -> dict[str, Distribution]:
    """List what a sweep varies where nobody says: a variant for each method that the model allows, and the image size.

    Args:
        model: looked at for its shapes alone.
        name: of the model, whose learning rates are searched.
        methods: names of methods or variants, which are then the only ones; none: all but :data:`ON_REQUEST`.
        fixed: paths in the trial that stay as they are.
        layered: whether blocks train with layer decay.

    Raises:
        ConfigError: a method that nobody knows, or that the model does not allow.
    """
    every = _variants(model, name, layered)
    allowed = {variant: found for variant, settings in every.items() if (found := _allowed(settings, model))}
    chosen = [variant for variant in allowed if _method(variant) not in ON_REQUEST]
    if methods:
        chosen = [variant for variant in allowed if {variant, _method(variant)} & set(methods)]
        for wanted in methods:
            if not any(wanted in {variant, _method(variant)} for variant in chosen):
                raise _refused(wanted, every, model)
    variants = {
        variant: {path: value for path, value in allowed[variant].items() if path not in fixed} for variant in chosen
    }
    return _image_sizes(model, fixed) | {"method": Variants(variants=variants)}


def first_points(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    """List the points of :func:`auto_space` that a sweep begins with: :data:`FIRST`, on images of the largest size."""
    methods = space["method"]
    assert isinstance(methods, Variants)
    found = []
    for variant, wanted in FIRST:
        if variant not in methods.variants:
            continue
        point: dict[str, Any] = {path: item.choices[-1] for path, item in space.items() if isinstance(item, Choice)}
        point["method"] = variant
        for path, item in methods.ranges(variant).items():
            value = wanted.get(path)
            if isinstance(item, IntRange) and isinstance(value, float):
                value = round(value * item.high)
            if isinstance(item, FloatRange) and item.log:
                value = float(f"{math.sqrt(item.low * item.high):.1e}")
            if value is not None:
                point[f"{variant}/{path}"] = value
        if point not in found:
            found.append(point)
    return found


def space_of_method(model: Backbone, name: str, method: MethodConfig, layered: bool = False) -> dict[str, Distribution]:
    """List what varies in a sweep of one method, which was given: what it was not given itself.

    Args:
        model: looked at for its shapes alone.
        name: of the model, whose learning rates are searched.
        method: with the settings that stay.
        layered: whether blocks train with layer decay.
    """
    adapters = getattr(method, "lora", None) is not None
    variant = f"{method.name}-lora" if adapters and method.name != "lora" else method.name
    given = {f"method/{path}" for path in method.model_fields_set}
    if "method/blocks" in given:
        given |= {"method/from_block", "method/count"}  # which could leave none of them, and changes nothing
    found = _variants(model, name, layered).get(variant) or _own(method)
    return {
        path: value
        for path, value in found.items()
        if isinstance(value, FloatRange | IntRange | Choice)
        and path not in given
        and (method.name != "tome" or path == "train/learning_rate")  # which says itself how many tokens merge
    }


def with_auto_space(sweep: SweepConfig, methods: Sequence[str] = ()) -> SweepConfig:
    """Replace ``space: auto`` by :func:`auto_space`, or by :func:`space_of_method` if the trial has a method.

    A space that lists its parameters stays as it is. What the trial was given stays. Otherwise the learning rate is the
    baselines', and features are cached wherever that is possible.

    Args:
        sweep: whose data can be read here.
        methods: as of :func:`auto_space`.

    Raises:
        ConfigError: methods beside a space or a method that was given; or what ``auto_space`` refuses.
    """
    if sweep.space:
        if methods:
            raise ConfigError("methods", ",".join(methods), "the space says which; leave out the one or the other")
        return sweep
    trial, values = sweep.trial, sweep.given_values()
    one = trial.method != TrialConfig().method
    if one and methods:
        raise ConfigError("methods", ",".join(methods), "trial.method says which; leave out one of the two")
    sketch = outline(trial.model.model_copy(update={"num_classes": 2}))
    data, train = (values["trial"].setdefault(group, {}) for group in ("data", "train"))
    if "features" not in data:
        splits = load_splits(trial.data.model_copy(update={"cache": "none"}), input_spec(sketch), verify=False)
        data["features"] = features_of(trial, sketch, len(splits.train) + len(splits.validation))
    layered = has_layer_decay(trial)
    train.setdefault("learning_rate", rate_of(trial.model.name, layered))
    if one:
        values["space"] = space_of_method(sketch, trial.model.name, trial.method, layered)
    else:
        values["trial"]["method"] = {"name": "full"}
        values["space"] = auto_space(sketch, trial.model.name, methods, given_paths(trial), layered)
        if sweep.begin_with is None:
            values["begin_with"] = first_points(values["space"])
    return parse(SweepConfig, values)


def check_methods(begun: SweepConfig, methods: Sequence[str]) -> None:
    """Refuse methods that are not those that a sweep began with.

    Args:
        begun: with its space made out.
        methods: as of :func:`auto_space`, at least one.

    Raises:
        ConfigError: others.
    """
    found = begun.space.get("method")
    names = [{variant, _method(variant)} for variant in found.variants] if isinstance(found, Variants) else []
    known = all(any(method in own for own in names) for method in methods)
    if not known or any(own.isdisjoint(methods) for own in names):
        searched = ", ".join(found.variants) if isinstance(found, Variants) else "what its space says"
        remedy = f"{begun.name} was started with {searched}; leave it out, or choose another --name"
        raise ConfigError("methods", ",".join(methods), remedy)


def with_space_of(sweep: SweepConfig, begun: SweepConfig) -> SweepConfig:
    """Give a sweep whose space is auto what that was when the sweep began."""
    if sweep.space:
        return sweep
    values, stored = sweep.given_values(), begun.given_values()
    for group, name in (("data", "features"), ("train", "learning_rate")):
        if name in (found := stored["trial"].get(group, {})):
            values["trial"].setdefault(group, {}).setdefault(name, found[name])
    values["trial"]["method"] = stored["trial"]["method"]
    return parse(SweepConfig, values | {name: stored[name] for name in ("space", "begin_with")})


def rate_of(name: str, layered: bool = False) -> float:
    """Choose the learning rate of the baselines, so of full fine-tuning; ``layered``: with layer decay."""
    return round((EMBEDDED_RATE if name == "embedded" else RATE) * (LAYERED if layered else 1), 8)


def has_layer_decay(trial: TrialConfig) -> bool:
    """Whether full fine-tuning has lower rates for lower blocks, in a trial of the same recipe."""
    return parse(TrialConfig, trial.given_values() | {"method": {"name": "full"}}).train.layer_decay < 1


def given_paths(trial: TrialConfig) -> set[str]:
    """Name what a trial was given that a space must not vary; its learning rate is the baselines'."""
    groups = {group: getattr(trial, group).model_fields_set for group in ("data", "model", "train")}
    return {f"{group}/{name}" for group, names in groups.items() for name in names} - {"train/learning_rate"}


def features_of(trial: TrialConfig, model: Backbone, images: int) -> str:
    """Choose ``data.features``: auto, unless a setting is against it or the file would be too large for this machine.

    Args:
        trial: what all trials have in common.
        model: looked at for its shapes alone.
        images: that are trained on and validated.
    """
    tokens = math.prod(model.patch_embed.grid_size) + int(model.num_prefix_tokens)
    fits = worth_keeping(4 * images * tokens * int(model.embed_dim))
    return "auto" if fits and not trial.data.is_augmented and not trial.why_no_features() else "none"


def space_words(space: Mapping[str, Distribution]) -> tuple[str, str]:
    """Say in a few words what a space has, and what is to be said of it."""
    methods = space.get("method")
    if not isinstance(methods, Variants):
        return ", ".join(path.rpartition("/")[2] for path in space), "of the method that was given"
    names = list(methods.variants)
    few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} method{'s' * (len(names) > 1)} ({few})", "each with its own settings"


def _variants(model: Backbone, name: str, layered: bool) -> dict[str, dict[str, Any]]:
    """List the settings of each variant, by path in the trial, whether or not the model allows them."""
    depth, patches = len(model.blocks), math.prod(model.patch_embed.grid_size)
    start = _whole("method/from_block", 0, depth - BLOCKS_LEFT)
    keep = {"train/token_keep": FloatRange(low=0.4, high=1.0)} if patches >= FEW_PATCHES else {}
    later = depth // 3
    adaptive = {"name": "alast", "reading": "fast", "delta_reduction": "relative", "alpha": 0.3}
    adaptive |= {"drop_tokens": "before_mlp"} | ({"keep_multiple": 1} if patches <= 64 else {})
    budget = {"method/target_budget": FloatRange(low=0.3, high=1.0)}
    first, last = min(1, max(0, depth - 2)), min(depth // 2, depth - 2)  # a block comes after each of these
    merging = {"name": "tome", "merge_once_in": first}
    once = {"method": merging} | _whole("method/merge_once_in", first, last)
    merged = {"method": {"name": "tome", "target_flops": 0.6}, "method/target_flops": FloatRange(low=0.5, high=0.8)}
    found: dict[str, dict[str, Any]] = {
        "full": {"method": {"name": "full"}} | start | keep,
        "lora": {"method": {"name": "lora"}, "method/rank": Choice(choices=(4, 8, 16))} | start | keep,
        "apla": {"method": {"name": "apla"}} | start | keep,
        "alast": {"method": adaptive | {"trainable_blocks": depth}}
        | _whole("method/trainable_blocks", max(1, depth // 4), depth)
        | budget
        | {"method/frozen_backward": Choice(choices=("exact", "residual"))},
        "alast-lora": {"method": adaptive | {"lora": {}, "from_block": later, "trainable_blocks": depth - later}}
        | _whole("method/trainable_blocks", max(1, (depth - later) // 2), depth - later)
        | budget,
        "tome": merged if patches >= FEW_PATCHES and depth >= DEEP else once,
        "tome-lora": once | {"method": merging | {"lora": {}}},
        "reader": {
            "method": {"name": "reader"},
            "method/read": Choice(choices=("linear", "attentive")),
            "train/optimizer": "adamw",
            "train/weight_decay": Choice(choices=(0.0, 0.1, 0.3)),  # many features of few images
        },
        "head": {"method": {"name": "head"}},
        "top_k": {"method": {"name": "top_k"}} | _whole("method/count", 1, max(1, depth // 2)),
        "bsr": {"method": {"name": "bsr"}} | _whole("method/count", 1, max(1, depth // 2)),
    }
    if depth < 2:
        del found["tome"], found["tome-lora"]
    rates = EMBEDDED_RATES if name == "embedded" else RATES
    for variant, settings in found.items():
        times = LAYERED if layered and variant in WEIGHTS else 1
        low, high = (round(times * rate, 8) for rate in rates[variant])
        settings["train/learning_rate"] = FloatRange(low=low, high=high, log=True)
    own = {method: _own(settings) for method, settings in _others(found)}
    return found | own


def _others(ours: Collection[str]) -> Iterator[tuple[str, MethodConfig]]:
    """Yield anybody's own methods that need no settings."""
    for name, kind in known_methods().items():
        if name not in ours:
            try:
                yield name, kind.model_validate({"name": name})
            except ValueError:
                continue


def _own(method: MethodConfig) -> dict[str, Any]:
    """Vary the learning rate of a method of which nothing else is known."""
    rate, (low, high) = method.default_learning_rate(), RATES["full"]
    if rate is not None:
        low, high = rate / AROUND, rate * AROUND
    return {"method": {"name": method.name}, "train/learning_rate": FloatRange(low=low, high=high, log=True)}


def _whole(path: str, low: int, high: int) -> dict[str, IntRange]:
    """Vary a whole number, if there is anything to choose."""
    return {path: IntRange(low=low, high=high)} if high > low else {}


def _method(variant: str) -> str:
    """Name a variant's method."""
    return variant.removesuffix("-lora")


def _allowed(settings: dict[str, Any], model: Backbone) -> dict[str, Any]:
    """Give a variant's settings as the model allows them; empty if it does not."""
    whole = settings["method"]
    if not _why_not(whole, model):
        return settings
    if "drop_tokens" in whole and not _why_not(plain := whole | {"drop_tokens": "after_block"}, model):
        return settings | {"method": plain}
    return {}


def _why_not(settings: dict[str, Any], model: Backbone) -> str:
    return find_method(settings["name"]).model_validate(settings).why_not(model)


def _refused(wanted: str, every: Mapping[str, dict[str, Any]], model: Backbone) -> ConfigError:
    """Say why a method is not searched."""
    for variant, settings in every.items():
        if wanted in {variant, _method(variant)}:
            return ConfigError("methods", wanted, f"the model {_why_not(settings['method'], model)}; leave it out")
    return ConfigError("methods", wanted, f"no such method; known are {', '.join(every)}")


def _image_sizes(model: Backbone, fixed: Collection[str]) -> dict[str, Distribution]:
    """Vary the size of the images, if it was not given and there is room for smaller ones."""
    patch, side = int(model.patch_embed.patch_size[0]), input_spec(model).image_size
    count = side // patch
    if {"model/image_size", "train/image_size_first"} & set(fixed) or count < LEAST_SIDE:
        return {}
    return {"model/image_size": Choice(choices=(math.ceil(SMALLER * count) * patch, side))}
