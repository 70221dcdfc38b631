"""Names of runs that say what a trial is: ``0013 alast K9 keep .6``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from alast_tune.config import TrialConfig, flatten, setting_of
from alast_tune.labels import SHORT, text_label
from alast_tune.summary import trial_id
from alast_tune.text import short_number

LONGEST = 40
"""So many characters a name has at most: MLflow's list of runs shows little more."""

_BASELINES = {"full": "full", "paper": "alast paper"}

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
    said = dict(config.method.words())
    words = [trial_id(number), config.method.name, *filter(None, said.values())]
    name = " ".join(words)[:LONGEST].rstrip()
    varied = {setting_of(of): value for of, value in params.items()}
    for word in _varied_words(config, varied, {"method/name", *(f"method/{path}" for path in said)}):
        if len(name) + len(word) < LONGEST and word not in name.split():
            name += f" {word}"
    return name


def _varied_words(config: TrialConfig, params: Mapping[str, Any], said: Set[str]) -> Iterator[str]:
    """Say what a sweep varies that the method's words do not tell, in the order of its space."""
    own = flatten(config)
    if any(path in params and path in own for path in _FLOORS):
        yield f"floors {'/'.join(short_number(own[path]) for path in _FLOORS)}"
    for path, chosen in params.items():
        value = own.get(path) if "/" in path else chosen
        if path in said or path in _FLOORS or value is None:
            continue
        leaf = path.rpartition("/")[2]
        leaf = SHORT.get(leaf, leaf)
        if isinstance(value, str):
            yield text_label(leaf, value)
        elif isinstance(value, bool):
            yield leaf if value else f"no {leaf}"
        else:
            yield f"{leaf} {short_number(value)}"
