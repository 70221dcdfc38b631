"""What an optimizer keeps, and what its update takes, in bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

FLOAT = 4
"""Bytes of a single-precision number."""


def moment_bytes(optimizer: Optimizer) -> int:
    """Bytes that the optimizer keeps once every parameter has been updated: one moment of SGD, two of the others."""
    sizes: list[int] = [p.numel() for group in optimizer.param_groups for p in group["params"]]
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


def _codes_moments(optimizer: Optimizer) -> bool:
    """Whether it is one of bitsandbytes' with moments of 8 bits."""
    return int(getattr(getattr(optimizer, "args", None), "optim_bits", 32)) == 8


def update_bytes(optimizer: Optimizer, gradients: int) -> int:
    """Temporaries of an update: none if fused or coded, else all gradients' on CUDA, twice the largest's on a CPU."""
    if optimizer.defaults.get("fused") or _codes_moments(optimizer):
        return 0
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return gradients if parameters[0].is_cuda else 2 * FLOAT * max(p.numel() for p in parameters)
