"""What a training step will cost, without running it: FLOPs and peak memory of any method's plan.

FLOPs equal torch's ``FlopCounterMode`` to the last one: a multiply-add counts 2, and only matrix products,
convolutions and attention count. With W the sum of in x out over a block's linear layers, N tokens and
attention of width A, a plain block costs an image

    forward            2 N W + 4 N^2 A
    backward, frozen   2 N W + 10 N^2 A     gradients pass through, exactly
    backward, trained  4 N W + 10 N^2 A     and reach the weights
    class-token row    2 N A                where tokens are dropped after the block

Nobody adds this up, though: a step is composed of its parts (embedding, each block, classifier with loss, whatever
looks on), real modules that are run without data (``part.py``), alike ones once. Between two parts only tokens go one
way and their gradient the other, so that what the parts add gives what the whole takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alast_tune.config import HeadConfig, MethodConfig, Precision, TrainConfig
from alast_tune.cost.hollow import HollowModel
from alast_tune.cost.part import Counts, Flowing, Part, PartCost, distinct_counts, run_part
from alast_tune.cost.updates import FLOAT, average_bytes, moment_bytes, update_bytes
from alast_tune.device import AUTOCAST
from alast_tune.losses import mixes, training_loss
from alast_tune.methods.base import Flow, Stage, StepPlan, random_drop, run_stages
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import Backbone, blocks_of, embed, needs_class_token_alone, predict, token_count
from alast_tune.models.reading import has_reader, summary_count

TRUNK_MARGIN = 0.1
"""By how much the one pass over all images may exceed a step's peak: an image at a time, it would take for ever."""


@dataclass(frozen=True)
class StepCost:
    """One training step, forward to update."""

    flops: int
    """Forward and backward; evaluation, the update and element-wise work are not counted."""
    held_bytes: int
    """What waits for the backward when a micro-batch's forward has ended."""
    peak_bytes: int
    """Most that is ever live: weights, moments, gradients, images, activations and temporaries."""


@dataclass(frozen=True)
class _MicroStep:
    """A micro-batch's forward and backward; weights, moments and images are not counted."""

    flops: int
    held: int
    peak: int
    gradients: int
    """What is left at the end."""


