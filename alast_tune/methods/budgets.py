"""Compute budgets, equations 5 and 6 of the paper, and the drawing of trainable blocks. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def class_delta(
    before_BD: Tensor, after_BD: Tensor, reduction: Literal["batch_mean", "batch_sum"] = "batch_mean"
) -> Tensor:
    """Squared length of a block's update of the class token, equation 5.

    Sums over the width D; over the batch B it takes the mean or the sum. A scalar on the
    inputs' device, in at least single precision: reading it as a float is what synchronises.
    """
    squared_B = (after_BD - before_BD).float().square().sum(dim=-1)
    delta: Tensor = squared_B.mean() if reduction == "batch_mean" else squared_B.sum()
    return delta


def relative_magnitude(before_BD: Tensor, after_BD: Tensor) -> Tensor:
    """|f(x)| / |f(x) + x| of the class token, mean over the batch (figure 2); a scalar >= 0."""
    update_B = (after_BD - before_BD).float().norm(dim=-1)
    magnitude: Tensor = (update_B / after_BD.float().norm(dim=-1).clamp_min(1e-12)).mean()
    return magnitude


def update_budgets(
    budgets_L: Tensor | Sequence[float],
    deltas_L: Tensor | Sequence[float],
    previous_L: Tensor | Sequence[float] | None,
    alpha: float,
    low: float | Tensor | Sequence[float],
    high: float,
) -> Tensor:
    """Apply equation 6: b + alpha (delta - previous delta), clipped to [low, high].

    Budgets, deltas and ``low`` are one a block, (L,), or ``low`` one for all. Without an
    earlier delta (``previous_L`` is None) budgets only get clipped. Returns (L,), float64.
    """
    budgets = torch.as_tensor(budgets_L, dtype=torch.float64)
    if previous_L is not None:
        change = torch.as_tensor(deltas_L, dtype=torch.float64) - torch.as_tensor(previous_L, dtype=torch.float64)
        budgets = budgets + alpha * change
    floor = torch.as_tensor(low, dtype=torch.float64).expand_as(budgets)
    return torch.maximum(budgets, floor).clamp(max=high)


def scale_to_mean(magnitudes_L: Tensor, target: float, low_L: Tensor, high: float) -> Tensor:
    """Scale magnitudes to the mean ``target``, then clip to [low, high]; (L,), float64."""
    magnitudes = magnitudes_L.to(torch.float64)
    scaled = magnitudes * (target / magnitudes.mean().clamp_min(1e-12))
    return torch.maximum(scaled, low_L.to(torch.float64)).clamp(max=high)


def sample_layers(
    budgets_L: Tensor | Sequence[float],
    count: int,
    generator: torch.Generator,
    how: Literal["proportional", "softmax", "top_k", "uniform"] = "proportional",
) -> Tensor:
    """Choose ``count`` different blocks: drawn by budget, by softmax of the budgets, evenly, or the largest.

    Args:
        budgets_L: one budget >= 0 a block.
        count: 0 to L.
        generator: of the draw; not used by ``top_k``, where ties go to the earlier block.
        how: the rule.

    Returns:
        Mask (L,) with ``count`` true entries.

    Raises:
        ValueError: count out of range.
    """
    budgets = torch.as_tensor(budgets_L, dtype=torch.float64)
    if not 0 <= count <= len(budgets):
        raise ValueError(f"count = {count}: must be 0 to {len(budgets)}, the number of blocks")
    if how == "top_k":
        chosen = budgets.argsort(descending=True, stable=True)[:count]
    else:
        # A block of budget 0 stays possible, else fewer than `count` could be drawn.
        even = torch.ones_like(budgets)
        weights = {"softmax": budgets.softmax(0), "uniform": even}.get(how, budgets.clamp_min(1e-9))
        chosen = torch.multinomial(weights, max(count, 1), replacement=False, generator=generator)[:count]
    mask = torch.zeros(len(budgets), dtype=torch.bool)
    mask[chosen] = True
    return mask
