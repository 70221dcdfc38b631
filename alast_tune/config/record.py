"""Frozen records, and what refuses values for them in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from alast_tune.errors import ConfigError, explain
from alast_tune.storage import shown

T = TypeVar("T", bound=BaseModel)


class Record(BaseModel):
    """A frozen record; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def plain(value: Any) -> Any:
    """Give what was set in a record, by hand, as a mapping; anything else as it is."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Turn a configuration into paths and plain values: ``method/floors/early`` -> 0.1; names of files are text."""
    flat: dict[str, Any] = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, Record):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, dict):
            flat |= {f"{prefix}{name}/{key}": item for key, item in value.items()}
        else:
            flat[f"{prefix}{name}"] = shown(value) if isinstance(value, Path) else value
    return flat


def parse(kind: type[T], values: Any) -> T:
    """Validate plain values into a record; a refusal comes as one :class:`ConfigError` line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        field, _, rest = explain(error).partition(" = ")
        value, _, remedy = rest.partition(": ")
        raise ConfigError(field, value, remedy) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            "config", path, f"cannot be read ({error.strerror}); give an existing YAML or JSON file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config", path, f"is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("config", path, "holds no mapping; write it as 'key: value' lines")
    return values