class StepCosts:
    """Predicts a model's steps and evaluations; parts that several have in common are run once.

    Args:
        model: as its method has prepared it; may lie on the meta device.
        image_size: side of the images, pixels.
        train: whose loss it is, and whether weights are averaged; unset: the default loss, and they are not.
    """

    def __init__(self, model: Backbone, image_size: int, train: TrainConfig | None = None) -> None:
        train = train or TrainConfig()
        self._smoothing, self._mixes, self._averages = train.label_smoothing, mixes(train), train.ema is not None
        self._model, self.image_size = model, image_size
        shape = (int(model.patch_embed.proj.in_channels), image_size, image_size)
        self._images: tuple[Flowing, ...] = (Flowing(shape, torch.float32, False, kept=True),)
        self._image_bytes = FLOAT * prod(shape)
        self._features = (Flowing((int(model.embed_dim),), torch.float32, False, kept=True),)
        self._weight_bytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        self._prefix = int(model.num_prefix_tokens)
        self._tokens = token_count(model, image_size)
        others = {p.numel() for p in model.parameters()} | {self._tokens, self._tokens - self._prefix}
        self._run_with = distinct_counts(frozenset(others), self._prefix)
        self._labels = torch.empty(self._run_with[0], *([2] if self._mixes else []), dtype=torch.int64)
        self._hollow: dict[MethodConfig, HollowModel] = {}
        self._parts: dict[object, Part] = {}

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
        parts = min(accumulate, batch)
        micro = -(-batch // parts)
        first = self._micro_step(config, plan, micro, precision)
        working, flops = first.peak, first.flops
        if micro < batch:
            second = micro if batch % parts != 1 else batch // parts  # tensor_split's first parts are the larger ones
            again = self._micro_step(config, replace(plan, calibrated=False), second, precision, accumulating=True)
            working = max(working, first.gradients + again.peak)
            flops += again.flops * (batch - micro) // second
            if plan.calibrated:  # on all micro-batches, before the first one's forward
                flops += self._forward(config, _embedded_updates, batch - micro).flops
        update = first.gradients + update_bytes(optimizer, first.gradients)
        there = self._there(batch, optimizer, self._given_bytes(config, plan))
        return StepCost(flops, first.held, there + max(working, update))

    def image_flops(self, config: MethodConfig, plan: StepPlan) -> int:
        """Count forward and backward of one image of a training step."""
        return self._micro_step(config, plan, 1, "fp32").flops

    def look_flops(self, config: MethodConfig, plan: StepPlan) -> int:
        """Count what one image takes of the pass by which a step is calibrated."""
        return self.image_flops(config, plan) - self.image_flops(config, replace(plan, calibrated=False))

    def evaluation_batch(
        self, most: int, training_peak_bytes: int, optimizer: Optimizer, precision: Precision = "fp32", start: int = 0
    ) -> tuple[int, int]:
        """Find how many images to evaluate at a time, that it takes no more memory than training: ``most``, or fewer.

        Args:
            most: images.
            training_peak_bytes: of its heaviest step.
            optimizer: whose moments are there.
            precision: of matrix products.
            start: first block that runs, on what enters it; 0: on images.

        Returns:
            Images, and the predicted peak; one image may take more than training does on fewer tokens.
        """

        def peak_bytes(images: int) -> int:
            working = self._forward(HeadConfig(), predict, images, precision, start=start).peak
            return self._there(images, optimizer, self._evaluated_bytes(start)) + working

        return _halve(most, training_peak_bytes, peak_bytes)

    def trunk_batch(
        self, config: MethodConfig, plan: StepPlan, most: int, optimizer: Optimizer, precision: Precision = "fp32"
    ) -> tuple[int, int]:
        """Find how many images at a time to bring up to a plan's start: ``most``, or as many as memory suggests.

        Returns:
            Images, and the predicted peak: at most a tenth more than a step's, unless one image takes more.
        """
        step_bytes = self.step(config, plan, most, optimizer, precision).peak_bytes

        def peak_bytes(images: int) -> int:
            working = self._trunk(config, plan, images, precision).peak
            return self._there(images, optimizer, self._image_bytes) + working

        return _halve(most, (1 + TRUNK_MARGIN) * step_bytes, peak_bytes)

    def trunk_flops(self, config: MethodConfig, plan: StepPlan) -> int:
        """Count the forward of an image up to the block at which the steps of a plan begin; 0 if with the image."""
        return self._trunk(config, plan, 1).flops if plan.start else 0

    def forward_flops(self, batch: int) -> int:
        """Count one forward with every token, as evaluation does it."""
        return self._forward(HeadConfig(), predict, batch).flops

    def _there(self, batch: int, optimizer: Optimizer, given_bytes: int) -> int:
        """Bytes that are live throughout: weights, moments, averages, and a batch of what is given, images mostly."""
        averages = average_bytes(optimizer) if self._averages else 0
        return self._weight_bytes + moment_bytes(optimizer) + averages + given_bytes * batch

    def _given_bytes(self, config: MethodConfig, plan: StepPlan) -> int:
        """Bytes of what a step is given of an image."""
        if not plan.start:
            return self._image_bytes
        if plan.image_tokens:
            return FLOAT * plan.image_tokens * int(self._model.embed_dim)
        below = self._hollow_model(config).flow.stages(plan)[: plan.start]
        return FLOAT * self._leaving(below) * int(self._model.embed_dim)

    def _leaving(self, stages: Sequence[Stage]) -> int:
        """Tokens that leave the last of some stages; the summaries where there are none, and a reader classifies."""
        if not stages:
            return summary_count(self._model)
        return 1 if stages[-1].alone else stages[-1].leaving

    def _evaluated_tokens(self, start: int) -> int:
        """Tokens that enter a block in an evaluation, or the summaries that a reader gets."""
        if has_reader(self._model):
            return summary_count(self._model)
        return 1 if start == len(self._model.blocks) and needs_class_token_alone(self._model) else self._tokens

    def _evaluated_bytes(self, start: int) -> int:
        """Bytes of what an evaluation is given of an image."""
        return FLOAT * self._evaluated_tokens(start) * int(self._model.embed_dim) if start else self._image_bytes

    def _trunk(self, config: MethodConfig, plan: StepPlan, batch: int, precision: Precision = "fp32") -> PartCost:
        """Give the cost of a forward without gradients up to a plan's start."""
        flow = self._hollow_model(config).flow
        stages = flow.stages(plan)[: plan.start]

        def run(model: Backbone, images_BCHW: Tensor) -> Any:
            return run_stages(stages, flow.embed(images_BCHW))

        return self._forward(config, run, batch, precision, ("trunk", plan.tokens_L, plan.start))

    def _micro_step(
        self, config: MethodConfig, plan: StepPlan, batch: int, precision: Precision, accumulating: bool = False
    ) -> _MicroStep:
        """Compose a micro-batch's step; ``accumulating`` adds its gradients to those that are there already."""
        hollow = self._hollow_model(config)
        model, flow, first = hollow.model, hollow.flow, plan.image_tokens or plan.tokens_L[0]
        stages = flow.stages(plan)
        scales = bool(stages) and not stages[-1].alone
        leaving = self._leaving(stages)
        before = random_drop(model, plan)
        if not plan.start:
            before.insert(0, _whole("embed", flow.embed, first))
        blocks = list(zip(stages, blocks_of(model), plan.trainable_L, strict=True)) if stages else []
        whole: list[tuple[Stage, nn.Module | None, bool]] = [
            *((stage, None, True) for stage in before),
            *blocks[plan.start :],
            (Stage(partial(self._loss, flow), leaving, leaving, "loss", scales=scales), None, True),
        ]
        given = self._features if plan.start else self._images
        parts: list[Part] = []
        costs: list[PartCost] = []
        live = peak = 0
        for stage, block, trains in whole:
            given = parts[-1].output if parts else given
            parts.append(self._part(hollow, stage, given, precision, accumulating, block, trains))
            costs.append(cost := parts[-1].cost(self._counts(batch, stage.arriving, stage.leaving)))
            peak, live = max(peak, live + cost.peak), live + cost.left
        held = live = live - sum(cost.copies for cost in costs)
        for part, cost in zip(reversed(parts), reversed(costs), strict=True):
            if any(one.passes for one in part.output):
                peak, live = max(peak, live + cost.backward_peak), live + cost.backward_left
        flops = sum(cost.flops for cost in costs)
        if plan.calibrated:
            look = _whole("calibrate", lambda x_BND: summary_updates(model, x_BND.detach()), first)
            part = self._part(hollow, look, parts[0].output, precision, accumulating)
            looked = part.cost(self._counts(batch, first, first))
            peak, flops = max(peak, costs[0].left + looked.peak), flops + looked.flops
        return _MicroStep(flops, held, peak, live)

    def _loss(self, flow: Flow, flowing: Any, leaving: int) -> Tensor:
        return training_loss(flow.classify(flowing), self._labels, self._smoothing, 0.5)

    def _forward(
        self,
        config: MethodConfig,
        run: Callable[[Backbone, Tensor], Any],
        batch: int,
        precision: Precision = "fp32",
        kind: Hashable = None,
        start: int = 0,
    ) -> PartCost:
        """Give the cost of a forward without gradients; ``kind`` says what it is, if ``run`` and ``start`` do not."""
        hollow = self._hollow_model(config)
        tokens, given = self._tokens, self._images
        forward = partial(run, hollow.model)
        if start:
            forward, tokens, given = partial(forward, start=start), self._evaluated_tokens(start), self._features
        stage = _whole(kind or (run, start), torch.no_grad()(forward), tokens)
        part = self._part(hollow, stage, given, precision, evaluates=True)
        return part.cost(self._counts(batch, tokens, tokens))

    def _hollow_model(self, config: MethodConfig) -> HollowModel:
        """Get the hollow copy for a method's settings, one for all that cost the same."""
        if config not in self._hollow:
            setup = config.cost_settings()
            if setup not in self._hollow:
                self._hollow[setup] = HollowModel(setup, self._model, self.image_size)
            self._hollow[config] = self._hollow[setup]
        return self._hollow[config]

    def _counts(self, batch: int, arriving: int, leaving: int) -> Counts:
        if not self._prefix:  # every token is a patch
            return batch, arriving, leaving, 1, 1
        return batch, arriving, leaving, arriving - self._prefix, leaving - self._prefix

    def _part(
        self,
        hollow: HollowModel,
        stage: Stage,
        given: tuple[Flowing, ...],
        precision: Precision,
        accumulating: bool = False,
        block: nn.Module | None = None,
        trains: bool = True,
        evaluates: bool = False,
    ) -> Part:
        """Get the part that a stage is, given what flows into it; run it if none was alike."""
        drops = stage.leaving < stage.arriving and not stage.alone
        tokens = drops if stage.scales else (stage.arriving, stage.leaving)
        key = id(hollow), id(block), trains, stage.kind, tokens, given, precision, accumulating, evaluates
        if key not in self._parts:
            batch, arriving, leaving = self._run_with
            ran = self._counts(batch, arriving, leaving)
            if not stage.scales:
                arriving, leaving, ran = stage.arriving, stage.leaving, (batch, 1, 1, 1, 1)
            elif not drops:
                leaving, ran = arriving, (*ran[:2], 1, ran[3], 1)
            # Positions of tokens that are left are chosen from the whole image's.
            patches = max((self._tokens if len(given) > 1 else arriving) - self._prefix, 1)
            hollow.prepare(block, trains, accumulating, patches)
            hollow.model.train(not evaluates)
            around = (batch,) if given is self._images else (batch, arriving)
            shapes = [(*around, *one.shape) for one in given]
            self._parts[key] = run_part(lambda x: stage.run(x, leaving), shapes, given, ran, AUTOCAST[precision])
        return self._parts[key]


def _halve(most: int, limit_bytes: float, peak_bytes: Callable[[int], int]) -> tuple[int, int]:
    """Halve a number of images until they keep a limit, or are one; give it and its peak."""
    while (peak := peak_bytes(most)) > limit_bytes and most > 1:
        most //= 2
    return most, peak


def _whole(kind: Hashable, run: Callable[[Tensor], Any], tokens: int) -> Stage:
    """Make a stage of what always has all tokens."""
    return Stage(lambda x, leaving: run(x), tokens, tokens, kind, scales=False)


def _embedded_updates(model: Backbone, images_BCHW: Tensor) -> Tensor:
    """Look at the updates as calibration does on micro-batches that are not the step's first."""
    return summary_updates(model, embed(model, images_BCHW))[0]


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
    train: TrainConfig | None = None,
) -> int:
    """Predict the peak of live tensor bytes of one training step under a plan; arguments as :class:`StepCosts`'s."""
    costs = StepCosts(model, image_size, train)
    return costs.step(method_config, plan, batch, optimizer, precision, accumulate).peak_bytes
