"""Names of runs that say what a trial is: ``0013 alast K9 keep .6``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alast_tune.config import (
    AlastConfig,
    AplaConfig,
    BlockChoice,
    BsrConfig,
    LoraConfig,
    MethodConfig,
    TomeConfig,
    TrialConfig,
    flatten,
)
from alast_tune.labels import SHORT
from alast_tune.summary import trial_id

LONGEST = 40
"""So many characters a name has at most: MLflow's list of runs shows little more."""

_BASELINES = {"full": "full", "paper": "alast paper"}

_SAID = {"method/name", "method/reading", "method/trainable_blocks", "method/target_budget", "method/blocks"}
_SAID |= {"method/count", "method/keep", "method/merge", "method/target_flops", "method/rank", "method/columns"}
_SAID |= {"method/lora/rank"}
"""Settings that the words of a method tell already."""

_FLOORS = tuple(f"method/floors/{third}" for third in ("early", "middle", "late"))


def run_name(number: int, config: TrialConfig, params: Mapping[str, Any], baseline: str | None = None) -> str:
    """Name a trial by its method in short words, then by what else the sweep varies, as far as there is room.

    Args:
        number: of the trial.
        config: of the trial.
        params: what the sweep varies, variants by their names.
        baseline: ``full`` or ``paper`` for the trials that every sweep begins with, which need no more words.

    Returns:
        At most ``LONGEST`` characters.
    """
    if baseline is not None:
        return f"{trial_id(number)} {_BASELINES[baseline]}"
    name = f"{trial_id(number)} {' '.join(_method_words(config.method))}"[:LONGEST].rstrip()
    for word in _varied_words(config, params):
        if len(name) + len(word) < LONGEST and word not in name.split():
            name += f" {word}"
    return name


def _method_words(method: MethodConfig) -> Iterator[str]:
    """Say which method it is, and its one or two settings that matter most."""
    yield method.name
    if isinstance(method, AlastConfig):
        if method.reading != "fast":
            yield method.reading
        yield f"K{method.trainable_blocks}"
        if method.initial_budget == "calibrate":
            yield f"keep {_short(method.target_budget)}"
        if method.lora is not None:
            yield f"lora r{method.lora.rank}"
    elif isinstance(method, BlockChoice):
        yield f"{method.count} blocks" if method.blocks is None else f"blocks {','.join(map(str, method.blocks))}"
        if isinstance(method, BsrConfig):
            yield f"keep {_short(method.keep)}"
    elif isinstance(method, TomeConfig):
        merge = (method.merge,) if isinstance(method.merge, int) else method.merge
        yield f"flops {_short(method.target_flops)}" if merge is None else f"r{','.join(map(str, merge))}"
    elif isinstance(method, LoraConfig):
        yield f"r{method.rank}"
    elif isinstance(method, AplaConfig) and method.columns is not None:
        yield f"{method.columns} columns"


def _varied_words(config: TrialConfig, params: Mapping[str, Any]) -> Iterator[str]:
    """Say what a sweep varies that the method's words do not tell, in the order of its space."""
    own = flatten(config)
    if any(path in params and path in own for path in _FLOORS):
        yield f"floors {'/'.join(_short(own[path]) for path in _FLOORS)}"
    for path, chosen in params.items():
        value = own.get(path) if "/" in path else chosen
        if path in _SAID or path in _FLOORS or value is None:
            continue
        leaf = path.rpartition("/")[2]
        leaf = SHORT.get(leaf, leaf)
        if isinstance(value, str):
            yield value
        elif isinstance(value, bool):
            yield leaf if value else f"no {leaf}"
        else:
            yield f"{leaf} {_short(value)}"


def _short(value: Any) -> str:
    """Write a number with two digits, no zero before the point: ``.6``, ``3e-4``."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    text = f"{value:.2g}"
    return text.removeprefix("0") if text.startswith("0.") else text
