"""Frozen records, and what refuses values for them in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from alast_tune.errors import ConfigError, explain
from alast_tune.storage import display_path, expand_path

T = TypeVar("T", bound=BaseModel)

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
SweepName = Annotated[str, Field(pattern=f"^{_NAME}$")]
"""A sweep's name is its folder's."""
FrontName = Annotated[str, Field(pattern=f"^{_NAME}( \\+ {_NAME})*$")]
"""The sweep of a front, or all the sweeps of a joint one."""
TrialId = Annotated[str, Field(pattern=f"^({_NAME}/)?[0-9]{{4,9}}$")]
"""Names a trial's folders, and must lead nowhere else; of a joint front, ``<sweep>/<trial>``."""
RunId = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""Of MLflow; goes into its queries."""


class Record(BaseModel):
    """A frozen record; an unknown key is an error, and every path is written out (``~``, ``$NAME``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return expand_path(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """Reads YAML's safe part; numbers as YAML 1.2 and JSON have them, PyYAML taking 1e-4 for text."""


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: text that looks like such a number, a fingerprint say, in quotes."""


for _kind in (_Loader, _Dumper):
    _number = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _number, list("-+.0123456789"))


def as_plain_values(value: Any) -> Any:
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
            flat[f"{prefix}{name}"] = display_path(value) if isinstance(value, Path) else value
    return flat


def parse(kind: type[T], values: Any) -> T:
    """Validate plain values into a record; a refusal comes as one :class:`ConfigError` line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise as_config_error(error) from None


def as_config_error(error: ValidationError) -> ConfigError:
    """Make one line of what pydantic refuses."""
    field, _, rest = explain(error).partition(" = ")
    value, _, remedy = rest.partition(": ")
    return ConfigError(field, value, remedy)


def given_file(field: str, path: str) -> Path:
    """Write out the path of a file that the command line names before any record is read.

    Raises:
        ConfigError: it cannot be written out.
    """
    try:
        return expand_path(path, here=True)
    except ValueError as error:
        raise ConfigError(field, path, str(error)) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ConfigError(
            "config", path, f"cannot be read ({error.strerror}); give an existing YAML or JSON file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config", path, f"is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("config", path, "holds no mapping; write it as 'key: value' lines")
    return values


def write_yaml(values: dict[str, Any], compact: bool = False) -> str:
    """Write a mapping as :func:`read_mapping` reads it; ``compact``: the innermost ones in a line each."""
    flow = None if compact else False
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=120
    )
    return text
