"""One training step of `fit`, metering included, of every method against `full`: time, FLOPs, what saving is realised.

    python benchmarks/step.py --model deit_tiny_patch16_224 --batch 32
    python benchmarks/step.py --device cuda --precision bf16 --batch 128 --json
    python benchmarks/step.py --device cuda --suite          # DeiT-T, DeiT-S and ViT-B, eager and compiled: 8 minutes

The limit is time ratio = FLOPs ratio; *saving realised* = (1 - time ratio) / (1 - FLOPs ratio). Steps of all methods
are interleaved, round by round, and the median of each round's ratio to `full` counts: the machine's mood cancels.
*Over bare* sets the step beside the bare one: forward, backward and update of images that are on the device already.
On a GPU a round is some steps in a row, between which nobody waits; *syncs* are the times in a step that torch makes
the host wait for all that is queued (the wait for ALaST's deltas, until the forward is done, is none of these); *peak
measured* is the allocator's, and *predicted* is the meter's forecast over it. *Epoch steps* is the share of an epoch's
training that is steps. The images are scikit-learn's digits. Needs neither Ray nor MLflow.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from alast_tune.config import TrialConfig, parse, read_mapping
from alast_tune.cost import StepCost
from alast_tune.cost.memory import workspace_bytes
from alast_tune.data import prepare
from alast_tune.device import precision_of
from alast_tune.methods import with_blocks_chosen
from alast_tune.models import input_spec
from alast_tune.run import Run

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "top_k": {"name": "top_k", "blocks": [9, 10, 11]},
    "tome": {"name": "tome", "target_flops": 0.6},
    "bsr": {"name": "bsr", "blocks": [9, 10, 11]},
    "lora": {"name": "lora"},
    "apla": {"name": "apla"},
    "apla, blocks 6 to 11": {"name": "apla", "blocks": [6, 7, 8, 9, 10, 11]},
    "lora, half of the tokens merged in block 5": {"name": "tome", "merge_once_in": 5, "lora": {}},
    "reader": {"name": "reader"},
    "reader, attentive": {"name": "reader", "read": "attentive"},
    "alast paper": {"name": "alast", "reading": "paper"},
    "alast authors": {"name": "alast", "reading": "authors"},
    "alast fast": {"name": "alast", "reading": "fast"},
    "alast fast, K 6, residual": {
        "name": "alast", "reading": "fast", "trainable_blocks": 6, "frozen_backward": "residual",
    },
    "lora+alast": {"name": "alast", "reading": "fast", "lora": {}},
}  # fmt: skip


SUITE = ("deit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch16_224")
SUITE_METHODS = ["head", "alast fast", "lora+alast"]


class Stepper:
    """A run of a method, ready to take training steps on a batch of its own."""

    def __init__(self, values: dict[str, Any], options: argparse.Namespace, image_size: int | None) -> None:
        before = allocated()
        train = {"batch_size": options.batch, "precision": options.precision, "compile": options.compile, "epochs": 2}
        config = parse(
            TrialConfig,
            {
                # The others' speed does not depend on their weights.
                "model": {
                    "name": options.model, "pretrained": options.model == "embedded", "image_size": image_size
                },
                "method": values,
                "train": train | {"device": options.device},
            },
        )  # fmt: skip
        config = config.model_copy(update={"method": with_blocks_chosen(config.method)})
        self.run = run = Run(config, verify=False)
        run.model.train()
        self._burst: int = options.burst
        self._on_host = next(iter(run._loader(0)))  # pinned, where there is a GPU
        images, labels = self._on_host
        self._on_device = prepare(images, run.device), labels.to(run.device)
        self.peak_bytes = 0
        for _ in range(options.warmup):
            self.step()
            self._bare_step()
        synchronise(run.device)
        self._resident = allocated() - before  # weights, moments, images

    def step(self) -> None:
        """Take a step as `fit` does."""
        run = self.run
        run._step(run.method, run._optimizer, *self._on_host)
        run._scheduler.step()

    def _bare_step(self) -> None:
        """Take a step without meter and loss scale, whatever comes from the host."""
        run, (images, labels) = self.run, self._on_device
        run.method.begin_step(run.meter.steps, [images])
        with torch.autocast(run.device.type, run._dtype, enabled=run._dtype is not None):
            loss = F.cross_entropy(run.method.forward(images), labels)
        loss.backward()
        run._optimizer.step()
        run._optimizer.zero_grad(set_to_none=True)
        run.method.end_step()

    def seconds(self) -> tuple[float, float]:
        """Take some steps in a row, then as many bare ones; returns the seconds of one of each."""
        before = allocated()
        seconds = [self._timed(step, self._burst) for step in (self.step, self._bare_step)]
        if self.run.device.type == "cuda":
            self.step()  # the meter resets the allocator's peak
            self.peak_bytes = torch.cuda.max_memory_allocated() - before + self._resident
        return seconds[0], seconds[1]

    def _timed(self, step: Callable[[], None], count: int) -> float:
        synchronise(self.run.device)
        started = time.perf_counter()
        for _ in range(count):
            step()
        synchronise(self.run.device)
        return (time.perf_counter() - started) / count

    def syncs(self) -> float | None:
        """Count the times a step that the host waits for all that the device has queued; None on a CPU."""
        if self.run.device.type != "cuda":
            return None
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(self._burst):
                    self.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught) / self._burst

    def epoch_steps(self) -> float:
        """Train a real epoch, loading and all; returns the share of its training that its steps take.

        On a GPU, whose steps take longer than their calls: that as many steps in a row take.
        """
        run, inside = self.run, 0.0
        take = run._step

        def timed(*given: Any) -> torch.Tensor:
            nonlocal inside
            started = time.perf_counter()
            loss = take(*given)
            inside += time.perf_counter() - started
            return loss

        before = run.meter.clock.read()["train_seconds"]
        with mock.patch.object(run, "_step", timed):
            seconds = run.train_epoch().cost.train_seconds - before
        if run.device.type == "cuda":
            inside = run.steps_per_epoch * self._timed(self.step, run.steps_per_epoch)
        return inside / seconds

    def cost(self) -> StepCost:
        """Of the last step's plan."""
        run, images = self.run, self._on_host[0]
        costs, precision = run.meter.costs(input_spec(run.model).image_size), precision_of(run.config.train)
        return costs.step(run.method.config, run.method.plan, len(images), run._optimizer, precision)


