"""Small models, and training steps on them, for the checks of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from alast_tune.averaging import WeightAverage
from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.cost import StepCost, StepCosts
from alast_tune.cost.memory import track_live_bytes
from alast_tune.losses import mixed, training_loss
from alast_tune.methods import Method, build_method
from alast_tune.models.backbone import Backbone, blocks_of
from alast_tune.optimizers import build_optimizer, update

MakeModel = Callable[[], Backbone]
SIDE, CLASSES = 32, 10
"""Of the small models' images, pixels, and of their classifiers."""


def small_model(**options: Any) -> VisionTransformer:
    """Make six small blocks for images of 32 pixels, the same each time.

    Args:
        options: of timm's ``VisionTransformer``.
    """
    torch.manual_seed(0)
    base: dict[str, Any] = {"embed_dim": 32, "depth": 6, "num_heads": 2, "patch_size": 8}
    return VisionTransformer(img_size=SIDE, num_classes=CLASSES, **base | options)


@dataclass
class MeasuredStep:
    """A training step as it was predicted and as it was."""

    predicted: StepCost
    flops: int
    peak_bytes: int
    """0: of the first step it is not measured."""
    watched: Any = None
    """What ``watch`` gave."""

    @property
    def peak_error(self) -> float:
        """As a share of what was measured."""
        return abs(self.predicted.peak_bytes / self.peak_bytes - 1)


def measured_steps(
    model: Backbone,
    config: MethodConfig,
    size: int,
    precision: Any = "fp32",
    accumulate: int = 1,
    watch: Callable[..., AbstractContextManager[Any]] | None = None,
    token_keep: float = 1.0,
    image_size: int | None = None,
    **train: Any,
) -> Iterator[MeasuredStep]:
    """Measure the first two steps: a method may look at its images first at one, and have learned at the other.

    Args:
        model: gets prepared.
        config: of the method.
        size: images in the batch.
        precision: of matrix products.
        accumulate: micro-batches.
        watch: looks on at the first step's forwards, given model, images and labels, each time anew.
        token_keep: share of the patch tokens that enter the first block.
        image_size: side of the images, pixels; unset: the model's own.
        train: settings of the training loop; without an optimizer Adam that is not fused.
    """
    settings = TrainConfig(seed=size, **train)
    method, side = build_method(config, model, settings), image_size or model.patch_embed.img_size[0]
    optimizer = build_optimizer(settings, method) if "optimizer" in train else adam(method, 1e-3, 0.0)
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # moments are in place
    average = WeightAverage(method.parameters(), settings.ema)
    optimizer.zero_grad(set_to_none=True)
    costs, scaler = StepCosts(model, side, settings), torch.amp.GradScaler("cpu", enabled=False)
    for number in range(2):
        images, labels = torch.randn(size, 3, side, side), torch.randint(0, CLASSES, (size,))
        images, labels, share = mixed(settings, number, images, labels)
        parts, watched = list(images.tensor_split(accumulate)), []
        tracking = track_live_bytes(model, optimizer, images, *average.tensors) if number == 1 else nullcontext([0])
        method.begin_step(number, parts, token_keep)
        # The counter takes some operations apart (SiLU's backward): the tracker, entered later, sees them whole.
        with FlopCounterMode(display=False) as counter, tracking as peak:
            # Without its hooks on every module, which keep what blocks that run again have made.
            counter.mod_tracker.__exit__(None, None, None)
            for part, truth in zip(parts, labels.tensor_split(accumulate), strict=True):
                looking = watch(model, part, truth) if watch and number == 0 else nullcontext()
                with looking as seen, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss = training_loss(method.forward(part), truth, settings.label_smoothing, share)
                watched.append(seen)
                loss.backward()
            update(settings, optimizer, scaler, method.parameters())
            optimizer.zero_grad(set_to_none=True)
        method.end_step()
        predicted = costs.step(config, method.plan, size, optimizer, precision, accumulate)
        yield MeasuredStep(predicted, counter.get_total_flops(), peak[0], watched)


def batch(number: int = 0, size: int = 3) -> tuple[Tensor, Tensor]:
    """Draw images and labels, the same for the same number."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, SIDE, SIDE, generator=generator)
    return images, torch.randint(0, CLASSES, (size,), generator=generator)


def step(method: Method, number: int = 0, size: int = 3) -> Tensor:
    """Take a step but for the update, and give the loss; gradients stay."""
    images, labels = batch(number, size)
    method.begin_step(number)
    loss = F.cross_entropy(method.forward(images), labels)
    loss.backward()
    method.end_step()
    return loss.detach()


def adam(method: Method, rate: float = 1e-2, weight_decay: float = 0.1) -> Adam:
    """Make an optimizer of what a method may train."""
    return Adam(method.parameters(), rate, weight_decay=weight_decay)


def train(method: Method, optimizer: Optimizer, numbers: range) -> list[float]:
    """Take steps, and give their losses."""
    losses = []
    for number in numbers:
        losses.append(float(step(method, number)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def gradients(model: Backbone) -> dict[str, Tensor]:
    """Give the gradients that there are, by parameter."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def count_tokens(method: Method) -> list[int]:
    """Give a list that grows by the tokens of each block that runs."""
    seen: list[int] = []
    for block in blocks_of(method.model):
        getattr(block, "norm1", block).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    return seen


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
