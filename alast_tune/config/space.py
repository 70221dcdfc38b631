"""A sweep's space: what varies, what each parameter is called, and which of them are in force."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from alast_tune.config.record import Record
from alast_tune.config.trial import TrialConfig
from alast_tune.errors import ConfigError

_NAME = re.compile(r"(?!\.{1,2}\Z)[\w.\- :]{1,200}")
"""What MLflow takes as the name of a parameter, without its slashes."""


class FloatRange(Record):
    """A real parameter between two bounds, searched on a logarithmic scale if ``log``."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError(f"low = {self.low}, high = {self.high}: low must not exceed high, nor be <= 0 with log")
        return self


class IntRange(Record):
    """A whole parameter between two bounds, both possible."""

    type: Literal["int"] = "int"
    low: int
    high: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} exceeds high = {self.high}")
        return self


class Choice(Record):
    """One of several values."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)


Simple = FloatRange | IntRange | Choice
"""What a single setting is drawn from."""


def _kind(value: Any) -> str:
    """Tell a distribution from a fixed setting, which may be a mapping too."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if isinstance(kind, str) and kind in {"float", "int", "categorical"} else "setting"


Setting = Annotated[
    Annotated[FloatRange, Tag("float")]
    | Annotated[IntRange, Tag("int")]
    | Annotated[Choice, Tag("categorical")]
    | Annotated[JsonValue, Tag("setting")],
    Discriminator(_kind),
]
"""What a variant has a setting at: a value, or a distribution that is in force when the variant is chosen."""