def synchronise(device: torch.device) -> None:
    """Wait for the accelerator, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Interleave the methods' steps; one row a method."""
    methods = METHODS
    sizes: dict[str, int] = {}
    if options.spec is not None:
        spec = read_mapping(options.spec)
        model = spec["trial"]["model"]
        options.model, options.image_size = model["name"], model.get("image_size")
        methods = {name: entry["method"] for name, entry in spec["methods"].items()}
        sizes = {name: entry["model"]["image_size"] for name, entry in spec["methods"].items() if "model" in entry}
    if options.only:
        methods = {name: values for name, values in methods.items() if name in {"full", *options.only}}
    steppers = {name: Stepper(values, options, sizes.get(name, options.image_size)) for name, values in methods.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steppers}
    for _ in range(options.rounds):
        for name, stepper in steppers.items():
            seconds, bare = stepper.seconds()
            cost, full = stepper.cost(), steppers["full"].cost()
            one = {"seconds": seconds, "over_bare": seconds / bare}
            one |= {"flops_ratio": cost.flops / full.flops, "peak_ratio": cost.peak_bytes / full.peak_bytes}
            if stepper.peak_bytes:
                one["peak_measured"] = stepper.peak_bytes / steppers["full"].peak_bytes
                one["predicted"] = cost.peak_bytes / stepper.peak_bytes
            rounds[name].append(one)
    rows = []
    for name, stepper in steppers.items():
        ones = rounds[name]
        middle = {column: statistics.median(one[column] for one in ones) for column in ones[0]}
        time_ratio = statistics.median(
            one["seconds"] / full["seconds"] for one, full in zip(ones, rounds["full"], strict=True)
        )
        flops_ratio = middle["flops_ratio"]
        rows.append(
            {
                "method": name,
                "milliseconds": 1e3 * middle["seconds"],
                "images_a_second": options.batch / middle["seconds"],
                "over_bare": middle["over_bare"],
                "time_ratio": time_ratio,
                "flops_ratio": flops_ratio,
                "saving_realised": (1 - time_ratio) / (1 - flops_ratio) if flops_ratio < 1 else None,
                "peak_ratio": middle["peak_ratio"],
                "peak_measured": middle.get("peak_measured"),
                "predicted": middle.get("predicted"),
                "syncs": stepper.syncs(),
                "epoch_steps": stepper.epoch_steps() if options.epoch else None,
            }
        )
    return rows


def report(options: argparse.Namespace) -> None:
    """Measure one setting and print it."""
    rows = measure(options)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    setting = {"device": device, "model": options.model, "batch": options.batch, "precision": options.precision}
    setting |= {"blocks": "compiled" if options.compile else "eager"}
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows}, indent=2))
        return
    table = Table(title=", ".join(f"{name} {value}" for name, value in setting.items()), title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(*("-" if v is None else v if isinstance(v, str) else f"{v:.3f}" for v in row.values()))
    Console(width=180).print(table)


def run_suite(options: argparse.Namespace) -> None:
    """Measure what a card is asked for; no setting begins once two thirds of the minutes are over."""
    started = time.perf_counter()
    options.precision, options.batch, options.epoch = "bf16", 128, True
    options.only = options.only or SUITE_METHODS
    for options.compile in (False, True):
        for options.model in SUITE:
            minutes = (time.perf_counter() - started) / 60
            if minutes > options.minutes * 2 / 3:
                print(f"left out after {minutes:.1f} minutes: {options.model}, compiled {options.compile}", flush=True)
                continue
            report(options)
            if options.device == "cuda":
                torch.cuda.empty_cache()
            torch._dynamo.reset()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="store_true", help="DeiT-T, DeiT-S and ViT-B, eager and compiled, bf16, 128")
    parser.add_argument("--minutes", type=float, default=8.0, help="that the suite may take")
    parser.add_argument("--spec", type=Path, help="methods and model of a spec of benchmarks/accuracy.py instead")
    parser.add_argument("--only", nargs="+", default=[], help="names of methods; full is always there")
    parser.add_argument("--image-size", type=int, help="pixels; default: the model's own")
    parser.add_argument("--threads", type=int, help="for torch")
    parser.add_argument("--compile", action="store_true", help="compile the blocks; give enough --warmup")
    parser.add_argument("--epoch", action="store_true", help="also train an epoch, for the share that is steps")
    parser.add_argument("--model", default="embedded", help="embedded, or a timm name (weights at random)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--burst", type=int, help="steps in a row; default: 10 on a GPU, 1 on a CPU")
    parser.add_argument("--warmup", type=int, help="steps before; default: 10 on a GPU, 2 on a CPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    cuda = options.device == "cuda"
    options.burst, options.warmup = options.burst or (10 if cuda else 1), options.warmup or (10 if cuda else 2)
    if cuda:
        workspace_bytes()  # before a method, whose own memory it would seem to be
    (run_suite if options.suite else report)(options)


if __name__ == "__main__":
    main()
