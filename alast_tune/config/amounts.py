"""Amounts as people write them: durations, and budgets of FLOPs."""

from __future__ import annotations

import math
import re

from pydantic import ValidationInfo

from alast_tune.errors import ConfigError

_DURATION = re.compile(r"(?:(?P<h>[\d.]+)h)?(?:(?P<min>[\d.]+)min)?(?:(?P<s>[\d.]+)s)?")


def seconds_of(given: object, info: ValidationInfo) -> object:
    """Read a duration as people write it (2h, 1.5h, 1h30min, 90s), seconds; a number stays as it is.

    Raises:
        ConfigError: text without a unit, or of another kind.
    """
    if not isinstance(given, str):
        return given
    found = _DURATION.fullmatch(given.replace(" ", ""))
    try:
        parts = [float(found[unit]) * size for unit, size in (("h", 3600), ("min", 60), ("s", 1)) if found[unit]]  # type: ignore[index]
    except (TypeError, ValueError):
        parts = []
    if not parts:
        raise ConfigError(str(info.field_name), given, "is no duration; write 2h, 1h30min, 30min or 90s")
    return sum(parts)


_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")


def budget_of_flops(given: object) -> object:
    """Read a budget of FLOPs as people write it: 1e18, or 20x; the latter stays as it is.

    Raises:
        ConfigError: other text, or nothing at all.
    """
    text = str(given).replace(" ", "")
    if isinstance(given, str) and _TIMES.fullmatch(text):
        number, found = float(text[:-1]), text
    else:
        try:
            number = found = float(text)  # type: ignore[assignment]
        except ValueError:
            number = 0.0
    if isinstance(given, bool) or not 0 < number < math.inf:
        raise ConfigError("flops_budget", given, "is no number of FLOPs; write 1e18, or 20x: times full fine-tuning")
    return found


def flops_of(budget: float | str, full_flops: float) -> float:
    """Count the FLOPs of a budget.

    Args:
        budget: as :class:`SweepConfig` has it: FLOPs, or ``20x``.
        full_flops: of full fine-tuning.
    """
    return float(budget.removesuffix("x")) * full_flops if isinstance(budget, str) else budget
