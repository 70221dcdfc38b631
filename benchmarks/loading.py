"""Whether loading keeps up: the share of an epoch's wall time, validation included, that does not wait for images.

Images are normalised and augmented on the device: on a CPU that is a part of the step, here by itself in "preparing";
on a GPU the host only gives it the work, whose seconds these are.

    python benchmarks/loading.py
    python benchmarks/loading.py --root /data/pets --model deit_tiny_patch16_224 --batch 128 --device cuda --json

The digits of scikit-learn, and an image folder: --root, or JPEGs that the script makes and throws away. Folders
are decoded once, before the first epoch, into a file that is mapped, or anew each time (cache none), in threads or in
--workers processes. Needs neither Ray nor MLflow.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from alast_tune import evaluate as evaluation
from alast_tune import run as running
from alast_tune.config import TrialConfig, parse
from alast_tune.data import eval_loader, prepare, train_loader
from alast_tune.data.augmentation import AUGMENTATIONS


class Waiting:
    """A loader, and the seconds that its consumers have waited for all loaders like it."""

    seconds = 0.0

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        started = time.perf_counter()
        for batch in self._loader:
            Waiting.seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()
        Waiting.seconds += time.perf_counter() - started


class Preparing:
    """The host's seconds for bringing images to the device as a model sees them."""

    seconds = 0.0


def prepare_timed(*given: Any) -> Any:
    """Prepare images, and add up how long it takes."""
    started = time.perf_counter()
    images = prepare(*given)
    Preparing.seconds += time.perf_counter() - started
    return images


def write_jpegs(root: Path, count: int, size: int, classes: int = 4) -> None:
    """Write that many square JPEGs, a smooth random pattern each."""
    generator = np.random.default_rng(0)
    for index in range(count):
        folder = root / f"class {index % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        pattern = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        pattern.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")


def measure(data: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fine-tune on one data set; one row an epoch."""
    values = {
        "data": {"augment": options.augment, **data},
        "model": {"name": options.model, "pretrained": options.model == "embedded"},
        "train": {"batch_size": options.batch, "device": options.device, "precision": options.precision, "epochs": 2},
    }
    run = running.Run(parse(TrialConfig, values))
    rows = []
    while not run.finished:
        Waiting.seconds = Preparing.seconds = 0.0
        started = time.perf_counter()
        run.train_epoch()
        seconds = time.perf_counter() - started
        waiting = Waiting.seconds
        row = {"data": data["dataset"], "cache": data.get("cache", "-"), "epoch": run.epoch, "seconds": seconds}
        row |= {"waiting_seconds": waiting, "preparing_seconds": Preparing.seconds}
        rows.append({**row, "share_of_steps": 1 - waiting / seconds})
    return rows


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fine-tune on the digits, and on the folder with each cache."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(running, "train_loader", lambda *given: Waiting(train_loader(*given))),
        mock.patch.object(running, "eval_loader", lambda *given: Waiting(eval_loader(*given))),
        mock.patch.object(running, "prepare", prepare_timed),
        mock.patch.object(evaluation, "prepare", prepare_timed),
    ):
        if options.root is None:
            write_jpegs(Path(folder), options.images, options.size)
        source = {"dataset": "folder", "root": options.root or folder}
        measure({"dataset": "digits"}, options)  # whatever is slow but once
        return [
            *measure({"dataset": "digits"}, options),
            *measure({**source, "cache": "memory"}, options),
            *measure({**source, "cache": "none", "workers": options.workers}, options),
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="an image folder of your own")
    parser.add_argument("--images", type=int, default=600, help="JPEGs to make without --root")
    parser.add_argument("--size", type=int, default=64, help="their side, pixels")
    parser.add_argument("--augment", choices=[*AUGMENTATIONS], default="none")
    parser.add_argument("--workers", type=int, default=0, help="loader processes where nothing is kept; 0: threads")
    parser.add_argument("--model", default="embedded", help="embedded, or a timm name (weights at random)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    rows = measure_all(options)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    setting = {"device": device, "model": options.model, "batch": options.batch, "augment": options.augment}
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows}, indent=2))
        return
    table = Table(title=", ".join(f"{name} {value}" for name, value in setting.items()), title_justify="left")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column in {"data", "cache"} else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
