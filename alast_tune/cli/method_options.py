"""Options for the settings of every method that is known when a command runs, registered ones among them."""

from __future__ import annotations

from typing import Any, Union

from pydantic import BaseModel

from alast_tune.config import known_methods


def offer_methods(kind: type[BaseModel]) -> None:
    """Let the command line of a trial's settings have all methods' options (``--method.rank``).

    A trial's ``method`` is of a class that has no settings: validation looks for the one that is named, whereas
    pydantic-settings reads options from the field's type.
    """
    field, methods = kind.model_fields["method"], known_methods()
    annotation: Any = Union[tuple(methods.values())]  # noqa: UP007  # known only now
    field.annotation = annotation
    field.discriminator = "name"
    field.default_factory = methods["alast"]  # as before; from a class its defaults are read
