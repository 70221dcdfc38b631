"""A step's cost, composed of its parts': embedding, each block, classifier with loss, and whatever looks on.

Every distinct part is run once, forward and backward, on hollow tensors (``hollow.py``), for a batch and token counts
of sizes that are told apart in any product: a storage's bytes then say by their factors how they grow with the batch
and the tokens. What a part costs for other counts needs no other run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import MethodConfig
from alast_tune.cost.hollow import Hollow, HollowModel, arrive, depart
from alast_tune.methods.base import Stage, StepPlan, blocks_of, classify, embed
from alast_tune.methods.budgets import relative_magnitudes
from alast_tune.models import VisionTransformer

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

_SETTINGS = ("blocks", "merge", "target_flops", "lora", "train_embeddings", "frozen_backward", "budget_timing")
"""Of a method: what decides who may train and how tokens flow."""

_Counts = tuple[int, ...]
"""Images; tokens that come and those that leave; the patches among each."""


@dataclass(frozen=True)
class StepBytes:
    """A micro-batch's forward and backward; weights, moments and images are not counted."""

    flops: int
    held: int
    """What waits for the backward when the forward has ended."""
    peak: int
    gradients: int
    """What is left at the end."""


@dataclass(frozen=True)
class _Flowing:
    """A tensor between two parts: all of its shape but images and tokens."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    passes: bool
    """Whether its gradient is wanted."""


@dataclass(frozen=True)
class _Cost:
    """What a part adds to a step; bytes relative to those live at its start, its input or its gradient among them."""

    flops: int
    peak: int
    left: int
    """After the forward, with the output."""
    copies: int
    """Of that, autocast's of weights, which go when the forward of the whole has ended."""
    backward_peak: int
    backward_left: int


class _Part:
    """The log of a part's run, from which its cost for any counts is read.

    Args:
        log: bytes of each allocation and each free (negative), in order.
        flops: of each operation.
        marks: how much of the log there was at the start, at the end of the forward, when autocast had ended, when the
            gradient of the output was there, and when that of the input was.
        ran: counts of the run.
        output: what flows on.
    """

    def __init__(
        self, log: Sequence[int], flops: Sequence[int], marks: Sequence[int], ran: _Counts, output: tuple[_Flowing, ...]
    ) -> None:
        self.output = output
        self._start, self._left, self._ended, self._sent, self._came = marks
        terms: dict[_Counts, int] = {}
        split = [(terms.setdefault(_powers(abs(size), ran)[0], len(terms)), size) for size in log]
        products = [_powers(size, ran) for size in flops]
        columns = [terms.setdefault(powers, len(terms)) for powers, _ in products]
        changes = np.zeros((len(log) + 1, len(terms)), np.int64)
        for row, (column, size) in enumerate(split, 1):
            changes[row, column] = size // abs(size) * _powers(abs(size), ran)[1] if size else 0
        self._live = changes.cumsum(axis=0)
        self._flops = np.zeros(len(terms), np.int64)
        for column, (_, factor) in zip(columns, products, strict=True):
            self._flops[column] += factor
        self._powers = np.array(list(terms), np.int64).reshape(len(terms), len(ran))
        self._costs: dict[_Counts, _Cost] = {}

    def cost(self, counts: _Counts) -> _Cost:
        """Read what the part costs for so many images and tokens."""
        if counts not in self._costs:
            values = (np.array(counts, np.int64) ** self._powers).prod(axis=1)
            live = self._live @ values
            forward, backward = live[self._start : self._left + 1], live[self._sent : self._came + 1]
            self._costs[counts] = _Cost(
                flops=int(self._flops @ values),
                peak=int(forward.max() - forward[0]),
                left=int(forward[-1] - forward[0]),
                copies=int(forward[-1] - live[self._ended]),
                backward_peak=int(backward.max() - backward[0]),
                backward_left=int(backward[-1] - backward[0]),
            )
        return self._costs[counts]


def _powers(size: int, ran: _Counts) -> tuple[_Counts, int]:
    """Take a size apart: powers of the counts (images come once at most), and the factor that is left."""
    powers = [0] * len(ran)
    for place, count in enumerate(ran):
        while count > 1 and size and size % count == 0 and powers[place] < (2 if place else 1):
            size //= count
            powers[place] += 1
    return tuple(powers), size


