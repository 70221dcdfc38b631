"""The one error a person is meant to read: it names the field, the value and the remedy."""

from __future__ import annotations

from pydantic import ValidationError

from alast_tune.text import safe

TRACEBACK = "ALAST_TRACEBACK"
"""Environment variable: 1 has errors printed whole, as Python does, above their line."""

_LONG = 200
"""Characters of a value that are said."""


class ConfigError(ValueError):
    """A setting that cannot work, said in one line: ``field = value: remedy``.

    Args:
        field: dotted path of the setting, as in the configuration (``model.checkpoint``).
        value: what it was set to; passwords in it are not said.
        remedy: what is wrong with it and what would be right.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(safe(f"{field} = {value!s}: {' '.join(remedy.split())}"))
        self.field = field
        self._parts = (field, value, remedy)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        """Pickle by the three parts: it travels from workers to the driver."""
        return ConfigError, self._parts


class MemoryLimitError(ConfigError):
    """A limit of memory that a run is predicted to exceed.

    Args:
        field: as of :class:`ConfigError`.
        value: the limit.
        remedy: as of :class:`ConfigError`.
        peak_bytes: the least that the run would take.
    """

    def __init__(self, field: str, value: object, remedy: str, peak_bytes: int) -> None:
        super().__init__(field, value, remedy)
        self.peak_bytes = peak_bytes


class DivergedError(RuntimeError):
    """Training has left the numbers: a loss or a class-token delta is not finite."""


class WorkersError(RuntimeError):
    """The workers of a distributed run have failed for good, said in one line; it can be gone on with."""


class InterruptedTrainingError(RuntimeError):
    """A training was told to end, and has left a checkpoint to go on from; says so in one line."""


class VerificationError(RuntimeError):
    """A member of a front, trained again, does not come out as it was measured; says in one line by what."""


class NothingCompleteError(RuntimeError):
    """A sweep has ended, and none of its trials is complete; says the commonest reason in one line."""


class StorageError(RuntimeError):
    """A disk that is full or broken, said in one line; what was on it stays, and a sweep can be resumed."""


def explain(error: ValidationError) -> str:
    """Put pydantic's first complaint into the one-line form of :class:`ConfigError`."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    # pydantic puts the tag of a tagged union (space.method/alpha.float.low) into the location; people do not write it.
    tags = {"float", "int", "categorical", "variants"}
    path = [part for part in map(str, first["loc"]) if part not in tags or first["type"] == "extra_forbidden"]
    field = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        return f"{field} = {_shortened(first['input'])}: no such setting; see --help for those there are"
    if first["type"] == "missing":
        return f"{field} = not given: it has no default; see --help"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    value = first["input"] if not isinstance(first["input"], dict) else "{...}"
    return f"{field} = {_shortened(value)}: {first['msg'].removeprefix('Value error, ')}{more}"


def _shortened(value: object) -> str:
    """Write a value in a line, which somebody's file may have made long."""
    text = value[:_LONG].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) < _LONG else f"{text[:_LONG]}..."
