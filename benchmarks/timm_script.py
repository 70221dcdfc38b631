"""A run of ``fit`` beside one as timm's train script trains, at the same recipe, on the same images and first weights.

    python benchmarks/timm_script.py
    python benchmarks/timm_script.py --set train/mixup=0.2 train/ema=0.99
    python benchmarks/timm_script.py --set data/root=... model/name=deit_small_patch16_224 train/device=cuda

timm's ``train.py`` is not in timm's package, so its loop is written down here once more, out of timm's own parts:
``create_loader`` with its prefetcher, ``create_optimizer_v2`` with layer decay, ``create_scheduler_v2`` by the update,
``Mixup``, ``ModelEmaV3`` and its losses. Settings are a trial's, and those that this loop does not have are refused.
Epochs, validation included, are interleaved; all but each run's first count for the ratio of times, by its median.

What differs by construction: the order of the images and all draws; a first step at timm's rate of 1e-5; timm reads and
resizes an image at each epoch, and takes its pairs for mixup from both ends of a batch. Needs neither Ray nor MLflow.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data.loader import create_loader
from timm.data.mixup import FastCollateMixup
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # it exports it all the same
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.clip_grad import dispatch_clip_grad
from timm.utils.model_ema import ModelEmaV3
from timm.utils.random import random_seed
from torch.utils.data import Dataset

from alast_tune.config import TrialConfig, apply_params, parse
from alast_tune.data import Images
from alast_tune.device import AUTOCAST, device_of, precision_of, set_tf32
from alast_tune.errors import ConfigError
from alast_tune.run import load_trial
from alast_tune.train import fit
from benchmarks.accuracy import difference

TRIAL = {
    "recipe": "modern",
    "data": {"dataset": "digits"},
    "model": {"name": "embedded", "image_size": 16},
    "method": {"name": "full"},
    "train": {"epochs": 10, "batch_size": 32, "learning_rate": 4e-3, "device": "cpu"},
}
KNOWN = {
    "data": "dataset root transforms augment random_erasing workers split_seed validation_fraction test_fraction "
    "train_images cache",
    "model": "name pretrained checkpoint image_size drop_path",
    "train": "epochs batch_size learning_rate layer_decay warmup_epochs optimizer weight_decay clip_grad "
    "label_smoothing mixup cutmix ema precision tf32 device",
}
"""Settings that both sides have."""


class Pictures(Dataset[Any]):
    """Images as timm's own datasets give them: opened anew each time, and transformed as ``create_loader`` sets."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        source, index = self._images.source, int(self._images.indices[number])
        if source.place == ("data.dataset", "digits"):
            picture = Image.fromarray(np.uint8(np.asarray(source.item(index)) * (255 / 16) + 0.5)).convert("RGB")
        else:
            picture = source.decode(index)
        return self.transform(picture), int(self._images.labels[number])


def timm_script(config: TrialConfig) -> Iterator[float]:
    """Train as timm's train script does; yields each epoch's accuracy on the validation images."""
    train, data, device = config.train, config.data, device_of(config.train)
    set_tf32(train)
    model, splits = load_trial(config)
    random_seed(train.seed)
    model.to(device)
    spec, mixup = splits.spec, None
    if train.mixup or train.cutmix:
        mixup = FastCollateMixup(
            train.mixup, train.cutmix, label_smoothing=train.label_smoothing, num_classes=splits.num_classes
        )
    shared: dict[str, Any] = {
        "input_size": (3, spec.image_size, spec.image_size), "mean": spec.mean, "std": spec.std, "device": device,
        "interpolation": spec.resizing.interpolation, "num_workers": data.workers, "pin_memory": device.type == "cuda",
    }  # fmt: skip
    augmented: dict[str, Any] = {"re_prob": data.random_erasing, "color_jitter": 0.0, "no_aug": data.augment == "none"}
    trained_on: Any = Pictures(splits.train)
    validated_on: Any = Pictures(splits.validation)
    batches = create_loader(
        trained_on, batch_size=train.batch_size, is_training=True, collate_fn=mixup, **augmented, **shared
    )
    cropped: dict[str, Any] = {"crop_pct": spec.resizing.crop_pct, "crop_mode": spec.resizing.crop_mode}
    looked_at = create_loader(validated_on, batch_size=train.batch_size, **cropped, **shared)
    decay = train.layer_decay if train.layer_decay < 1 else None
    optimizer = create_optimizer_v2(model, train.optimizer, train.learning_rate, train.weight_decay, layer_decay=decay)
    warmup = int(train.warmup_epochs)
    scheduler, _ = create_scheduler_v2(
        optimizer, "cosine", train.epochs - warmup, warmup_epochs=warmup, warmup_prefix=True, step_on_epochs=False,
        updates_per_epoch=len(batches),
    )  # fmt: skip
    average = ModelEmaV3(model, train.ema, use_warmup=True) if train.ema else None
    loss_of = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(train.label_smoothing)
    dtype, updates = AUTOCAST[precision_of(train)], 0
    autocast: dict[str, Any] = {"device_type": device.type, "dtype": dtype, "enabled": dtype is not None}
    for _ in range(train.epochs):
        model.train()
        for images, labels in batches:
            with torch.autocast(**autocast):
                loss = loss_of(model(images), labels)
            loss.backward()
            if train.clip_grad:
                dispatch_clip_grad(model.parameters(), train.clip_grad)
            optimizer.step()
            updates += 1
            optimizer.zero_grad()
            if average:
                average.update(model, step=updates)
            scheduler.step_update(updates)
        judged, right = average.module if average else model.eval(), 0.0
        with torch.no_grad(), torch.autocast(**autocast):
            for images, labels in looked_at:
                right += (judged(images).argmax(dim=1) == labels).sum().item()
        yield right / len(splits.validation)


