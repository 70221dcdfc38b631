"""How a trial is named to people: its method, and the settings by which it differs from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alast_tune.config import TrialConfig, flatten, setting_of
from alast_tune.results import BASELINES, FrontFile, FrontMember
from alast_tune.text import safe

SHORT = {"trainable_blocks": "K", "learning_rate": "lr", "target_budget": "budget", "batch_size": "batch"}
SHORT |= {"weight_decay": "decay", "lora_alpha": "scale", "train_embeddings": "embeddings"}
"""What settings are called in labels and in the names of runs."""

_SHARED = {"none", "auto", "exact"}
"""Texts that several settings take."""


def method_label(config: TrialConfig, baseline: str | None = None, *, key: bool = False) -> str:
    """Name a trial's method: ``ALaST``, ``full fine-tuning``; with ``key`` and its foremost setting, ``ALaST, K 9``."""
    if baseline:
        return BASELINES[baseline]
    method = config.method
    label, setting = method.full_label(), method.foremost
    value = getattr(method, setting) if key and setting else None
    return safe(label if value is None else f"{label}, {SHORT.get(str(setting), setting)} {_digits(value)}")


def setting_labels(settings: Mapping[str, object]) -> list[str]:
    """Name settings, given by path, in a few words each: ``K 9``, ``lr 0.001``, ``floors 0.1/0.3/0.5``, ``residual``.

    A number has two digits, which is enough to tell trials apart; a text stands for itself.
    """
    found: list[str] = []
    settings = {setting_of(name): value for name, value in settings.items()}
    floors = [path for path in settings if path.startswith("method/floors/")]
    together = len(floors) == 3
    for path, value in settings.items():
        if together and path in floors:
            if path == floors[0]:
                values = [settings[f"method/floors/{part}"] for part in ("early", "middle", "late")]
                found.append(f"floors {'/'.join(map(_digits, values))}")
            continue
        name = path.rsplit("/", 1)[-1]
        name = f"{name} floor" if path in floors else SHORT.get(name, name)
        found.append(text_label(name, value) if isinstance(value, str) else f"{name} {_digits(value)}")
    return [safe(label) for label in found]


def text_label(name: str, value: str) -> str:
    """Let a text stand for itself, unless several settings take it: ``residual``, but ``features none``."""
    return f"{name} {value}" if value in _SHARED else value


def _digits(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def member_settings(member: FrontMember) -> Mapping[str, object]:
    """Settings of a member by path: those that its sweep varied; of version 0.1's files, all."""
    return {setting_of(name): value for name, value in member.params.items()} or flatten(member.config)


def differing(front: FrontFile) -> Sequence[str]:
    """Paths of the settings that differ over a front's members, baselines left out."""
    found = [member_settings(member) for member in front.front if not member.baseline]
    paths = dict.fromkeys(path for one in found for path in one)
    return [path for path in paths if len({str(one.get(path)) for one in found}) > 1]
