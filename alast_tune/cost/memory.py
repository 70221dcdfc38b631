"""Peak memory of training steps: predicted in closed form, measured by the allocator or a tracker.

On CUDA every step is measured by the allocator. On a CPU live tensor bytes are measured by
torch's ``MemTracker``, which slows a step down severalfold: only steps whose plan is predicted
to be heavier than all before are probed, and the others' peaks are the prediction, scaled by
the last probe's ratio of measured to predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.optim import Optimizer

from alast_tune.config import AlastConfig, HeadConfig, MethodConfig
from alast_tune.methods.base import Method, StepPlan, blocks_of
from alast_tune.models import VisionTransformer

_BYTES = 4  # single precision
_HEAVIER = 1.02  # a plan predicted heavier by less is not worth another probe


def step_peak_bytes(
    model: VisionTransformer,
    method_config: MethodConfig,
    plan: StepPlan,
    image_size: int,
    batch: int,
    optimizer: Optimizer,
) -> int:
    """Predict the peak of live tensor bytes of one training step under a plan, single precision.

    Weights, the optimizer's moments, and the larger of what the forward leaves for the backward
    and what the update needs (gradients, and as much again in temporaries).
    """
    weights = sum(p.numel() for p in model.parameters())
    updated = _updated(optimizer)
    frozen = sum(
        sum(p.numel() for p in block.parameters())
        for block, trains in zip(model.blocks, plan.trainable_L, strict=True)
        if not trains and not isinstance(method_config, HeadConfig)
    )
    gradients = updated - frozen
    images = batch * 3 * image_size**2
    activations = batch * saved_elements(model, method_config, plan)
    return _BYTES * (weights + _moments(optimizer) + images + max(activations, 2 * gradients))


def _moments(optimizer: Optimizer) -> int:
    """Numbers the optimizer keeps once every parameter has been updated."""
    return 0 if isinstance(optimizer, torch.optim.SGD) else 2 * _updated(optimizer)


def _updated(optimizer: Optimizer) -> int:
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def saved_elements(model: VisionTransformer, method_config: MethodConfig, plan: StepPlan) -> int:
    """Count the numbers an image's forward holds at its peak: what is saved for the backward, or one block's work."""
    alast = method_config if isinstance(method_config, AlastConfig) else None
    graph = not isinstance(method_config, HeadConfig) and (alast is None or alast.train_embeddings)
    residual = alast is not None and alast.frozen_backward == "residual"
    saved, peak = 0, 0
    for block, tokens, trains in zip(blocks_of(model), plan.tokens_L, plan.trainable_L, strict=True):
        width, attention = block.norm1.weight.numel(), block.attn.attn_dim
        hidden = block.mlp.fc1.out_features
        # norm inputs (2), queries, keys, values, attention's output, activation's input
        through = 2 * width + 4 * attention + hidden
        working = saved + tokens * (3 * width + 2 * hidden)
        if trains:
            saved += tokens * (through + 2 * width + hidden)  # and the linear layers' inputs
        elif graph and not residual:
            saved += tokens * through
        graph = graph or trains
        peak = max(peak, working, saved)
    return peak


class MemoryMeter:
    """Peak bytes over a run's steps, and their median (the steady peak)."""

    def __init__(self, model: VisionTransformer, method_config: MethodConfig, optimizer: Optimizer) -> None:
        self._model = model
        self._method_config = method_config
        self._optimizer = optimizer
        self._peaks: Counter[int] = Counter()  # bytes, measured on CUDA and predicted on a CPU -> steps
        self._asked = 0  # heaviest prediction for which a probe has been tried
        self._probed = 0  # heaviest prediction of a step that was measured,
        self._measured = 0  # the largest measurement,
        self._scale = 1.0  # and how it compares with that prediction
        self._cuda = next(model.parameters()).is_cuda

    @contextmanager
    def step(self, method: Method, images_BCHW: Tensor) -> Iterator[None]:
        """Run one training step inside; measure it where that is free or its plan is a new heaviest."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            yield
            self._measured = max(self._measured, torch.cuda.max_memory_allocated())
            self._peaks[torch.cuda.max_memory_allocated()] += 1
            return
        missing = _BYTES * (_moments(self._optimizer) - self._present_moments())
        # Under `same_step` the plan is known only afterwards: a step heavier than expected has the next one probed.
        expected = max(self._predict(method.plan, images_BCHW) - missing, max(self._peaks, default=0))
        probe = expected > _HEAVIER * self._asked
        tracking = track_live_bytes(self._model, self._optimizer, images_BCHW) if probe else nullcontext([0])
        with tracking as measured:
            yield
        predicted = self._predict(method.plan, images_BCHW) - missing
        self._peaks[predicted] += 1
        if probe:
            self._asked = max(self._asked, expected)
            self._measured = max(self._measured, measured[0])
            if predicted > self._probed:
                self._probed, self._scale = predicted, measured[0] / predicted

    def _predict(self, plan: StepPlan, images_BCHW: Tensor) -> int:
        return step_peak_bytes(
            self._model, self._method_config, plan, images_BCHW.shape[-1], len(images_BCHW), self._optimizer
        )

    def _present_moments(self) -> int:
        """Numbers in the optimizer's moments so far: they come into being at a parameter's first update."""
        return sum(t.numel() for state in self._optimizer.state.values() for t in state.values() if t.dim())

    @property
    def peak_bytes(self) -> int:
        """Largest peak of any step so far."""
        heaviest = max(self._peaks, default=0)
        if self._cuda or heaviest <= _HEAVIER * self._probed:
            return self._measured
        return max(self._measured, int(heaviest * self._scale))

    @property
    def steady_peak_bytes(self) -> int:
        """Median of the steps' peaks so far."""
        half, seen = (sum(self._peaks.values()) + 1) // 2, 0
        for peak in sorted(self._peaks):
            seen += self._peaks[peak]
            if seen >= half:
                return min(int(peak * self._scale), self.peak_bytes)
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "peaks": dict(self._peaks),
            "asked": self._asked,
            "probed": self._probed,
            "measured": self._measured,
            "scale": self._scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._peaks = Counter(state["peaks"])
        self._asked = state["asked"]
        self._probed = state["probed"]
        self._measured = state["measured"]
        self._scale = state["scale"]


@contextmanager
def track_live_bytes(model: nn.Module, optimizer: Optimizer, *tensors: Tensor) -> Iterator[list[int]]:
    """Measure the peak of live tensor bytes of what runs inside, by MemTracker; the list's one entry, on leaving."""
    tracker = MemTracker()
    peak_bytes: list[int] = []
    tracker.track_external(model, optimizer, *tensors)
    with tracker:
        # Its statistics by module refuse frozen parameters and a module that runs twice; the total needs none.
        tracker._mod_tracker.clear_user_hooks()
        yield peak_bytes
    snapshot = tracker.get_tracker_snapshot("peak")
    peak_bytes.append(sum(int(device["Total"]) for device in snapshot.values()))
