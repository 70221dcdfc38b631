"""What a sweep will come to, before anything of it runs: trials at a time, FLOPs, memory, hours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from alast_tune.choices import Machine, this_machine
from alast_tune.config import (
    FloatRange,
    SweepConfig,
    TrialConfig,
    choices_of,
    parameters,
    point_of,
)
from alast_tune.data.machine import in_own_process, limit_threads
from alast_tune.device import AUTOCAST, device_of, precision_of
from alast_tune.errors import ConfigError
from alast_tune.losses import training_loss
from alast_tune.methods import build_method
from alast_tune.optimizers import build_optimizer
from alast_tune.run import load_trial
from alast_tune.tune.forecast import Costs, Forecast
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.space import begins_with, full_config, trial_config

POINTS = 48
"""Of the space, whose costs are forecast."""

TIMED_IMAGES = 4
"""Images of a step that is timed on a CPU, where an image takes as long as in a whole batch."""

TIMED_STEPS = 3
"""Steps that are timed, after one that is not; the fastest of them counts."""

TIMED_SECONDS = 5.0
"""After so long no more are timed, so that the first may be the only one."""

RAY_SHARE = 0.7
"""Of the free main memory, what Ray hands out."""


@dataclass(frozen=True)
class Pace:
    """How fast full fine-tuning is here, measured."""

    step_seconds: float
    """Of a training step, each image."""
    look_seconds: float
    """Of looking at an image to validate, each."""


@dataclass(frozen=True)
class Preview:
    """What a sweep is predicted to come to."""

    at_a_time: int | None
    """Trials; None on a cluster, which nobody has asked yet."""
    full: Costs
    """Of full fine-tuning."""
    points: tuple[Costs, ...]
    """Of points of the space, drawn at random: at least one."""
    trials: int
    """In all, the baselines included."""
    baselines: int

    def range_of(self, cost: str) -> tuple[float, float]:
        """Least and most of a cost over the space, as shares of full fine-tuning's.

        Args:
            cost: ``train_flops`` or ``peak_bytes``.
        """
        shares = [getattr(point, cost) / getattr(self.full, cost) for point in self.points]
        return min(shares), max(shares)

    @property
    def full_runs(self) -> float:
        """FLOPs of the whole sweep in those of one full fine-tuning, if no trial is stopped early."""
        share = fmean(point.train_flops for point in self.points) / self.full.train_flops
        return self.baselines + (self.trials - self.baselines) * share


def preview(sweep: SweepConfig, machine: Machine | None = None) -> Preview:
    """Forecast a sweep from shapes; its images are looked at, nothing is trained.

    Args:
        sweep: whose model and data can be loaded here.
        machine: what it runs on; None: this one.

    Raises:
        ConfigError: no point of the space works, or the model or the data do not.
    """
    forecast = Forecast()
    trial = sweep.with_limit(without_cache(sweep.trial))
    sweep = sweep.model_copy(update={"trial": trial})
    full = forecast.costs(full_config(sweep))
    points = list(_costs(sweep, forecast))
    if not points:
        raise ConfigError("space", ", ".join(sweep.space), f"none of {POINTS} points of it works")
    machine = machine or this_machine(trial.train.device)
    baselines = len(begins_with(sweep))
    total = sweep.trials + baselines
    places = None if os.environ.get("RAY_ADDRESS", "local") != "local" else _places(sweep, machine, points, total)
    return Preview(places, full, tuple(points), total, baselines)


def without_cache(trial: TrialConfig) -> TrialConfig:
    """Let a few images be read without decoding all."""
    return trial.model_copy(update={"data": trial.data.model_copy(update={"cache": "none"})})


def _costs(sweep: SweepConfig, forecast: Forecast) -> Iterator[Costs]:
    """Forecast points of the space."""
    for params in points_of(sweep):
        try:
            yield forecast.costs(trial_config(sweep, params))
        except ConfigError:  # two parameters, each fine, that contradict each other
            continue


def points_of(sweep: SweepConfig) -> Iterator[dict[str, Any]]:
    """Draw points of a space: every value of each choice among names as often as any other."""
    draw = np.random.default_rng(0)
    spread = {name: (draw.permutation(POINTS) + 0.5) / POINTS for name in parameters(sweep.space)}
    for index in range(POINTS):
        places = {name: places_P[index] for name, places_P in spread.items()}
        yield point_of(sweep.space, lambda one, at=places: value_at(one.distribution, at[one.name]))  # type: ignore[misc]


def value_at(item: Any, unit: float) -> Any:
    """Look up a value of a distribution at a place in (0, 1)."""
    choices = choices_of(item)
    if choices is not None:
        return choices[int(unit * len(choices))]
    assert isinstance(item, FloatRange)
    if item.log:
        return float(item.low * (item.high / item.low) ** unit)
    return item.low + unit * (item.high - item.low)


def _places(sweep: SweepConfig, machine: Machine, points: list[Costs], trials: int) -> int:
    """Count the trials of the space that fit on this machine at a time."""
    cards = float(torch.cuda.device_count()) if machine.card_bytes else 0.0
    memory = RAY_SHARE * machine.memory_bytes or 1e18
    packing = Packing(sweep, [Node("here", machine.cpus, cards, memory, machine.card_bytes or 0.0)])
    peaks = [point.peak_bytes for point in points if packing.fits(point.peak_bytes)]
    count = 0
    while peaks and count < min(trials, sweep.concurrent or trials) and packing.fits(peaks[count % len(peaks)]):
        packing.place(peaks[count % len(peaks)])
        count += 1
    return count


def pace(sweep: SweepConfig) -> Pace:
    """Time full fine-tuning for a few steps, on what a trial would have here: its threads, or the first card.

    Raises:
        RuntimeError: whatever has gone wrong, memory that is not there for one.
    """
    trial, threads = without_cache(full_config(sweep)), sweep.cpus_per_trial
    if device_of(trial.train).type == "cpu":
        return _timed(trial, threads)
    return in_own_process(_timed, trial, threads)


def _timed(trial: TrialConfig, threads: int) -> Pace:
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, limit_threads()))
    try:
        return _measured(trial)
    finally:
        torch.set_num_threads(before)


def _measured(trial: TrialConfig) -> Pace:
    device, dtype = device_of(trial.train), AUTOCAST[precision_of(trial.train)]
    model, splits = load_trial(trial, verify=False)
    method = build_method(trial.method, model.to(device), trial.train)
    optimizer = build_optimizer(trial.train, method)
    batch = min(trial.train.batch_size, len(splits.train))
    if device.type == "cpu":
        batch = min(batch, TIMED_IMAGES)
    images, labels = (part.to(device) for part in splits.train.__getitems__(list(range(batch))))

    def step() -> None:
        method.begin_step(0, [images])
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = training_loss(method.forward(images), labels, trial.train.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()

    def look() -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            model(images)

    model.train()
    seconds = _fastest(step, device)
    model.eval()
    return Pace(seconds / batch, _fastest(look, device) / batch)


def _fastest(act: Callable[[], None], device: torch.device) -> float:
    seconds: list[float] = []
    while len(seconds) < 1 + TIMED_STEPS and sum(seconds) < TIMED_SECONDS:
        started = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:] or seconds)


def hours_of(seen: Preview, pace: Pace, images: Mapping[str, int], epochs: int) -> tuple[float, float]:
    """Say how long one full fine-tuning takes, and the whole sweep if no trial is stopped early; hours.

    Args:
        seen: with trials at a time.
        pace: of full fine-tuning.
        images: ``train`` and ``validation``: how many.
        epochs: of a trial.
    """
    training = epochs * images["train"] * pace.step_seconds
    looking = epochs * images["validation"] * pace.look_seconds
    whole = seen.full_runs * training + seen.trials * looking
    return (training + looking) / 3600, whole / (seen.at_a_time or 1) / 3600
