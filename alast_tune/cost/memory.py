"""Peak memory of training steps and evaluations as measured: by the allocator on CUDA, by a tracker on a CPU.

On CUDA every one is measured, without what cuBLAS keeps for itself (65 MiB on an H100). On a CPU live tensor bytes
are measured by torch's ``MemTracker``, which slows a step down severalfold: only steps whose plan is predicted to be
heavier than all before are probed, and the others' peaks are the prediction, scaled by the last probe's ratio of
measured to predicted. So are evaluations'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.optim import Optimizer

from alast_tune.cost.updates import moment_bytes

_HEAVIER = 1.02  # a plan predicted heavier by less is not worth another probe
_STATE = ("peaks", "heaviest", "asked", "probed", "measured", "scale", "evaluation")
_DIGITS = 10  # binary, of the peaks of which the median is taken


class MemoryMeter:
    """Peak bytes over a run's steps and evaluations, and the steps' median (the steady peak)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peaks: dict[int, int] = {}  # bytes, rounded, measured on CUDA and predicted on a CPU -> steps
        self._heaviest = 0  # of the steps' predictions
        self._asked = 0  # heaviest prediction for which a probe has been tried
        self._probed = 0  # heaviest prediction of a step that was measured,
        self._measured = 0  # the largest measurement,
        self._scale = 1.0  # and how it compares with that prediction
        self._evaluation = 0  # heaviest prediction of an evaluation
        self._cuda = next(model.parameters()).is_cuda
        if self._cuda:
            workspace_bytes()  # before a step, whose own memory it would seem to be
        self.last_bytes = 0
        self.others: list[Tensor] = []
        """What else is there all the time: averages of weights."""

    @contextmanager
    def step(self, predict: Callable[[], int], optimizer: Optimizer, images_BCHW: Tensor) -> Iterator[None]:
        """Run one training step inside; measure it where that is free or its plan is a new heaviest.

        Args:
            predict: gives the peak of the method's present plan, moments and all.
            optimizer: that the step updates with.
            images_BCHW: of the step.
        """
        if self._cuda:
            with self._allocating():
                yield
            self._count(self.last_bytes)
            return
        missing = _missing_bytes(optimizer)
        # Under `same_step` the plan is known only afterwards: a step heavier than expected has the next one probed.
        expected = max(predict() - missing, self._heaviest)
        probe = expected > _HEAVIER * self._asked
        tracking = track_live_bytes(self._model, optimizer, images_BCHW, *self.others) if probe else nullcontext([0])
        with tracking as measured:
            yield
        self.last_bytes = measured[0]
        predicted = predict() - missing
        self._heaviest = max(self._heaviest, predicted)
        self._count(predicted)
        if probe:
            self._asked = max(self._asked, expected)
            self._measured = max(self._measured, measured[0])
            if predicted > self._probed:
                self._probed, self._scale = predicted, measured[0] / predicted

    @contextmanager
    def _allocating(self) -> Iterator[None]:
        """Have the allocator measure what runs inside."""
        torch.cuda.reset_peak_memory_stats()
        yield
        self.last_bytes = torch.cuda.max_memory_allocated() - workspace_bytes()
        self._measured = max(self._measured, self.last_bytes)

    def _count(self, peak_bytes: int) -> None:
        peak = rounded_peak(peak_bytes)
        self._peaks[peak] = self._peaks.get(peak, 0) + 1

    @contextmanager
    def evaluation(self, predicted: int, optimizer: Optimizer) -> Iterator[None]:
        """Run an evaluation inside; measure it where that is free.

        Args:
            predicted: its peak, all moments counted.
            optimizer: of the training.
        """
        with self._allocating() if self._cuda else nullcontext():
            yield
        self._evaluation = max(self._evaluation, predicted - _missing_bytes(optimizer))

    @property
    def peak_bytes(self) -> int:
        """Largest peak of any step or evaluation so far."""
        if self._cuda:
            return self._measured
        unmeasured = self._heaviest if self._heaviest > _HEAVIER * self._probed else 0
        return max(self._measured, int(max(unmeasured, self._evaluation) * self._scale))

    @property
    def steady_peak_bytes(self) -> int:
        """Median of the steps' peaks so far, within a thousandth."""
        half, seen = (sum(self._peaks.values()) + 1) // 2, 0
        for peak in sorted(self._peaks):
            seen += self._peaks[peak]
            if seen >= half:
                return min(int(peak * self._scale), self.peak_bytes)
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {name: getattr(self, f"_{name}") for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name in _STATE:
            setattr(self, f"_{name}", copy(state[name]))


def rounded_peak(peak_bytes: int) -> int:
    """Round a peak to so few digits that a run of any length has few different ones."""
    step = 1 << max(0, peak_bytes.bit_length() - _DIGITS)
    return (peak_bytes + step // 2) // step * step


def _missing_bytes(optimizer: Optimizer) -> int:
    """Bytes of the moments that are still to come: they come into being at a parameter's first update."""
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    # Parameters may share a tensor.
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept if t.dim()}
    return moment_bytes(optimizer) - sum(sizes.values())


@cache
def workspace_bytes() -> int:
    """Bytes that cuBLAS keeps in torch's allocator, whatever the model, for the threads of forward and backward."""
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated()
    for dtype in (torch.float32, torch.bfloat16):
        layer = nn.Linear(8, 8, device="cuda", dtype=dtype)
        layer(torch.ones(8, 8, device="cuda", dtype=dtype)).sum().backward()  # the backward has a thread of its own
        del layer
    return torch.cuda.memory_allocated() - before


@contextmanager
def track_live_bytes(model: nn.Module, optimizer: Optimizer, *tensors: Tensor) -> Iterator[list[int]]:
    """Measure the peak of live tensor bytes of what runs inside, by MemTracker; the list's one entry, on leaving."""
    tracker = MemTracker()
    peak_bytes: list[int] = []
    tracker.track_external(model, optimizer, *tensors)
    with tracker:
        # Without its hooks on every module: their statistics refuse frozen parameters and a module that runs twice, and
        # what they hang into the graph refers to itself, so that no model that was tracked would ever be freed.
        tracker._mod_tracker.__exit__(None, None, None)
        yield peak_bytes
    snapshot = tracker.get_tracker_snapshot("peak")
    peak_bytes.append(sum(int(device["Total"]) for device in snapshot.values()))
