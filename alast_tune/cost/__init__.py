"""What training costs: one meter for every method.

``prediction.py`` says what a step will cost, from its plan alone: composed of parts (``part.py``) run without data
(``hollow.py``); ``memory.py`` and ``clock.py`` measure; ``ledger.py`` writes a line a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from alast_tune.config import FullConfig, MethodConfig, TrainConfig
from alast_tune.cost.clock import Clock
from alast_tune.cost.ledger import STEPS, Ledger, StepRecord
from alast_tune.cost.memory import MemoryMeter
from alast_tune.cost.prediction import StepCost, StepCosts, step_flops, step_peak_bytes
from alast_tune.device import precision_of
from alast_tune.methods.base import Method, StepPlan
from alast_tune.models.backbone import Backbone, token_count
from alast_tune.parallel import largest_over_ranks
from alast_tune.results import Measurements

__all__ = [
    "STEPS",
    "Ledger",
    "MemoryMeter",
    "Meter",
    "StepCost",
    "StepCosts",
    "step_flops",
    "step_peak_bytes",
]

_SUMS = ("flops", "exploration_flops", "heaviest_bytes")


@dataclass(frozen=True)
class _Queued:
    """A step that the device has got, of which no line has been written."""

    method: Method
    plan: StepPlan
    own: int
    """Images of this rank,"""
    batch: int
    """and of all ranks."""
    cost: Callable[[MethodConfig, StepPlan, int], StepCost]
    """Of the same images under a method's plan, at a size."""
    side: int
    """Of the images, pixels."""
    probe: bool
    measured_peak_bytes: int

    def budgets(self) -> tuple[float, ...]:
        """Budgets after the step: where the device has not come to them, the host waits."""
        return getattr(self.method, "budgets", ())


