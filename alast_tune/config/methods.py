"""What a fine-tuning method says of itself, and how it is found by its name.

A method is one file: its settings, a :class:`MethodConfig` that says what may train, how the training forward goes and
what people call it. It is found by an entry point of group ``alast_tune.methods``, or is registered in this process.
The file is imported when its name is first met, so that this module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from alast_tune.config.record import Record
from alast_tune.errors import ConfigError
from alast_tune.plugins import entries_of, registered_here
from alast_tune.text import short_number

if TYPE_CHECKING:
    from torch import nn

    from alast_tune.config.train import TrainConfig
    from alast_tune.methods.base import FirstLook, Flow, Foreseen, Method, StepPlan
    from alast_tune.models.backbone import Backbone

GROUP = "alast_tune.methods"

# Entry points that need no metadata: in a checkout that nobody has installed there are none.
_OURS = tuple(
    EntryPoint(name, f"{GROUP}.{place}", GROUP)
    for name, place in {
        "alast": "alast:AlastConfig",
        "full": "freezing:FullConfig",
        "head": "freezing:HeadConfig",
        "top_k": "freezing:TopKConfig",
        "bsr": "bsr:BsrConfig",
        "tome": "tome:TomeConfig",
        "lora": "lora:LoraConfig",
        "apla": "apla:AplaConfig",
        "reader": "reader:ReaderConfig",
    }.items()
)


class MethodConfig(Record):
    """A fine-tuning method's settings, recognised by ``name``, and all that the program asks the method for.

    A subclass has its name as ``name: Literal["mine"] = "mine"``, its options as further fields, and
    :meth:`trainable_parameters`; the rest has defaults. Values of fields can be hashed: tuples, no lists.
    """

    name: str
    from_block: int = Field(
        0,
        ge=0,
        description="train nothing below this block, counted from 0: what lies below, the embedding too, runs without "
        "a graph; as many as there are: no block trains",
    )

    label: ClassVar[str | None] = None
    """What people call it (``ALaST``, ``full fine-tuning``); unset: its name."""
    foremost: ClassVar[str | None] = None
    """The setting that tells most of the method: a front's table shows it."""

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """List what may ever train, on a model that the method has prepared, whatever ``from_block`` says."""
        raise NotImplementedError

    def why_not(self, model: Backbone) -> str:
        """Say why the method cannot work on a model, in words that follow "the model"; nothing if it can."""
        return ""

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model for training; by default the same at every step, in the model's own forward (``Constant``)."""
        from alast_tune.methods.base import Constant

        return Constant(self, model)

    def flow(self, model: Backbone) -> Flow:
        """Give the training forward on a model that the method has prepared; by default the model's own."""
        from alast_tune.methods.base import Flow

        return Flow(self, model)

    def splits_blocks(self) -> bool:
        """Say whether the forward goes between a block's attention and its MLP, which are then compiled one by one."""
        return False

    def full_label(self) -> str:
        """Name the method as people do."""
        return self.label or self.name

    def words(self) -> Iterator[tuple[str, str]]:
        """Say the settings that matter most in short words, for names of runs: ``("rank", "r8")``.

        A setting whose words are empty goes without saying. By default the foremost one is said.
        """
        if self.foremost is not None and (value := getattr(self, self.foremost)) is not None:
            yield self.foremost, f"{self.foremost} {short_number(value)}"

    def default_learning_rate(self) -> float | None:
        """Give the learning rate where none is set; None: that of all methods."""
        return None

    def trains_backbone(self) -> bool:
        """Say whether the blocks' own weights train: the modern recipe then lowers the rate from block to block."""
        return False

    def learns(self) -> bool:
        """Say whether what a step costs changes while training, in ways that nobody foresees."""
        return False

    def cost_settings(self) -> MethodConfig:
        """Give settings of the same costs in place of these, for plans alike; fewer of them means fewer measurements.

        They prepare a model as these do, and let the same train and tokens flow in the same way.
        """
        return self

    def foresee(self, look: FirstLook, plan: StepPlan, train: TrainConfig, batch: int, growth: float) -> Foreseen:
        """Say which plans the steps of an epoch will have, before any is run; by default that of the first step.

        Args:
            look: at the model, untouched, and a few images.
            plan: of the method, once it has prepared the model and begun a step on as many tokens as the epoch's.
            train: the training loop.
            batch: images in a step.
            growth: by how much what the method learns from grows in training, in multiples of what it is at first.
        """
        from alast_tune.methods.base import Foreseen

        return Foreseen((plan,), frozenset({plan}))

    @model_validator(mode="after")
    def _check_hashes(self) -> Self:
        for name in type(self).model_fields:
            try:
                hash(value := getattr(self, name))
            except TypeError:
                remedy = f"cannot be hashed, which the meter needs; have {type(self).__name__}.{name} a tuple, no list"
                raise ConfigError(f"method.{name}", value, remedy) from None
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _find(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Take plain values as the settings of the method that they name."""
        if cls is not MethodConfig or not isinstance(values, Mapping):
            return handler(values)
        name = values.get("name")
        if name is None:
            _refuse("not given", f"name a method: {', '.join(method_names())}")
        if name not in method_names():
            near = get_close_matches(str(name), method_names(), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            own = f"your own takes alast_tune.register_method, or an entry point of group {GROUP}"
            _refuse(name, f"no such method; {hint}known are {', '.join(method_names())}; {own}")
        return find_method(str(name)).model_validate(values)  # type: ignore[return-value]  # cls is the base


def _refuse(name: object, remedy: str) -> NoReturn:
    """Refuse a method's name, where it stands in the whole configuration."""
    error = PydanticCustomError("method", "{remedy}", {"remedy": remedy})
    raise ValidationError.from_exception_data("method", [InitErrorDetails(type=error, loc=("name",), input=name)])


M = TypeVar("M", bound=type[MethodConfig])


def register_method(settings: M) -> M:
    """Make a method known by its settings' ``name``, in this process and in the trials that it starts.

    Also a decorator of the class. The same class may be registered again, as a notebook does.

    Raises:
        ConfigError: no settings of a method, or a name that another method has.
    """
    name = _name_of(settings, "register_method")
    others = _places(name) - {_place(settings)}
    if others:
        raise ConfigError("register_method", name, f"is the name of {' and '.join(sorted(others))}; choose another")
    registered_here(GROUP)[name] = settings
    return settings


def method_names() -> list[str]:
    """Name all methods: ours, those of packages that are installed, those that are registered here."""
    entries = (*_OURS, *entries_of(GROUP))
    return list(dict.fromkeys([*(entry.name for entry in entries), *registered_here(GROUP)]))


def find_method(name: str) -> type[MethodConfig]:
    """Get the settings' class of one of :func:`method_names`.

    Raises:
        ConfigError: two methods of this name, or one that cannot be imported, or is none.
    """
    if len(places := _places(name)) > 1:
        remedy = f"is the name of two methods, {' and '.join(sorted(places))}; rename or uninstall one"
        raise ConfigError("method.name", name, remedy)
    if name in registered_here(GROUP):
        here: type[MethodConfig] = registered_here(GROUP)[name]
        return here
    entry = next(entry for entry in (*_OURS, *entries_of(GROUP)) if entry.name == name)
    try:
        settings = entry.load()
    except Exception as error:  # anybody's code
        remedy = f"cannot be imported from {entry.value} ({type(error).__name__}: {error})"
        raise ConfigError("method.name", name, remedy) from error
    if _name_of(settings, f"entry point {entry.value}") != name:
        raise ConfigError(
            "method.name", name, f"is called {_name_of(settings, name)} in {entry.value}; make them agree"
        )
    found: type[MethodConfig] = settings
    return found


def known_methods() -> dict[str, type[MethodConfig]]:
    """Import every method that can be imported, by name."""
    found = {}
    for name in method_names():
        try:
            found[name] = find_method(name)
        except ConfigError:  # said to whoever asks for that one
            continue
    return found


def _places(name: str) -> set[str]:
    """Say where methods of a name are: ``package.module:Class``."""
    found = {entry.value for entry in (*_OURS, *entries_of(GROUP)) if entry.name == name}
    here = registered_here(GROUP)
    return found | ({_place(here[name])} if name in here else set())


def _place(settings: type[MethodConfig]) -> str:
    return f"{settings.__module__}:{settings.__qualname__}"


def _name_of(settings: Any, field: str) -> str:
    """Get the name of a method from its settings' class.

    Raises:
        ConfigError: this is no such class, or it lacks what it needs.
    """
    if not (isinstance(settings, type) and issubclass(settings, MethodConfig)):
        raise ConfigError(field, settings, "is no class of alast_tune.MethodConfig")
    name = settings.model_fields["name"].default
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w-]*", name):
        remedy = 'has no name; write name: Literal["mine"] = "mine", letters, digits, _ and -'
        raise ConfigError(field, settings.__name__, remedy)
    if settings.foremost not in {None, *settings.model_fields}:
        raise ConfigError(field, settings.__name__, f"has no field {settings.foremost}, which is its foremost; add it")
    plain = MethodConfig
    if (settings.trainable_parameters, settings.build) == (plain.trainable_parameters, plain.build):
        raise ConfigError(field, settings.__name__, "does not say what trains; give it trainable_parameters(model)")
    return name
