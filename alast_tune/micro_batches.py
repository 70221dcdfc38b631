"""Into how many micro-batches a batch is split: as set, or the fewest that keep a limit of memory."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import ByteSize
from torch.optim import Optimizer

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.cost import StepCosts
from alast_tune.data import Splits
from alast_tune.device import precision_of
from alast_tune.errors import ConfigError, MemoryLimitError
from alast_tune.methods.base import FirstLook, Method, StepPlan
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import Backbone, embed
from alast_tune.parallel import largest_over_ranks, world
from alast_tune.phases import Phase

IMAGES = 4
"""Real images from which ALaST's first budgets are found."""

GROWTH = 2.0
"""Of the class-token deltas while training, for a peak that is seldom exceeded."""


def first_look(model: Backbone, splits: Splits) -> FirstLook:
    """See how a model, untouched and with its weights, moves the summary of a few images; its own has no weights."""
    spread = torch.linspace(0, len(splits.validation) - 1, IMAGES).int().tolist()
    images_BCHW, _ = splits.validation.__getitems__(spread)  # these are never augmented
    was_training = model.training
    model.eval()  # no path is dropped
    with torch.inference_mode():
        magnitudes_L, deltas_L = summary_updates(model, embed(model, images_BCHW))
    model.train(was_training)
    return FirstLook(copy.deepcopy(model).to("meta"), len(images_BCHW), magnitudes_L, deltas_L)


def check_limit(train: TrainConfig) -> None:
    """Refuse micro-batches that follow from a limit which nobody has set.

    Raises:
        ConfigError: this.
    """
    if train.accumulate == "auto" and train.max_memory is None:
        remedy = "there is no limit that it could keep; set train.max_memory (2GiB, say), in a sweep --max-memory"
        raise ConfigError("train.accumulate", "auto", remedy)


def micro_batches(
    train: TrainConfig,
    costs: StepCosts,
    config: MethodConfig,
    plans: Iterable[StepPlan],
    batch: int,
    optimizer: Optimizer,
) -> int:
    """Say into how many micro-batches a batch is split, the same for all steps of a size.

    Args:
        train: its ``accumulate``: a number, or auto, the fewest with no step's predicted peak above ``max_memory``.
        costs: of the model, at the images' size.
        config: of the method.
        plans: that steps may have; the heaviest counts, and without a limit none.
        batch: images of a step, of one rank.
        optimizer: that steps update with.

    Raises:
        ConfigError: auto without a limit.
        MemoryLimitError: a step is predicted to exceed the limit; with auto, even one image at a time.
    """
    check_limit(train)
    limit_bytes, auto = train.max_memory, train.accumulate == "auto"
    least = batch if train.accumulate == "auto" else min(train.accumulate, batch)
    if limit_bytes is None:
        return least

    precision = precision_of(train)

    def peak_bytes(parts: int) -> int:
        steps = (costs.step(config, plan, batch, optimizer, precision, parts) for plan in plans)
        return max(step.peak_bytes for step in steps)

    plans = list(plans)
    if (lowest_bytes := peak_bytes(least)) > limit_bytes:
        peak = ByteSize(lowest_bytes).human_readable()
        what = "even one image at a time is" if auto else f"the images of train.accumulate = {least} are"
        more = "take" if auto else "set train.accumulate: auto, or take"
        remedy = f"{what} predicted to take {peak}; give more, or {more} a smaller model or image, or checkpoint_blocks"
        raise MemoryLimitError("train.max_memory", limit_bytes.human_readable(), remedy, lowest_bytes)
    if not auto or peak_bytes(1) <= limit_bytes:
        return 1 if auto else least
    # From two on, more of them never take more; the second one's backward adds to gradients that are there already.
    return 2 + bisect_left(range(2, batch), True, key=lambda parts: peak_bytes(parts) <= limit_bytes)


class Splitting:
    """Into how many parts a run's steps split a rank's share of a batch: found once for each size of image.

    Args:
        train: the training loop.
        model: untouched, with its weights.
        splits: of the data.
    """

    def __init__(self, train: TrainConfig, model: Backbone, splits: Splits) -> None:
        self._train = train
        self._look = None if train.max_memory is None else first_look(model, splits)
        self.batch = min(train.batch_size, len(splits.train))
        """Images of a batch, of all ranks: there is no smaller one."""
        self.share = -(-self.batch // world()[1])
        """Most images that this rank gets of a batch."""
        self._parts: dict[tuple[str, int, float], int] = {}  # by settings of the method, images' size, tokens' share

    def parts(self, method: Method, costs: StepCosts, optimizer: Optimizer, phase: Phase) -> int:
        """Say into how many, the same on all ranks; every rank has to ask.

        Args:
            method: whose steps they are.
            costs: of the model, at the images' size.
            optimizer: that steps update with.
            phase: of the run.

        Raises:
            MemoryLimitError: not even one image at a time keeps the limit of memory.
        """
        key = method.config.model_dump_json(), costs.image_size, phase.token_keep
        if key not in self._parts:
            plans: Iterable[StepPlan] = ()
            if self._look is not None:
                plan = method.plan_for(costs.image_size, phase.token_keep)
                plans = method.config.foresee(self._look, plan, self._train, self.share, GROWTH).heaviest
            parts = micro_batches(self._train, costs, method.config, plans, self.share, optimizer)
            (self._parts[key],) = largest_over_ranks(parts)
        return self._parts[key]

    def state_dict(self) -> dict[str, Any]:
        """What has been found: a resumed run need not come to the same, on another machine."""
        return {"parts": dict(self._parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._parts |= state.get("parts", {})
