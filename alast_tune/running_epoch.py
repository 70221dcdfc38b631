"""An epoch that is running: what its steps have come to and what is drawn in it, so that it can be gone on with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from alast_tune.errors import DivergedError
from alast_tune.methods import StepPlan
from alast_tune.parallel import total_over_ranks, world

_DROPOUT = 1
"""What is drawn in an epoch besides its order and its images, from a stream of its own."""


class RunningEpoch:
    """The steps of an epoch so far.

    Args:
        number: of the epoch, from 0.
        depth: blocks of the model.
        device: that it trains on.
    """

    def __init__(self, number: int, depth: int, device: torch.device) -> None:
        self.number = number
        self.steps = 0
        self.trained_L, self.tokens_L = (np.zeros(depth, dtype=int) for _ in range(2))
        self._losses = torch.zeros((), device=device)  # this rank's part of the steps' sum
        self._drawing: dict[str, Tensor] | None = None  # where a resumed epoch's draws go on

    def begin(self, seed: int) -> None:
        """Let what is drawn at random in its steps begin, or go on where the checkpoint was written."""
        seed_dropout(seed, self.number)
        if self._drawing is not None:
            torch.set_rng_state(self._drawing["cpu"])
            if self._losses.is_cuda and "cuda" in self._drawing:
                torch.cuda.set_rng_state(self._drawing["cuda"], self._losses.device)

    def add(self, loss: Tensor, plan: StepPlan) -> None:
        """Take in a step."""
        self._losses += loss
        self.trained_L += plan.trainable_L
        self.tokens_L += plan.computed_tokens
        self.steps += 1

    def mean_loss(self) -> float:
        """Mean loss of the steps so far, the same on every rank; the host waits for the device.

        Raises:
            DivergedError: it is not finite.
        """
        mean = total_over_ranks(self._losses, 1)[0].item() / self.steps
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss of epoch {self.number + 1} is {mean}: training has diverged; lower train.learning_rate"
            )
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint, of all ranks; every rank has to ask."""
        drawing = {"cpu": torch.get_rng_state()}
        if self._losses.is_cuda:
            drawing["cuda"] = torch.cuda.get_rng_state(self._losses.device)
        own = {"losses": self._losses.cpu(), "drawing": drawing}
        ranks = [own] * world()[1]
        if len(ranks) > 1:
            distributed.all_gather_object(ranks, own)
        return {
            "steps": self.steps,
            "trained": self.trained_L.tolist(),
            "tokens": self.tokens_L.tolist(),
            "ranks": ranks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; of another number of ranks each draws dropout from its beginning."""
        self.steps = state["steps"]
        self.trained_L, self.tokens_L = np.array(state["trained"]), np.array(state["tokens"])
        (rank, ranks), saved = world(), state["ranks"]
        if len(saved) == ranks:
            self._losses.copy_(saved[rank]["losses"])
            self._drawing = saved[rank]["drawing"]
        elif rank == 0:
            self._losses.copy_(torch.stack([one["losses"] for one in saved]).sum())


def seed_dropout(seed: int, epoch: int) -> None:
    """Let every rank, at every epoch, drop out on its own."""
    words = np.random.SeedSequence([seed, epoch, _DROPOUT, world()[0]])
    torch.manual_seed(int(words.generate_state(1)[0]))
