"""What updates the weights, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim import Optimizer

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError


def build_optimizer(train: TrainConfig, parameters: list[torch.nn.Parameter]) -> Optimizer:
    """Build what updates the weights; Adam is fused: one pass over them, no temporaries.

    Weight decay is for matrices alone, in a group of their own: linear layers' and adapters' (2 dimensions) and the
    patch embedding's (4). It spares biases, norms and LayerScale (1), positions, class token and registers (3).

    Raises:
        ConfigError: 8-bit moments without bitsandbytes.
    """
    matrices, others = ([p for p in parameters if (p.dim() in {2, 4}) == decays] for decays in (True, False))
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if train.optimizer == "sgd":
        # Fused SGD wants all momenta or none; a block that trains for the first time late in the run has none yet.
        return torch.optim.SGD(groups, train.learning_rate, momentum=0.9)
    if train.optimizer == "adamw8bit":
        return _eight_bit_adamw()(groups, train.learning_rate)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, train.learning_rate, fused=True)


def _eight_bit_adamw() -> Callable[..., Optimizer]:
    """AdamW whose moments take a byte a number, and 8 for 256 of them (Dettmers et al. 2022); small ones stay as are.

    Raises:
        ConfigError: bitsandbytes is not there, or not for this machine.
    """
    try:
        from bitsandbytes.optim.adamw import AdamW8bit  # a second to import, and only this needs it
    except Exception as error:
        remedy = f"needs the package bitsandbytes ({error}); pip install 'alast-tune[8bit]'"
        raise ConfigError("train.optimizer", "adamw8bit", remedy) from error
    made: Callable[..., Optimizer] = AdamW8bit
    return made


def rate(train: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Schedule the learning rate: its factor at each step, warm-up included."""
    warmup, total = train.warmup_epochs * steps_per_epoch, train.epochs * steps_per_epoch

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return warm if train.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / total))

    return factor
