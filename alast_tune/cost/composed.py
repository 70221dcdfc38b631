"""A step's cost, composed from those of its parts: a new plan costs a few look-ups, not a walk.

Each distinct part (embedding, kind of block on so many tokens, dropping of tokens, calibration, classifier with its
loss) is walked once on a tape of its own (``step.py``). What it adds is kept: its FLOPs, and live bytes relative to
those at its start, forward and backward. Between two parts only tokens go one way and their gradient the other, so that
adding parts up gives what a walk over the whole step gives, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from alast_tune.config import AlastConfig, BsrConfig, MethodConfig, TomeConfig
from alast_tune.cost.step import StepOnTape
from alast_tune.cost.tape import FLOAT, Tape, Tensor
from alast_tune.methods.base import StepPlan, blocks_of
from alast_tune.methods.parameters import trainable_parameters
from alast_tune.models import VisionTransformer


@dataclass(frozen=True)
class Part:
    """What a part of a step adds; bytes relative to those live at its start, its input or its gradient among them."""

    flops: int
    """Forward and backward."""
    peak: int
    """Highest in the forward."""
    left: int = 0
    """After the forward, with the output; of that"""
    tapped: int = 0
    """queries, keys and values that only wait for the tokens' scores,"""
    named: int = 0
    """the input, which timm's own forward has a name for until the last block has run, or the loss,"""
    copies: int = 0
    """autocast's copies of weights, which go when the forward has ended."""
    passes: bool = False
    """Whether a gradient comes back to the output."""
    backward_peak: int = 0
    backward_left: int = 0
    """After the backward, with the gradient of the input."""


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
class _Trainable:
    """What may ever train under a method, by ids of parameters."""

    all: frozenset[int]
    of_block_L: tuple[frozenset[int], ...]
    kind_L: tuple[int, ...]
    """Blocks of the same number have parameters of the same shapes, and the same of them may train."""


class Parts:
    """The parts of a model's steps, each walked once.

    Args:
        model: as its method has prepared it; may lie on the meta device.
        image_size: side of the images, pixels.
    """

    def __init__(self, model: VisionTransformer, image_size: int) -> None:
        self.model = model
        self.image_size = image_size
        self._blocks = blocks_of(model)
        self._trainable: dict[object, _Trainable] = {}
        self._kinds: dict[object, int] = {}
        self._parts: dict[object, Part] = {}
        self._whole: dict[object, StepBytes] = {}

    def step(
        self, config: MethodConfig, plan: StepPlan, batch: int, product_width: int = FLOAT, accumulating: bool = False
    ) -> StepBytes:
        """Compose one micro-batch's step; arguments as :class:`~alast_tune.cost.step.StepOnTape`'s."""
        common = (batch, product_width, accumulating)
        if isinstance(config, TomeConfig):  # what merges goes between the halves of a block, and no plan is a new one
            return self._walk_whole(config, plan, common)
        setup = _setup(config)
        trainable = self._trainable_of(config, setup)
        residual = isinstance(config, AlastConfig) and config.frozen_backward == "residual"
        learns = isinstance(config, AlastConfig) and config.budget_timing == "same_step"
        names_input = not isinstance(config, AlastConfig | BsrConfig)
        tokens_L, depth = plan.tokens_L, len(self._blocks)

        def part(name: object, walk: Callable[[StepOnTape], Part], trains: frozenset[int] = frozenset()) -> Part:
            key = (name, common)
            if key not in self._parts:
                self._parts[key] = walk(StepOnTape(self.model, config, plan, self.image_size, *common, trains=trains))
            return self._parts[key]

        first = part(("embed", setup), lambda step: _walk(step.tape, lambda _: step.embed()), trainable.all)
        live, peak, flops, copies, named = first.left, first.peak, first.flops, first.copies, 0
        passed = [first]
        if plan.calibrated:
            looked = part("calibrate", lambda step: _calibration(step, self._count(batch, tokens_L[0])))
            peak, flops = max(peak, live + looked.peak), flops + looked.flops
        for index, (block, tokens) in enumerate(zip(self._blocks, tokens_L, strict=True)):
            after = tokens_L[min(index + 1, depth - 1)]
            drops = after < tokens
            listens = drops or (learns and index + 1 < depth)
            trains, kind = plan.trainable_L[index], trainable.kind_L[index]
            given = _Given(self._count(batch, tokens), passed[-1].passes, names_input and index == 0)
            ran = part(
                ("block", kind, tokens, trains, given, listens, residual),
                partial(_block, block=block, tokens=tokens, trains=trains, listens=listens, given=given),
                trainable.of_block_L[index] if trains else frozenset(),
            )
            peak, live = max(peak, live + ran.peak), live + ran.left
            flops, copies, named = flops + ran.flops, copies + ran.copies, named + ran.named
            passed.append(ran)
            if drops:
                given = _Given(self._count(batch, tokens), ran.passes)
                dropped = part(
                    ("drop", kind, tokens, after, given, ran.tapped > 0),
                    partial(_drop, block=block, tokens=tokens, after=after, given=given, tapped=ran.tapped > 0),
                )
                peak, live, flops = max(peak, live + dropped.peak), live + dropped.left, flops + dropped.flops
                passed.append(dropped)
            else:
                live -= ran.tapped
        given = _Given(self._count(batch, tokens_L[-1]), passed[-1].passes)
        end = part(
            ("end", setup, tokens_L[-1], given),
            lambda step: _walk(step.tape, lambda x: step.loss(_pop_into(step.classify, x)), given, ends=True),
            trainable.all,
        )
        passed.append(end)
        live -= named
        peak, live, flops = max(peak, live + end.peak), live + end.left - copies - end.copies, flops + end.flops
        held = live
        for one in reversed(passed):
            if one.passes:
                peak, live = max(peak, live + one.backward_peak), live + one.backward_left
        return StepBytes(flops, held, peak, live - end.named)

    def _count(self, batch: int, tokens: int) -> int:
        return batch * tokens * int(self.model.embed_dim)

    def _walk_whole(self, config: MethodConfig, plan: StepPlan, common: tuple[int, int, bool]) -> StepBytes:
        key = (config, plan, common)
        if key not in self._whole:
            step = StepOnTape(self.model, config, plan, self.image_size, *common).run()
            self._whole[key] = StepBytes(step.tape.flops, step.held_bytes, step.tape.peak_bytes, step.tape.live_bytes)
        return self._whole[key]

    def _trainable_of(self, config: MethodConfig, setup: object) -> _Trainable:
        if setup not in self._trainable:
            may = frozenset(id(p) for p in trainable_parameters(config, self.model))
            named_L = [list(block.named_parameters()) for block in self._blocks]
            kinds_L = [tuple((name, p.shape, id(p) in may) for name, p in named) for named in named_L]
            self._trainable[setup] = _Trainable(
                may,
                tuple(may & {id(p) for _, p in named} for named in named_L),
                tuple(self._kinds.setdefault(kind, len(self._kinds)) for kind in kinds_L),
            )
        return self._trainable[setup]