class Variants(Record):
    """One of several named sets of settings; the name is what a sampler, MLflow and the front see.

    A setting may be a distribution of its own: a conditional parameter, which is called ``<variant>/<path>``.
    """

    type: Literal["variants"] = "variants"
    variants: dict[str, dict[str, Setting]] = Field(
        min_length=1,
        description="name -> path in the trial (method/alpha, or a whole record: method) -> value, or distribution",
    )

    def ranges(self, variant: str) -> dict[str, Simple]:
        """Give the distributions that a variant has of its own, by path in the trial."""
        return {path: value for path, value in self.variants[variant].items() if isinstance(value, Simple)}

    def settings(self, variant: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Give what a variant sets, by path in the trial; without the conditional parameters that ``params`` lack."""
        found: dict[str, Any] = {}
        for path, value in self.variants[variant].items():
            if not isinstance(value, Simple):
                found[path] = value
            elif (name := f"{variant}/{path}") in params:
                found[path] = params[name]
        return found


Distribution = Annotated[FloatRange | IntRange | Choice | Variants, Field(discriminator="type")]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a space; a conditional one is in force when its variant is chosen."""

    name: str
    """What Optuna, MLflow and the front call it."""
    path: str
    """What it sets in the trial; of variants the name."""
    distribution: FloatRange | IntRange | Choice | Variants
    condition: tuple[str, str] | None = None
    """Name of the variants, and which of them has the parameter."""

    def in_force(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameter has a meaning beside these choices."""
        return self.condition is None or params.get(self.condition[0]) == self.condition[1]

    @property
    def field(self) -> str:
        """Say where the parameter is in a sweep's configuration."""
        return ".".join(("space", *(self.condition or ()), self.path))


def parameters(space: Mapping[str, Distribution]) -> dict[str, Parameter]:
    """List all parameters of a space by name; those of variants follow the choice among the variants."""
    found = {}
    for path, item in space.items():
        found[path] = Parameter(path, path, item)
        if isinstance(item, Variants):
            for variant in item.variants:
                for own, distribution in item.ranges(variant).items():
                    name = f"{variant}/{own}"
                    found[name] = Parameter(name, own, distribution, (path, variant))
    return found


def is_conditional(space: Mapping[str, Distribution]) -> bool:
    """Whether any parameter is in force only with some variant."""
    return any(one.condition for one in parameters(space).values())


def in_force(space: Mapping[str, Distribution], params: Mapping[str, Any]) -> list[str]:
    """Name the parameters that have a meaning beside these choices."""
    return [name for name, one in parameters(space).items() if one.in_force(params)]


def point_of(space: Mapping[str, Distribution], value_of: Callable[[Parameter], Any]) -> dict[str, Any]:
    """Build a point of a space, parameter by parameter: the values of those that are in force."""
    point: dict[str, Any] = {}
    for name, one in parameters(space).items():
        if one.in_force(point):
            point[name] = value_of(one)
    return point


def setting_of(name: str) -> str:
    """Turn a parameter's name into the path that it sets: ``lora/train/learning_rate`` -> ``train/learning_rate``."""
    first, slash, rest = name.partition("/")
    return rest if slash and first not in TrialConfig.model_fields else name


def settings_of(space: Mapping[str, Distribution], params: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a point of a space into paths in the trial and what they are set to.

    Of two parameters that set the same path, the later one of the space does.
    """
    found: dict[str, Any] = {}
    for path, item in space.items():
        if path in params:
            value = params[path]
            found |= item.settings(value, params) if isinstance(item, Variants) else {path: value}
    return found


def choices_of(distribution: Distribution) -> Sequence[bool | int | float | str] | None:
    """List what a distribution has to choose from, variants by their names; None for a real parameter."""
    if isinstance(distribution, Choice):
        return distribution.choices
    if isinstance(distribution, Variants):
        return tuple(distribution.variants)
    return range(distribution.low, distribution.high + 1) if isinstance(distribution, IntRange) else None


def ends_of(distribution: Distribution) -> Sequence[bool | int | float | str]:
    """List the ends of a range, or all that there is to choose from."""
    if isinstance(distribution, FloatRange | IntRange):
        return distribution.low, distribution.high
    return choices_of(distribution) or ()


def combinations(space: Mapping[str, Distribution]) -> Iterator[dict[str, Any]]:
    """Yield every point of a space without real parameters, the last parameter varying fastest."""
    for parts in itertools.product(*(list(_ways(path, item)) for path, item in space.items())):
        yield {name: value for part in parts for name, value in part.items()}


def _ways(path: str, item: Distribution) -> Iterator[dict[str, Any]]:
    """Yield each value of a parameter, a variant with each combination of its own."""
    for value in choices_of(item) or ():
        own = item.ranges(str(value)) if isinstance(item, Variants) else {}
        for values in itertools.product(*(choices_of(one) or () for one in own.values())):
            yield {path: value} | dict(zip((f"{value}/{one}" for one in own), values, strict=True))


def size_of(space: Mapping[str, Distribution]) -> float:
    """Count a space's points; infinite with a real parameter."""

    def count(item: Distribution) -> float:
        if isinstance(item, Variants):
            return sum(size_of(item.ranges(variant)) for variant in item.variants)
        choices = choices_of(item)
        return math.inf if choices is None else len(choices)

    return math.prod(map(count, space.values()))


def check_names(space: Mapping[str, Distribution]) -> None:
    """Refuse variants whose parameters MLflow cannot name, have the names of others, or stand where none can.

    Raises:
        ConfigError: names the variants and the remedy.
    """
    owners: dict[str, str] = {}
    for place, (path, item) in enumerate(space.items(), start=1):
        if not isinstance(item, Variants):
            continue
        if not _NAME.fullmatch(path):
            remedy = "MLflow takes no such name; give variants one of letters, digits, spaces and . - _ :, no path"
            raise ConfigError(f"space.{path}", "variants", remedy)
        for variant, settings in item.variants.items():
            field = f"space.{path}.{variant}"
            _check_settings(field, settings, list(space)[place:])
            if not item.ranges(variant):
                continue
            if not _NAME.fullmatch(variant):
                remedy = "names its parameters in MLflow; give it a name of letters, digits, spaces and . - _ :"
                raise ConfigError(field, variant, remedy)
            if variant in TrialConfig.model_fields:
                raise ConfigError(field, variant, "is a part of every trial, with such paths; give it another name")
            if variant in owners:
                remedy = f"has parameters of the same names as space.{owners[variant]}.{variant}; rename one of the two"
                raise ConfigError(field, variant, remedy)
            owners[variant] = path


def check_point(space: Mapping[str, Distribution], given: Mapping[str, Any], field: str) -> None:
    """Refuse values that no point of a space has together.

    Args:
        space: whose parameters are named.
        given: parameter -> value; others are left open.
        field: where that was given.

    Raises:
        ConfigError: names the parameter, its value and the remedy.
    """
    known = parameters(space)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{field}.{name}", value, f"the space has no such parameter; it has {', '.join(known)}")
        one = known[name]
        if not one.in_force(given):
            remedy = "of {}: {} alone; give that too, or leave this out".format(*one.condition or ())
            raise ConfigError(f"{field}.{name}", value, f"is a parameter {remedy}")
        if isinstance(one.distribution, FloatRange):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            there = number and one.distribution.low <= value <= one.distribution.high
        else:
            there = value in (choices_of(one.distribution) or ())
        if not there:
            raise ConfigError(f"{field}.{name}", value, f"lies outside of {one.field}; give one of its values")


def _check_settings(field: str, settings: Mapping[str, Any], later: Sequence[str]) -> None:
    """Refuse distributions that are variants, stand inside a record, or are overruled by a later parameter."""
    for path, value in settings.items():
        inside = value if isinstance(value, dict) else {}
        if inside.get("type") == "variants":
            remedy = "a variant has no variants; list each combination as a variant of its own"
            raise ConfigError(f"{field}.{path}", "variants", remedy)
        for key in (key for key, inner in inside.items() if _kind(inner) != "setting"):
            remedy = f"stands inside a record; write it beside the record, as {path}/{key}: {{...}}"
            raise ConfigError(f"{field}.{path}.{key}", "a distribution", remedy)
        if isinstance(value, Simple) and path in later:
            remedy = f"is set again by space.{path}, which comes later; put that first, or leave one of them out"
            raise ConfigError(f"{field}.{path}", value.type, remedy)
