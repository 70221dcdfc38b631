"""What every sweep searches: a measure of quality, training FLOPs and peak memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from alast_tune.config import Record
from alast_tune.scores import Score


class Objective(Record):
    """One axis of the front."""

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str


OBJECTIVES = (
    Objective(name="accuracy", direction="maximize", unit="share of validation images"),
    Objective(name="train_flops", direction="minimize", unit="FLOP"),
    Objective(name="peak_bytes", direction="minimize", unit="byte"),
)
"""What every sweep searches; the first is called so whatever measure of quality ``train.score`` names."""

_UNITS: dict[Score, str] = {
    "balanced_accuracy": "balanced accuracy: mean recall of the classes on validation images",
    "macro_f1": "macro F1: mean F1 of the classes on validation images",
}


def objectives_of(score: Score) -> tuple[Objective, ...]:
    """Say what a sweep by this measure searches, as its ``front.json`` has it."""
    quality = OBJECTIVES[0]
    return (quality.model_copy(update={"unit": _UNITS.get(score, quality.unit)}), *OBJECTIVES[1:])


def objective_values(metrics: Mapping[str, float], score: Score, prefix: str = "") -> dict[str, float]:
    """Take the objectives out of an epoch's metrics, by name; NaN for what is not there.

    Args:
        metrics: as :meth:`EpochReport.metrics` names them.
        score: the measure that is the first objective, ``accuracy``.
        prefix: of the metrics' names.
    """
    names = [score, *(objective.name for objective in OBJECTIVES[1:])]
    return {o.name: metrics.get(prefix + name, math.nan) for o, name in zip(OBJECTIVES, names, strict=True)}


DIRECTIONS = tuple(objective.direction for objective in OBJECTIVES)
