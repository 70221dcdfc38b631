"""An exponential moving average of the weights that train (EMA), as timm's ``ModelEmaV3`` computes it.

timm copies the whole model; here what trains is averaged alone, for the average of a frozen weight is the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average, beside the weights; none is kept without a decay.

    Args:
        parameters: that may ever train.
        decay: of each step, in (0, 1); rises to it from 0: 1 - (1 + n)^(-2/3) after n + 1 updates, if that is less.
            None: there is no average, and the weights are what is evaluated.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float | None) -> None:
        self._parameters, self._decay = list(parameters), decay
        self._updates = 0
        self.tensors: list[Tensor] = [] if decay is None else [p.detach().clone() for p in parameters]
        """The averages, one a parameter."""

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update."""
        if self._decay is not None:
            decay = min(self._decay, 1 - (1 + self._updates) ** (-2 / 3))
            torch._foreach_lerp_(self.tensors, [p.detach() for p in self._parameters], 1 - decay)
            self._updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights inside; takes no memory."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for place, average in enumerate(self.tensors):
            parameter = self._parameters[place]
            self.tensors[place], parameter.data = parameter.data, average

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"updates": self._updates, "tensors": list(self.tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._updates = state["updates"]
        for average, kept in zip(self.tensors, state["tensors"], strict=True):
            average.copy_(kept)
