"""What updates the weights, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # it exports it all the same
from torch import nn
from torch.optim import Optimizer

from alast_tune.config import TrainConfig
from alast_tune.cost.updates import TIMM_SIZES
from alast_tune.errors import ConfigError
from alast_tune.methods import Method
from alast_tune.methods.parameters import layer_numbers, undecayed


def build_optimizer(train: TrainConfig, method: Method) -> Optimizer:
    """Build what updates a method's parameters; Adam is fused: one pass over them, no temporaries.

    timm's go from parameter to parameter, on GPUs too: all at once, they would take temporaries of all.

    Raises:
        ConfigError: 8-bit moments without bitsandbytes.
    """
    groups = parameter_groups(train, method)
    if train.optimizer == "sgd":
        # Fused SGD wants all momenta or none; a block that trains for the first time late in the run has none yet.
        return torch.optim.SGD(groups, train.learning_rate, momentum=0.9)
    if train.optimizer == "adamw8bit":
        return _eight_bit_adamw()(groups, train.learning_rate)
    if train.optimizer in TIMM_SIZES:
        own = {"max_grad_norm": None} if train.optimizer == "lamb" else {}  # clip_grad says whether to clip
        given: dict[str, Any] = {"foreach": False} | own
        made: Any = create_optimizer_v2(groups, train.optimizer, train.learning_rate, train.weight_decay, **given)
        made.sizes = TIMM_SIZES[train.optimizer]
        return made  # type: ignore[no-any-return]
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, train.learning_rate, fused=True)


def parameter_groups(train: TrainConfig, method: Method) -> list[dict[str, Any]]:
    """Divide a method's parameters by weight decay, which is for matrices alone, and by learning rate.

    With layer decay d the rate of layer l of L, the classifier's being the last, is that of training times d^(L - l)
    (Bao et al. 2022, arXiv:2106.08254), as in timm's ``param_groups_layer_decay``.
    """
    spared, numbers = undecayed(method.model), layer_numbers(method.model)
    number_of = {id(p): numbers[name] for name, p in method.model.named_parameters()}
    last = max(numbers.values())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    if train.layer_decay == 1:
        groups = {(train.learning_rate, True): [], (train.learning_rate, False): []}
    for parameter in method.parameters():
        rate = train.learning_rate * train.layer_decay ** (last - number_of[id(parameter)])
        groups.setdefault((rate, id(parameter) not in spared), []).append(parameter)
    return [
        {"params": members, "lr": rate, "weight_decay": train.weight_decay if decays else 0.0}
        for (rate, decays), members in groups.items()
    ]


def update(
    train: TrainConfig, optimizer: Optimizer, scaler: torch.amp.GradScaler, parameters: Sequence[nn.Parameter]
) -> None:
    """Clip the gradients, which are those of all ranks by now, and update the weights."""
    if train.clip_grad is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, train.clip_grad)
    scaler.step(optimizer)


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
    """Schedule the learning rate: its factor at each step.

    It rises evenly to 1, and from there on follows half a cosine down to 0 over the steps that are left, as timm's
    ``CosineLRScheduler`` with ``warmup_prefix`` has it. The first step has a rate above 0, the last one of the warm-up
    the full rate.
    """
    warmup, total = train.warmup_epochs * steps_per_epoch, train.epochs * steps_per_epoch
    top = max(0.0, warmup - 1)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if train.schedule == "constant" or step < top:
            return warm
        return 0.5 * (1 + math.cos(math.pi * (step - top) / (total - top)))

    return factor
