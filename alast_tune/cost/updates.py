"""What an optimizer keeps, and what its update takes, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer

FLOAT = 4
"""Bytes of a single-precision number."""


@dataclass(frozen=True)
class UpdateSizes:
    """What an optimizer that goes from parameter to parameter takes, in multiples of a parameter's size."""

    kept: int
    """Its moments and their like."""
    temporaries: int
    left: int = 0
    """Of the parameter before, what still is there meanwhile: variables that nothing has replaced yet."""


TIMM_SIZES: dict[str, UpdateSizes] = {
    "adabelief": UpdateSizes(2, 3, 1),
    "adan": UpdateSizes(4, 2, 1),
    "adoptw": UpdateSizes(2, 2, 2),
    "lamb": UpdateSizes(2, 2, 2),
    "laprop": UpdateSizes(2, 2, 1),
    "lion": UpdateSizes(1, 1, 1),
    "nadamw": UpdateSizes(2, 3, 1),
    "radamw": UpdateSizes(2, 2),
    "sgdw": UpdateSizes(1, 1),
}
"""Of timm's optimizers, by name, as measured; the same with and without weight decay, which not all can say."""


def moment_bytes(optimizer: Optimizer) -> int:
    """Bytes that the optimizer keeps once every parameter has been updated: one moment of SGD, two of Adam."""
    sizes: list[int] = [p.numel() for group in optimizer.param_groups for p in group["params"]]
    if (known := _sizes(optimizer)) is not None:
        return FLOAT * known.kept * sum(sizes)
    if isinstance(optimizer, torch.optim.SGD):
        return FLOAT * sum(sizes)
    if not _codes_moments(optimizer):
        return 2 * FLOAT * sum(sizes)
    settings: Any = optimizer
    least = int(settings.args.min_8bit_size)
    whole = FLOAT * sum(size for size in sizes if size < least)
    coded = sum(size + FLOAT * -(-size // 256) for size in sizes if size >= least)  # a byte each, a scale for 256
    tables = 2 * FLOAT * 256 if coded else 0  # what number a byte stands for
    return 2 * (whole + coded) + tables


def average_bytes(optimizer: Optimizer) -> int:
    """Bytes of an average of all that the optimizer updates (``averaging.py``)."""
    sizes: list[int] = [p.numel() for group in optimizer.param_groups for p in group["params"]]
    return FLOAT * sum(sizes)


def _sizes(optimizer: Optimizer) -> UpdateSizes | None:
    """What is known of one of timm's; None of another's."""
    known: UpdateSizes | None = getattr(optimizer, "sizes", None)
    return known


def _codes_moments(optimizer: Optimizer) -> bool:
    """Whether it is one of bitsandbytes' with moments of 8 bits."""
    return int(getattr(getattr(optimizer, "args", None), "optim_bits", 32)) == 8


def update_bytes(optimizer: Optimizer, gradients: int) -> int:
    """Temporaries of an update: none if fused or coded, of timm's as known.

    Otherwise all gradients' on CUDA, twice the largest's on a CPU.
    """
    if optimizer.defaults.get("fused") or _codes_moments(optimizer):
        return 0
    if (known := _sizes(optimizer)) is not None:
        groups = [[0, *(p.numel() for p in group["params"])] for group in optimizer.param_groups]
        steps = (known.temporaries * size + known.left * before for group in groups for before, size in pairwise(group))
        most: int = max(steps)
        return FLOAT * most
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return gradients if parameters[0].is_cuda else 2 * FLOAT * max(p.numel() for p in parameters)