class Meter:
    """Adds up the FLOPs, the peaks and the time of a run's training steps, and writes a line about each.

    Evaluation counts for the peak alone. A step's line is written when the device has the next one to work at, or when
    somebody looks at the numbers: neither what a new plan costs nor budgets, which come late, make the device wait.
    """

    def __init__(self, model: Backbone, train: TrainConfig) -> None:
        self.clock = Clock()
        self._ledger = Ledger()
        self._queued: _Queued | None = None
        self.exploring = False
        self._model = model
        self._train = train
        self._precision = precision_of(train)
        self._memory = MemoryMeter(model)
        self._by_size: dict[tuple[int, bool], StepCosts] = {}
        self._flops = 0
        self._exploration_flops = 0
        self._heaviest_bytes = 0  # of all predicted steps

    @property
    def steps(self) -> int:
        """How many there have been, whether written down or not."""
        return self._ledger.steps + (self._queued is not None)

    @property
    def ledger(self) -> Ledger:
        """The steps' lines, all of them."""
        self._write()
        return self._ledger

    def _write(self) -> None:
        """Write the line that is missing, if there is one."""
        if self._queued is not None:
            queued, self._queued = self._queued, None
            self._add(queued, queued.budgets())

    @contextmanager
    def step(
        self, method: Method, optimizer: Optimizer, images_BCHW: Tensor, batch: int, parts: int = 1
    ) -> Iterator[None]:
        """Run one training step inside, from its first forward to its update.

        ``images_BCHW`` are this rank's, split into ``parts`` micro-batches; ``batch`` counts the images of all ranks.
        FLOPs are all ranks', bytes this one's.
        """
        before, self._queued = self._queued, None
        budgets_L = () if before is None else before.budgets()  # known: this step rests on them
        own, side = len(images_BCHW), self.image_size(images_BCHW)
        cost = partial(self._cost, own, optimizer, parts)
        with self._memory.step(lambda: cost(method.config, method.plan, side).peak_bytes, optimizer, images_BCHW):
            yield
        if before is not None:
            self._add(before, budgets_L)
        self._queued = _Queued(method, method.plan, own, batch, cost, side, self.exploring, self._memory.last_bytes)

    def _cost(
        self, images: int, optimizer: Optimizer, parts: int, config: MethodConfig, plan: StepPlan, image_size: int
    ) -> StepCost:
        return self.costs(image_size).step(config, plan, images, optimizer, self._precision, parts)

    def _add(self, step: _Queued, budgets_L: tuple[float, ...]) -> None:
        """Write a step's line and add up what it says."""
        done = step.cost(step.method.config, step.plan, step.side)
        tokens_L, trainable_L = step.plan.tokens_L, step.plan.trainable_L
        depth, whole = len(tokens_L), int(self._model.patch_embed.img_size[0])
        full = step.cost(FullConfig(), StepPlan((token_count(self._model),) * depth, (True,) * depth), whole)
        record = StepRecord(
            step=self._ledger.steps,
            images=step.batch,
            probe=step.probe,
            flops=done.flops * step.batch // step.own,  # every image costs the same
            held_bytes=done.held_bytes,
            full_held_bytes=full.held_bytes,
            predicted_peak_bytes=done.peak_bytes,
            measured_peak_bytes=step.measured_peak_bytes,
            trainable_L=trainable_L,
            tokens_L=step.plan.computed_tokens,
            budgets_L=budgets_L,
        )
        self._flops += record.flops
        self._heaviest_bytes = max(self._heaviest_bytes, done.peak_bytes)
        self._ledger.add(record)

    @contextmanager
    def evaluation(self, optimizer: Optimizer, image_size: int, most: int, start: int = 0) -> Iterator[int]:
        """Measure an evaluation; yields how many images to take at a time, so that its peak stays below training's.

        Args:
            optimizer: whose moments are there meanwhile.
            image_size: side of the images, pixels.
            most: images of the training's forwards.
            start: first block that runs.
        """
        self._write()
        size, predicted = most, 0
        if self._heaviest_bytes:
            size, predicted = self.costs(image_size).evaluation_batch(
                most, self._heaviest_bytes, optimizer, self._precision, start
            )
        with self._memory.evaluation(predicted, optimizer):
            yield size

    @contextmanager
    def trunk(self, method: Method, optimizer: Optimizer, image_size: int, most: int) -> Iterator[int]:
        """Measure a pass over all images up to the block at which steps begin; yields how many to take at a time.

        Args:
            method: with the plan of its steps.
            optimizer: whose moments will be there.
            image_size: side of the images, pixels.
            most: images of a step's forward.
        """
        costs, setup = self.costs(image_size), (method.config, method.plan)
        size, predicted = costs.trunk_batch(*setup, most, optimizer, self._precision)
        self._heaviest_bytes = max(self._heaviest_bytes, predicted)  # so much is taken anyway
        with self._memory.evaluation(predicted, optimizer):
            yield size

    def add_trunk(self, method: Method, image_size: int, images: int) -> None:
        """Count that pass; ``images`` are those of all ranks, views counted."""
        self._flops += self.costs(image_size).trunk_flops(method.config, method.plan) * images

    def image_size(self, images_BCHW: Tensor) -> int:
        """Say how large a step's images are; features, (B, N, D), do not show it."""
        return images_BCHW.shape[-1] if images_BCHW.dim() == 4 else int(self._model.patch_embed.img_size[0])

    def costs(self, image_size: int) -> StepCosts:
        """Predict steps on images of a size; while exploring no weights are averaged."""
        key = image_size, self.exploring
        if key not in self._by_size:
            train = self._train.model_copy(update={"ema": None}) if self.exploring else self._train
            self._by_size[key] = StepCosts(self._model, image_size, train)
        return self._by_size[key]

    def keep(self, tensors: list[Tensor]) -> None:
        """Hear of tensors that are there all the time beside the model and its moments: averages of weights."""
        self._memory.others = tensors

    def add_forward(self, image_size: int, images: int) -> None:
        """Count forwards, all tokens, that a method needed beside its steps; ``images`` are all ranks'."""
        self._flops += self.costs(image_size).forward_flops(images)

    def end_exploration(self) -> None:
        """Remember what has been spent so far as the price of exploration."""
        self._write()
        self.exploring, self._exploration_flops = False, self._flops

    def read(self) -> Measurements:
        """Sum up the run so far: FLOPs of all ranks, bytes of the one that takes most. Every rank has to call it."""
        self._write()
        peak_bytes, steady_peak_bytes = largest_over_ranks(self._memory.peak_bytes, self._memory.steady_peak_bytes)
        return Measurements(
            train_flops=self._flops,
            peak_bytes=peak_bytes,
            steady_peak_bytes=steady_peak_bytes,
            exploration_flops=self._exploration_flops,
            **self.clock.read(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        parts = {"clock": self.clock.read(), "memory": self._memory.state_dict(), "ledger": self.ledger.state_dict()}
        return parts | {name: getattr(self, f"_{name}") for name in _SUMS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.clock = Clock(**state["clock"])
        self._memory.load_state_dict(state["memory"])
        self._queued = None
        self._ledger.load_state_dict(state["ledger"])
        for name in _SUMS:
            setattr(self, f"_{name}", state[name])