def ours(config: TrialConfig) -> Iterator[float]:
    """Train by ``fit``."""
    for report in fit(config):
        yield report.accuracy


def check(config: TrialConfig, settings: dict[str, str]) -> None:
    """Refuse what timm's side would not heed.

    Raises:
        ConfigError: this.
    """
    for path, value in settings.items():
        part, _, name = path.partition("/")
        if name not in KNOWN.get(part, "").split():
            raise ConfigError(path, value, "is none of both sides' settings; leave it out")
    if config.data.augment not in {"none", "crop"}:
        raise ConfigError("data/augment", config.data.augment, "is not alike on both sides; give none or crop")
    if config.train.precision == "fp16":
        raise ConfigError("train/precision", "fp16", "timm's side does not scale its losses; give fp32 or bf16")
    if config.train.optimizer == "sgd":
        raise ConfigError("train/optimizer", "sgd", "is not alike on both sides: timm's is Nesterov's; give adamw")
    if config.train.warmup_epochs % 1:
        remedy = "timm warms up for whole epochs; give one, or a train/epochs of tens"
        raise ConfigError("train/warmup_epochs", config.train.warmup_epochs, remedy)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="for torch")
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = dict(setting.split("=", 1) for setting in options.set)
    base = apply_params(parse(TrialConfig, TRIAL), settings)
    check(base, settings)
    runs: list[dict[str, Any]] = []
    ratios: list[float] = []
    for seed in range(options.seeds):
        config = apply_params(base, {"train/seed": seed})
        sides = {"ours": ours(config), "timm": timm_script(config)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        accuracies: dict[str, list[float]] = {name: [] for name in sides}
        for epoch in range(base.train.epochs):
            for name in sides if epoch % 2 else reversed(sides):
                started = time.perf_counter()
                accuracies[name].append(round(next(sides[name]), 6))
                seconds[name].append(time.perf_counter() - started)
        ratios += [a / b for a, b in zip(seconds["ours"][1:], seconds["timm"][1:], strict=True)]
        runs += [
            {"name": name, "seed": seed, "accuracies": accuracies[name], "seconds": round(sum(seconds[name]), 2)}
            for name in sides
        ]
    mine, theirs = ([run for run in runs if run["name"] == name] for name in ("ours", "timm"))
    gained = difference(mine, theirs, lambda run: run["accuracies"][-1])
    summary = {
        "trial": base.given_values(),
        "device": torch.cuda.get_device_name() if device_of(base.train).type == "cuda" else "cpu",
        "time_ratio": round(statistics.median(ratios), 4),
        "difference": gained and [round(value, 6) + 0.0 for value in gained],
        "runs": runs,
    }
    if options.json:
        print(json.dumps(summary, indent=1))
        return
    table = Table(title=f"{base.model.name}, {base.train.epochs} epochs, {summary['device']}", title_justify="left")
    for column in ("", "accuracy", "spread", "seconds a run"):
        table.add_column(column, justify="left" if not column else "right")
    for side in (mine, theirs):
        found = [run["accuracies"][-1] for run in side]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        took = statistics.median(run["seconds"] for run in side)
        table.add_row(side[0]["name"], f"{statistics.mean(found):.4f}", f"{spread:.4f}", f"{took:.1f}")
    Console(width=120).print(table)
    text = "-" if gained is None else f"{gained[0]:+.4f} \u00b1 {gained[1]:.4f}"
    print(f"ours - timm: {text}; time of an epoch, ours / timm: {summary['time_ratio']:.3f}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
