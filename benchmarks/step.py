"""One training step of every method against `full`: time, FLOPs, and how much of the saving is realised.

    python benchmarks/step.py --model deit_tiny_patch16_224 --batch 32
    python benchmarks/step.py --device cuda --precision bf16 --batch 128 --json

The limit is time ratio = FLOPs ratio; *saving realised* = (1 - time ratio) / (1 - FLOPs ratio). Steps of
all methods are interleaved, round by round, and the median of each round's ratio to `full` counts: the
machine's mood cancels. On a GPU *peak measured* is the allocator's, and *predicted* is the meter's forecast over it.
Needs neither Ray nor MLflow.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from alast_tune.config import ModelConfig, TrainConfig, TrialConfig, parse, read_mapping
from alast_tune.cost import StepCost, StepCosts
from alast_tune.methods import build_method, compile_blocks, with_blocks_chosen
from alast_tune.models import create_model, input_spec

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


class Stepper:
    """A method on a model of its own, ready to take training steps."""

    def __init__(self, values: dict[str, Any], options: argparse.Namespace, image_size: int | None) -> None:
        before = allocated()
        config = with_blocks_chosen(parse(TrialConfig, {"method": values}).method)
        torch.manual_seed(0)
        pretrained = options.model == "embedded"  # the others' speed does not depend on their weights
        model = create_model(
            ModelConfig(name=options.model, pretrained=pretrained, num_classes=10, image_size=image_size)
        )
        self.size = input_spec(model).image_size
        self.method = build_method(config, model, TrainConfig())
        self.model = model.to(options.device)
        if options.compile:
            compile_blocks(self.method)
        self._costs = StepCosts(self.model, self.size)
        self._optimizer = torch.optim.Adam(self.method.parameters(), 1e-4, fused=True)  # as fit does
        self._dtype = {"fp32": None, "bf16": torch.bfloat16}[options.precision]
        self._precision = options.precision
        self._device = options.device
        self._steps = 0
        self._images = torch.randn(options.batch, 3, self.size, self.size, device=options.device)
        self._labels = torch.randint(0, 10, (options.batch,), device=options.device)
        self.own_seconds: list[float] = []
        self.peak_bytes = 0
        for _ in range(options.warmup):
            self.step()
        self._resident = allocated() - before  # weights, moments, images

    def step(self) -> float:
        """Train one step; returns its seconds."""
        synchronise(self._device)
        started = time.perf_counter()
        self.method.begin_step(self._steps)
        begun = time.perf_counter()
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            loss = F.cross_entropy(self.method.forward(self._images), self._labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        synchronise(self._device)
        ending = time.perf_counter()
        self.method.end_step()
        ended = time.perf_counter()
        self._steps += 1
        self.own_seconds.append(begun - started + ended - ending)
        return ended - started

    def measured_step(self) -> float:
        """Train one step; returns its seconds, and keeps what the allocator held of this method at its peak."""
        if self._device != "cuda":
            return self.step()
        torch.cuda.reset_peak_memory_stats()
        before = allocated()
        seconds = self.step()
        self.peak_bytes = torch.cuda.max_memory_allocated() - before + self._resident
        return seconds

    def cost(self) -> StepCost:
        """Of the last step's plan."""
        images, plan = len(self._images), self.method.plan
        return self._costs.step(self.method.config, plan, images, self._optimizer, self._precision)


def synchronise(device: str) -> None:
    """Wait for the accelerator, if there is one."""
    if device == "cuda":
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
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    flops: dict[str, list[float]] = {name: [] for name in steppers}
    peaks: dict[str, list[float]] = {name: [] for name in steppers}
    measured: dict[str, list[float]] = {name: [] for name in steppers}
    predicted: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(options.rounds):
        for name, stepper in steppers.items():
            seconds[name].append(stepper.measured_step())
            cost, full = stepper.cost(), steppers["full"].cost()
            flops[name].append(cost.flops / full.flops)
            peaks[name].append(cost.peak_bytes / full.peak_bytes)
            if stepper.peak_bytes:
                measured[name].append(stepper.peak_bytes / steppers["full"].peak_bytes)
                predicted[name].append(cost.peak_bytes / stepper.peak_bytes)
    rows = []
    for name, stepper in steppers.items():
        pairs = zip(seconds[name], seconds["full"], strict=True)
        time_ratio, flops_ratio = statistics.median(a / b for a, b in pairs), statistics.median(flops[name])
        rows.append(
            {
                "method": name,
                "milliseconds": 1e3 * statistics.median(seconds[name]),
                "time_ratio": time_ratio,
                "flops_ratio": flops_ratio,
                "saving_realised": (1 - time_ratio) / (1 - flops_ratio) if flops_ratio < 1 else None,
                "overhead": statistics.median(stepper.own_seconds[options.warmup :]) / statistics.median(seconds[name]),
                "peak_ratio": statistics.median(peaks[name]),
                "peak_measured": statistics.median(measured[name]) if measured[name] else None,
                "predicted": statistics.median(predicted[name]) if predicted[name] else None,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, help="methods and model of a spec of benchmarks/accuracy.py instead")
    parser.add_argument("--only", nargs="+", default=[], help="names of methods; full is always there")
    parser.add_argument("--image-size", type=int, help="pixels; default: the model's own")
    parser.add_argument("--threads", type=int, help="for torch")
    parser.add_argument("--compile", action="store_true", help="compile the blocks; give enough --warmup")
    parser.add_argument("--model", default="embedded", help="embedded, or a timm name (weights at random)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = measure(options)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    setting = {"device": device, "model": options.model, "batch": options.batch, "precision": options.precision}
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows}, indent=2))
        return
    table = Table(title=", ".join(f"{name} {value}" for name, value in setting.items()), title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(*("-" if v is None else v if isinstance(v, str) else f"{v:.3f}" for v in row.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