@dataclass(frozen=True)
class _Given:
    """A part's input."""

    count: int
    """Numbers, in single precision."""
    passes: bool
    """Whether its gradient is wanted."""
    named: bool = False
    """Whether somebody else has a name for it."""


def _setup(config: MethodConfig) -> object:
    """Give what of a method's settings decides which parameters may train, on a model that it has prepared."""
    return type(config), getattr(config, "blocks", None), getattr(config, "train_embeddings", None)


def _walk(
    tape: Tape,
    forward: Callable[[list[Tensor]], Tensor],
    given: _Given | None = None,
    tap: StepOnTape | None = None,
    ends: bool = False,
) -> Part:
    """Walk a part forward and backward.

    Args:
        tape: a new one.
        forward: takes the input out of a list, in which nothing holds it, to the output.
        given: the input.
        tap: whose hold on queries, keys and values ends when the part has run.
        ends: the output is the loss, and stays.
    """
    came_back: list[tuple[int, int]] = []
    inputs: list[Tensor] = []
    if given is not None:
        inputs.append(tape.new(given.count))
        if given.passes:
            tape.attach(inputs[0], [], lambda _: came_back.append((tape.peak_bytes, tape.live_bytes)) or ())  # type: ignore[func-returns-value]
    return _measure(tape, forward, inputs, came_back, inputs[0] if given and given.named else None, tap, ends)


def _measure(
    tape: Tape,
    forward: Callable[[list[Tensor]], Tensor],
    inputs: list[Tensor],
    came_back: list[tuple[int, int]],
    name: Tensor | None,
    tap: StepOnTape | None,
    ends: bool,
) -> Part:
    start = tape.peak_bytes = tape.live_bytes
    output = forward(inputs)
    peak, left = tape.peak_bytes - start, tape.live_bytes - start
    if tap is not None:
        tap.forget()
    tapped = left - (tape.live_bytes - start)
    before = tape.live_bytes
    del name
    named = before - tape.live_bytes
    before = tape.live_bytes
    tape.end_autocast()
    copies = before - tape.live_bytes
    node, size = output.node, output.size
    kept = output if ends else None
    del output
    back = tape.peak_bytes = tape.live_bytes + size
    if node is None:
        return Part(tape.flops, peak, left, tapped, named, copies)
    if ends:
        back = tape.peak_bytes = tape.live_bytes
    tape.backward_from(node, size)
    highest, after = came_back[0] if came_back else (tape.peak_bytes, tape.live_bytes)
    del kept
    return Part(tape.flops, peak, left, tapped, size if ends else named, copies, True, highest - back, after - back)


def _block(step: StepOnTape, block: nn.Module, tokens: int, trains: bool, listens: bool, given: _Given) -> Part:
    return _walk(step.tape, lambda x: step.run_block(block, x.pop(), tokens, trains, listens), given, step)


def _drop(step: StepOnTape, block: nn.Module, tokens: int, after: int, given: _Given, tapped: bool) -> Part:
    """Walk the dropping of tokens, after a block whose queries, keys and values nothing else holds if ``tapped``."""
    also: Tensor | None = step.tap(given.count)
    if tapped:
        also = None
    part = _walk(step.tape, lambda x: step.keep(block.attn, x.pop(), tokens, after), given)
    del also
    return part


def _calibration(step: StepOnTape, count: int) -> Part:
    x, tape = step.tape.new(count), step.tape
    start = tape.peak_bytes = tape.live_bytes
    with tape.no_grad():
        step.run_calibration(x)
    return Part(tape.flops, tape.peak_bytes - start)


def _pop_into(function: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Tensor:
    """Call with the input, which its caller has a name for meanwhile."""
    x = inputs.pop()
    return function(x)