@cache
def _distinct(sizes: frozenset[int], prefix: int) -> tuple[int, int, int]:
    """Choose images, tokens that come and that leave: each of them, and the patches, has a prime factor of its own.

    Args:
        sizes: what else may be a factor of tensors' sizes.
        prefix: class token and registers.
    """
    seen: set[int] = set()

    def unique(*numbers: int) -> bool:
        marks = {_largest_prime(number) for number in numbers}
        if len(marks) < len(numbers) or marks & seen or any(size % mark == 0 for size in sizes for mark in marks):
            return False
        seen.update(marks)
        return min(marks) > 10  # smaller ones count matrices, heads and bytes

    numbers = range(prefix + 11, prefix + 9999)
    leaving, arriving = islice((number for number in numbers if unique(number, number - prefix)), 2)
    return next(number for number in numbers if unique(number)), arriving, leaving


def _largest_prime(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor == 0:
            number //= factor
        else:
            factor += 1
    return number


def _run(
    run: Callable[[Any], Any],
    shapes: Sequence[Sequence[int]],
    given: Sequence[_Flowing],
    ran: _Counts,
    dtype: torch.dtype | None,
    stays: bool,
) -> _Part:
    """Run a part forward and backward, on what flows into it, and what ``stays`` is held by somebody else too."""
    hollow = Hollow()
    log, marks = hollow.bytes, [0] * 5

    def mark(place: int) -> Callable[[], None]:
        return lambda: marks.__setitem__(place, len(log))

    with hollow, torch.enable_grad():
        inputs = [arrive(shape, one.dtype, one.passes, mark(4)) for shape, one in zip(shapes, given, strict=True)]
        state = [tuple(inputs) if len(inputs) > 1 else inputs[0]]
        if not stays:
            inputs.clear()
        mark(0)()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            result = run(state.pop())
            mark(1)()
        mark(2)()
        outputs = list(result) if isinstance(result, tuple) else [result]
        flowing = tuple(_Flowing(tuple(one.shape[2:]), one.dtype, one.requires_grad) for one in outputs)
        passing = [one for one in outputs if one.requires_grad]
        del result, outputs
        if passing:
            departed = depart(passing.pop(), mark(3))
            departed.backward()
            if not marks[4]:  # no gradient was wanted of the input
                mark(4)()
    return _Part(log[: max(marks)], hollow.flops, marks, ran, flowing)


class Parts:
    """The parts of a model's steps, each run once.

    Args:
        model: as its method has prepared it; may lie on the meta device.
        image_size: side of the images, pixels.
    """

    def __init__(self, model: VisionTransformer, image_size: int) -> None:
        self._model = model
        channels = int(model.patch_embed.proj.in_channels)
        self._images = (_Flowing((channels, image_size, image_size), torch.float32, False),)
        self._prefix = int(model.num_prefix_tokens)
        self._tokens = (image_size // model.patch_embed.patch_size[0]) ** 2 + self._prefix
        others = {p.numel() for p in model.parameters()} | {self._tokens, self._tokens - self._prefix}
        self._run_with = _distinct(frozenset(others), self._prefix)
        self._labels_B = torch.empty(self._run_with[0], dtype=torch.int64)
        self._hollow: dict[object, HollowModel] = {}
        self._parts: dict[object, _Part] = {}

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
        parts: list[_Part] = []
        costs: list[_Cost] = []

        def add(kind: object, stage: Stage, block: Any = None, trains: bool = True) -> _Cost:
            given = parts[-1].output if parts else self._images
            part = self._part(hollow, kind, stage, given, precision, accumulating, block, trains)
            parts.append(part)
            costs.append(part.cost(self._counts(batch, stage.arriving, stage.leaving)))
            return costs[-1]

        embedded = add("embed", _whole(partial(embed, model), first))
        live, peak = embedded.left, embedded.peak
        if plan.calibrated:
            looked = add("calibrate", _whole(lambda x: relative_magnitudes(model.blocks, x.detach()), first))
            parts.pop(), costs.pop()
            peak = max(peak, live + looked.peak)
        flops = looked.flops if plan.calibrated else 0
        stages = hollow.flow.stages(plan)
        for stage, block, trains in zip(stages, blocks_of(model), plan.trainable_L, strict=True):
            cost = add((id(block), stage.kind, trains), stage, block, trains)
            peak, live = max(peak, live + cost.peak), live + cost.left
        leaving = stages[-1].leaving
        cost = add("end", Stage(partial(self._loss, model), leaving, leaving))
        peak, live = max(peak, live + cost.peak), live + cost.left
        held = live = live - sum(cost.copies for cost in costs)
        for part, cost in zip(reversed(parts), reversed(costs), strict=True):
            if any(one.passes for one in part.output):
                peak, live = max(peak, live + cost.backward_peak), live + cost.backward_left
        return StepBytes(flops + sum(cost.flops for cost in costs), held, peak, live)

    def _loss(self, model: VisionTransformer, x_BND: Tensor, leaving: int) -> Tensor:
        return F.cross_entropy(classify(model, x_BND), self._labels_B)

    def calibration_flops(self, config: MethodConfig, batch: int) -> int:
        """Count what calibration needs of a micro-batch that is not the step's first: a forward without a loss."""
        hollow = self._hollow_model(config)
        model = hollow.model

        def look(x: Tensor) -> Tensor:
            return relative_magnitudes(model.blocks, embed(model, x))

        return self._forward(hollow, "look", look, batch, "fp32").flops

    def evaluation(self, config: MethodConfig, batch: int, precision: Precision = "fp32") -> tuple[int, int]:
        """Give FLOPs and peak of a forward as evaluation does it, the model's own on all tokens."""
        hollow = self._hollow_model(config)
        cost = self._forward(hollow, "evaluate", hollow.model, batch, precision)
        return cost.flops, cost.peak

    def _forward(
        self, hollow: HollowModel, kind: str, run: Callable[[Tensor], Any], batch: int, precision: Precision
    ) -> _Cost:
        stage = _whole(torch.no_grad()(lambda x: run(x)), self._tokens)
        part = self._part(hollow, kind, stage, self._images, precision, False)
        return part.cost(self._counts(batch, self._tokens, self._tokens))

    def _hollow_model(self, config: MethodConfig) -> HollowModel:
        """Get the hollow copy for those of a method's settings that decide how it trains a model that it prepared."""
        setup = type(config), *(getattr(config, name, None) for name in _SETTINGS)
        if setup not in self._hollow:
            self._hollow[setup] = HollowModel(config, self._model)
        return self._hollow[setup]

    def _counts(self, batch: int, arriving: int, leaving: int) -> _Counts:
        return batch, arriving, leaving, arriving - self._prefix, leaving - self._prefix

    def _part(
        self,
        hollow: HollowModel,
        kind: object,
        stage: Stage,
        given: tuple[_Flowing, ...],
        precision: Precision,
        accumulating: bool,
        block: Any = None,
        trains: bool = True,
    ) -> _Part:
        drops = stage.leaving < stage.arriving
        tokens = drops if stage.scales else (stage.arriving, stage.leaving)
        key = id(hollow), kind, tokens, given, precision, accumulating
        if key not in self._parts:
            batch, arriving, leaving = self._run_with
            leaving = leaving if drops else arriving
            ran = self._counts(batch, arriving, leaving)
            ran = ran if drops else (*ran[:2], 1, ran[3], 1)
            if not stage.scales:
                arriving, leaving, ran = stage.arriving, stage.leaving, (batch, 1, 1, 1, 1)
            hollow.prepare(block, trains, accumulating)
            first = given is self._images
            around = (batch,) if first else (batch, arriving)
            shapes = [(*around, *one.shape) for one in given]
            self._parts[key] = _run(lambda x: stage.run(x, leaving), shapes, given, ran, _DTYPES[precision], first)
        return self._parts[key]


def _whole(run: Callable[[Tensor], Any], tokens: int) -> Stage:
    """Make a stage of what always has all tokens."""
    return Stage(lambda x, leaving: run(x), tokens, tokens, scales=False)
