"""What a training step will cost, without running it: FLOPs and peak memory of any method's plan.

FLOPs equal torch's ``FlopCounterMode`` to the last one: a multiply-add counts 2, and only matrix products,
convolutions and attention count. With W the sum of in x out over a block's linear layers, N tokens and
attention of width A, a plain block costs an image

    forward            2 N W + 4 N^2 A
    backward, frozen   2 N W + 10 N^2 A     gradients pass through, exactly
    backward, trained  4 N W + 10 N^2 A     and reach the weights
    class-token row    2 N A                where tokens are dropped after the block

Nobody adds this up, though: real modules are run without data, part by part (``parts.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.optim import Optimizer

from alast_tune.config import HeadConfig, MethodConfig
from alast_tune.cost.parts import Parts, Precision
from alast_tune.methods.base import StepPlan
from alast_tune.models.backbone import Backbone

FLOAT = 4
"""Bytes of a single-precision number."""


@dataclass(frozen=True)
class StepCost:
    """One training step, forward to update."""

    flops: int
    """Forward and backward; evaluation, the update and element-wise work are not counted."""
    held_bytes: int
    """What waits for the backward when a micro-batch's forward has ended."""
    peak_bytes: int
    """Most that is ever live: weights, moments, gradients, images, activations and temporaries."""


class StepCosts:
    """Predicts a model's steps and evaluations; what several have in common is walked once.

    Args:
        model: as its method has prepared it; may lie on the meta device.
        image_size: side of the images, pixels.
    """

    def __init__(self, model: Backbone, image_size: int) -> None:
        self.model = model
        self.image_size = image_size
        self._parts = Parts(model, image_size)
        self._weight_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    def step(
        self,
        config: MethodConfig,
        plan: StepPlan,
        batch: int,
        optimizer: Optimizer,
        precision: Precision = "fp32",
        accumulate: int = 1,
    ) -> StepCost:
        """Predict a training step under a plan.

        Args:
            config: of the method.
            plan: what the step does.
            batch: images of the step.
            optimizer: over all that may ever train; its moments count as if they were there.
            precision: of matrix products; other than ``fp32`` under autocast.
            accumulate: micro-batches that the batch is split into.
        """
        micro = -(-batch // accumulate)
        first = self._parts.step(config, plan, micro, precision)
        working, flops = first.peak, first.flops
        if micro < batch:
            again = self._parts.step(config, replace(plan, calibrated=False), micro, precision, accumulating=True)
            working = max(working, first.gradients + again.peak)
            flops += again.flops * (batch - micro) // micro
            if plan.calibrated:  # on all micro-batches, before the first one's forward
                flops += self._parts.calibration_flops(config, batch - micro)
        update = first.gradients + _update_bytes(optimizer, first.gradients)
        return StepCost(flops, first.held, self._there(batch, optimizer) + max(working, update))

    def image_flops(self, config: MethodConfig, plan: StepPlan) -> int:
        """Count forward and backward of one image of a training step."""
        return self._parts.step(config, plan, 1).flops

    def evaluation_batch(
        self, most: int, training_peak_bytes: int, optimizer: Optimizer, precision: Precision = "fp32"
    ) -> tuple[int, int]:
        """Find how many images to evaluate at a time, that it takes no more memory than training: ``most``, or fewer.

        Returns:
            Images, and the predicted peak; one image may take more than training does on fewer tokens.
        """
        while True:
            peak_bytes = self.evaluation_peak_bytes(most, optimizer, precision)
            if peak_bytes <= training_peak_bytes or most == 1:
                return most, peak_bytes
            most //= 2

    def evaluation_peak_bytes(self, batch: int, optimizer: Optimizer, precision: Precision = "fp32") -> int:
        """Predict the peak of live tensor bytes of an evaluation, ``batch`` images at a time."""
        return self._there(batch, optimizer) + self._parts.evaluation(HeadConfig(), batch, precision)[1]

    def forward_flops(self, batch: int) -> int:
        """Count one forward with every token, as evaluation does it."""
        return self._parts.evaluation(HeadConfig(), batch)[0]

    def _there(self, batch: int, optimizer: Optimizer) -> int:
        """Bytes that are live from beginning to end: weights, moments and a batch of images."""
        return self._weight_bytes + FLOAT * moments(optimizer) + FLOAT * batch * 3 * self.image_size**2


def step_cost(
    model: Backbone,
    method_config: MethodConfig,
    plan: StepPlan,
    image_size: int,
    batch: int,
    optimizer: Optimizer,
    precision: Precision = "fp32",
    accumulate: int = 1,
) -> StepCost:
    """Predict one training step, as :class:`StepCosts` does."""
    return StepCosts(model, image_size).step(method_config, plan, batch, optimizer, precision, accumulate)


def step_flops(model: Backbone, method_config: MethodConfig, plan: StepPlan, image_size: int, batch: int) -> int:
    """Count forward and backward of one training step under a plan, for ``batch`` images."""
    return StepCosts(model, image_size).image_flops(method_config, plan) * batch


def step_peak_bytes(
    model: Backbone,
    method_config: MethodConfig,
    plan: StepPlan,
    image_size: int,
    batch: int,
    optimizer: Optimizer,
    precision: Precision = "fp32",
    accumulate: int = 1,
) -> int:
    """Predict the peak of live tensor bytes of one training step under a plan; arguments as :func:`step_cost`'s."""
    return step_cost(model, method_config, plan, image_size, batch, optimizer, precision, accumulate).peak_bytes


def forward_flops(model: Backbone, image_size: int, batch: int) -> int:
    """Count one forward with every token, as evaluation does it."""
    return StepCosts(model, image_size).forward_flops(batch)


def evaluation_peak_bytes(
    model: Backbone, image_size: int, batch: int, optimizer: Optimizer, precision: Precision = "fp32"
) -> int:
    """Predict an evaluation's peak, as :class:`StepCosts` does."""
    return StepCosts(model, image_size).evaluation_peak_bytes(batch, optimizer, precision)


def moments(optimizer: Optimizer) -> int:
    """Numbers that the optimizer keeps once every parameter has been updated."""
    updated = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return int(updated if isinstance(optimizer, torch.optim.SGD) else 2 * updated)


def _update_bytes(optimizer: Optimizer, gradients: int) -> int:
    """Temporaries of an update: none if fused, else all gradients' on CUDA, twice the largest parameter's on a CPU."""
    if optimizer.defaults.get("fused"):
        return 0
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return gradients if parameters[0].is_cuda else 2 * FLOAT * max(p.numel() for p in parameters)
