"""A step's cost, composed of its parts': embedding, each block, classifier with loss, and whatever looks on.

Between two parts only tokens go one way and their gradient the other, so that what the parts add (``part.py``) gives
what the whole step takes. Parts that are alike are run once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import MethodConfig
from alast_tune.cost.hollow import HollowModel
from alast_tune.cost.part import Counts, Flowing, Part, PartCost, distinct_counts, run_part
from alast_tune.methods.base import Stage, StepPlan
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import Backbone, blocks_of, classify, embed, predict

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_SETTINGS = ("blocks", "merge", "target_flops", "lora", "train_embeddings", "frozen_backward", "budget_timing")
"""Of a method: what decides who may train and how tokens flow."""


@dataclass(frozen=True)
class StepBytes:
    """A micro-batch's forward and backward; weights, moments and images are not counted."""

    flops: int
    held: int
    """What waits for the backward when the forward has ended."""
    peak: int
    gradients: int
    """What is left at the end."""


class Parts:
    """The parts of a model's steps, each run once.

    Args:
        model: as its method has prepared it; may lie on the meta device.
        image_size: side of the images, pixels.
    """

    def __init__(self, model: Backbone, image_size: int) -> None:
        self._model = model
        channels = int(model.patch_embed.proj.in_channels)
        self._images = (Flowing((channels, image_size, image_size), torch.float32, False),)
        self._prefix = int(model.num_prefix_tokens)
        self._tokens = (image_size // model.patch_embed.patch_size[0]) ** 2 + self._prefix
        others = {p.numel() for p in model.parameters()} | {self._tokens, self._tokens - self._prefix}
        self._run_with = distinct_counts(frozenset(others), self._prefix)
        self._labels_B = torch.empty(self._run_with[0], dtype=torch.int64)
        self._hollow: dict[object, HollowModel] = {}
        self._parts: dict[object, Part] = {}

    def step(
        self,
        config: MethodConfig,
        plan: StepPlan,
        batch: int,
        precision: Precision = "fp32",
        accumulating: bool = False,
    ) -> StepBytes:
        """Compose one micro-batch's step.

        Args:
            config: of the method.
            plan: what the step does.
            batch: images in the micro-batch.
            precision: of matrix products.
            accumulating: gradients are there already, new ones are added to them.
        """
        hollow = self._hollow_model(config)
        model, first = hollow.model, plan.tokens_L[0]
        parts: list[Part] = []
        costs: list[PartCost] = []

        def add(kind: object, stage: Stage, block: Any = None, trains: bool = True) -> PartCost:
            given = parts[-1].output if parts else self._images
            part = self._part(hollow, kind, stage, given, precision, accumulating, block, trains)
            parts.append(part)
            costs.append(part.cost(self._counts(batch, stage.arriving, stage.leaving)))
            return costs[-1]

        embedded = add("embed", _whole(partial(embed, model), first))
        live, peak = embedded.left, embedded.peak
        if plan.calibrated:
            looked = add("calibrate", _whole(lambda x: summary_updates(model, x.detach()), first))
            parts.pop(), costs.pop()
            peak = max(peak, live + looked.peak)
        flops = looked.flops if plan.calibrated else 0
        stages = hollow.flow.stages(plan)
        for stage, block, trains in zip(stages, blocks_of(model), plan.trainable_L, strict=True):
            cost = add((id(block), stage.kind, trains), stage, block, trains)
            peak, live = max(peak, live + cost.peak), live + cost.left
        last = stages[-1]
        leaving = 1 if last.alone else last.leaving
        cost = add("end", Stage(partial(self._loss, model), leaving, leaving, scales=not last.alone))
        peak, live = max(peak, live + cost.peak), live + cost.left
        held = live = live - sum(cost.copies for cost in costs)
        for part, cost in zip(reversed(parts), reversed(costs), strict=True):
            if any(one.passes for one in part.output):
                peak, live = max(peak, live + cost.backward_peak), live + cost.backward_left
        return StepBytes(flops + sum(cost.flops for cost in costs), held, peak, live)

    def _loss(self, model: Backbone, x_BND: Tensor, leaving: int) -> Tensor:
        return F.cross_entropy(classify(model, x_BND), self._labels_B)

    def calibration_flops(self, config: MethodConfig, batch: int) -> int:
        """Count what calibration needs of a micro-batch that is not the step's first: a forward without a loss."""
        hollow = self._hollow_model(config)
        model = hollow.model

        def look(x: Tensor) -> Tensor:
            return summary_updates(model, embed(model, x))[0]

        return self._forward(hollow, "look", look, batch, "fp32").flops

    def evaluation(self, config: MethodConfig, batch: int, precision: Precision = "fp32") -> tuple[int, int]:
        """Give FLOPs and peak of a forward as evaluation does it, the model's own on all tokens."""
        hollow = self._hollow_model(config)
        cost = self._forward(hollow, "evaluate", partial(predict, hollow.model), batch, precision)
        return cost.flops, cost.peak

    def _forward(
        self, hollow: HollowModel, kind: str, run: Callable[[Tensor], Any], batch: int, precision: Precision
    ) -> PartCost:
        stage = _whole(torch.no_grad()(lambda x: run(x)), self._tokens)
        part = self._part(hollow, kind, stage, self._images, precision, False)
        return part.cost(self._counts(batch, self._tokens, self._tokens))

    def _hollow_model(self, config: MethodConfig) -> HollowModel:
        """Get the hollow copy for those of a method's settings that decide how it trains a model that it prepared."""
        setup = type(config), *(getattr(config, name, None) for name in _SETTINGS)
        if setup not in self._hollow:
            self._hollow[setup] = HollowModel(config, self._model)
        return self._hollow[setup]

    def _counts(self, batch: int, arriving: int, leaving: int) -> Counts:
        if not self._prefix:  # every token is a patch
            return batch, arriving, leaving, 1, 1
        return batch, arriving, leaving, arriving - self._prefix, leaving - self._prefix

    def _part(
        self,
        hollow: HollowModel,
        kind: object,
        stage: Stage,
        given: tuple[Flowing, ...],
        precision: Precision,
        accumulating: bool,
        block: Any = None,
        trains: bool = True,
    ) -> Part:
        drops = stage.leaving < stage.arriving and not stage.alone
        tokens = drops if stage.scales else (stage.arriving, stage.leaving)
        key = id(hollow), kind, tokens, given, precision, accumulating
        if key not in self._parts:
            batch, arriving, leaving = self._run_with
            leaving = leaving if drops else arriving
            ran = self._counts(batch, arriving, leaving)
            ran = ran if drops else (*ran[:2], 1, ran[3], 1)
            if not stage.scales:
                arriving, leaving, ran = stage.arriving, stage.leaving, (batch, 1, 1, 1, 1)
            # Positions of tokens that are left are chosen from the whole image's.
            patches = max((self._tokens if len(given) > 1 else arriving) - self._prefix, 1)
            hollow.prepare(block, trains, accumulating, patches)
            first = given is self._images
            around = (batch,) if first else (batch, arriving)
            shapes = [(*around, *one.shape) for one in given]
            self._parts[key] = run_part(lambda x: stage.run(x, leaving), shapes, given, ran, _DTYPES[precision], first)
        return self._parts[key]


def _whole(run: Callable[[Tensor], Any], tokens: int) -> Stage:
    """Make a stage of what always has all tokens."""
    return Stage(lambda x, leaving: run(x), tokens, tokens, scales=False)
