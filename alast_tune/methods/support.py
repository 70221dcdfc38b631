"""Which of timm's models can be fine-tuned here, by which methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import timm

from alast_tune.config import MethodConfig, known_methods
from alast_tune.errors import ConfigError
from alast_tune.models import TIMM_MODULES, Backbone, skeleton


@dataclass(frozen=True)
class Support:
    """What can be done with an architecture."""

    name: str
    refused: str
    """Why nothing can; empty where something can."""
    why_not: dict[str, str]
    """By method why it cannot; empty for those that can."""

    @property
    def methods(self) -> list[str]:
        """Those that can."""
        return [] if self.refused else [method for method, why in self.why_not.items() if not why]

    def __str__(self) -> str:
        """In a line."""
        if self.refused:
            return f"{self.name}: no method: {self.refused}"
        reasons: dict[str, list[str]] = {}
        for method, why in self.why_not.items():
            reasons.setdefault(why, []).append(method)
        without = "; ".join(f"but {', '.join(methods)}: {why}" for why, methods in reasons.items() if why)
        return f"{self.name}: all methods{' ' if without else ''}{without}"


def all_support(pattern: str = "*") -> Iterator[Support]:
    """Ask every known method about timm's Vision Transformers of a pattern of names, without weights or memory."""
    methods = {name: settings.model_construct(name=name) for name, settings in known_methods().items()}
    for name in (name for module in TIMM_MODULES for name in timm.list_models(pattern, module=module)):
        try:
            model = skeleton(name)
        except ConfigError as error:
            yield Support(name, str(error).partition(f"{name}: ")[2], {})
            continue
        yield Support(name, "", {method: _why_not(settings, model) for method, settings in methods.items()})


def _why_not(settings: MethodConfig, model: Backbone) -> str:
    """Ask a method about a model; it may be anybody's code, and may need settings that have no default."""
    try:
        return settings.why_not(model)
    except Exception as error:
        return f"cannot say whether it can ({type(error).__name__}: {error})"
