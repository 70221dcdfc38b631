"""What training costs: one meter for every method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from alast_tune.config import MethodConfig
from alast_tune.cost.clock import Clock
from alast_tune.cost.flops import forward_flops, step_flops
from alast_tune.cost.memory import MemoryMeter, step_peak_bytes
from alast_tune.methods.base import Method
from alast_tune.models import VisionTransformer
from alast_tune.results import Measurements

__all__ = ["Clock", "MemoryMeter", "Meter", "forward_flops", "step_flops", "step_peak_bytes"]


class Meter:
    """Adds up the FLOPs, the peaks and the time of a run's training steps."""

    def __init__(self, model: VisionTransformer, method_config: MethodConfig, optimizer: Optimizer) -> None:
        self.clock = Clock()
        self._model = model
        self._method_config = method_config
        self._memory = MemoryMeter(model, method_config, optimizer)
        self._flops = 0

    @contextmanager
    def step(self, method: Method, images_BCHW: Tensor) -> Iterator[None]:
        """Run one training step inside, from its forward to its update."""
        with self._memory.step(method, images_BCHW):
            yield
        batch, _, _, side = images_BCHW.shape
        self._flops += step_flops(self._model, self._method_config, method.plan, side, batch)

    def read(self) -> Measurements:
        """Sum up the run so far."""
        return Measurements(
            train_flops=self._flops,
            peak_bytes=self._memory.peak_bytes,
            steady_peak_bytes=self._memory.steady_peak_bytes,
            wall_seconds=self.clock.wall_seconds,
            train_seconds=self.clock.train_seconds,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"clock": self.clock.state_dict(), "memory": self._memory.state_dict(), "flops": self._flops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken."""
        self.clock.load_state_dict(state["clock"])
        self._memory.load_state_dict(state["memory"])
        self._flops = state["flops"]
