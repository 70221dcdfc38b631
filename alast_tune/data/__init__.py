"""Images, split once into train, validation and test, and loaders over them.

Here: putting it all together; ``sources.py`` finds the images, ``splitting.py`` divides them, ``images.py``
decodes, keeps, augments and normalises them, ``loading.py`` hands them out batch by batch.
Whatever is wrong with them (a missing folder, a class too small to split, an unreadable file, a
download without a network) is said in one line before anything trains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import ConcatDataset
from torchvision.transforms import v2

from alast_tune.config import DataConfig, ModelConfig
from alast_tune.data import sources
from alast_tune.data.images import Decoded, Images, free_bytes, paper_augmentation
from alast_tune.data.loading import batch_count, eval_loader, train_loader
from alast_tune.data.splitting import Indices, balanced, stratified
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec
from alast_tune.parallel import ranks_on_this_machine

__all__ = [
    "HELD_OUT",
    "Images",
    "Splits",
    "batch_count",
    "check_classes",
    "eval_loader",
    "fingerprint",
    "labels_of",
    "load_splits",
    "num_classes_of",
    "paper_augmentation",
    "train_loader",
]

_CLASSES = {"digits": 10, "cifar100": 100, "flowers102": 102, "food101": 101}

HELD_OUT = (0.2, 0.2)
"""Validation and test share of a data set that nobody has split yet."""


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set."""

    train: Images
    validation: Images
    test: Images | None
    """None if an image folder has train/ but no test/."""
    classes: tuple[str, ...]
    """Names, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def load_splits(config: DataConfig, spec: InputSpec, verify: bool = True) -> Splits:
    """Load a data set as a model wants it, at most once in a process.

    Args:
        config: which data set, and how to split it.
        spec: size and normalisation of the images.
        verify: read every image file first, once in a process; a worker whose driver did may leave it out.

    Raises:
        ConfigError: no such folder, no images, a class too small to split, splits with different classes,
            an unreadable image, or an impossible download.
    """
    if verify:
        _verify(config)
    return _load(config, spec)


def num_classes_of(config: DataConfig) -> int:
    """Count the classes of a data set, without opening an image.

    Raises:
        ConfigError: data.root holds no image folder.
    """
    if config.dataset != "folder":
        return _CLASSES[config.dataset]
    parts = sources.folder_parts(config)
    return len(sources.folder_classes(config, parts["train"] if "train" in parts else parts["all"]))


def check_classes(data: DataConfig, model: ModelConfig) -> None:
    """Refuse a classifier of another size than the data set has classes.

    Raises:
        ConfigError: they differ.
    """
    classes = num_classes_of(data)
    if model.num_classes not in {None, classes}:
        remedy = f"{data.dataset} has {classes} classes; set it to {classes}, or leave it out"
        raise ConfigError("model.num_classes", model.num_classes, remedy)


def fingerprint(splits: Splits) -> str:
    """Hash class names, and size and labels of each split in order, to 16 hexadecimal digits (of SHA-256)."""
    digest = hashlib.sha256(json.dumps(splits.classes).encode())
    for split in (splits.train, splits.validation, splits.test):
        labels = np.zeros(0, np.int64) if split is None else labels_of(split)
        digest.update(len(labels).to_bytes(8, "little"))
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def labels_of(split: Images) -> Indices:
    """Get the labels (n,) of a split without loading its images."""
    labels: Indices = split.labels.numpy()
    return labels


@lru_cache(maxsize=2)
def _verify(config: DataConfig) -> None:
    if config.dataset == "digits":
        return
    _, found = sources.open_sources(config)
    sources.verify(config, [file for source in found.values() for file in source.files])


@lru_cache(maxsize=2)
def _load(config: DataConfig, spec: InputSpec) -> Splits:
    if config.dataset == "digits":
        return _load_digits(config, spec)
    classes, found = sources.open_sources(config)
    if "all" in found:
        everything = found["all"]
        validation_, test_, train_ = _split(config, everything.labels, HELD_OUT, classes)
        pieces = {"train": (everything, train_), "validation": (everything, validation_), "test": (everything, test_)}
    else:
        pieces = {part: (source, np.arange(len(source.labels))) for part, source in found.items()}
        if "validation" not in pieces:
            source = found["train"]
            held_out, rest = _split(config, source.labels, (config.validation_fraction,), classes)
            pieces |= {"train": (source, rest), "validation": (source, held_out)}
    source, train = pieces["train"]
    if config.all_data:
        pieces["train"] = _joined(config, pieces["train"], pieces["validation"])
    else:
        pieces["train"] = source, _fewer(config, source.labels, train)
    keep = _keeps(config, sum(len(indices) for _, indices in pieces.values()), spec.image_size)
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std, inplace=True)]
    splits = {
        part: Images(
            Decoded(source, indices, spec.image_size, keep),
            source.labels[indices],
            v2.Compose(normalise),
            augment=part == "train" and config.augment == "paper",
        )
        for part, (source, indices) in pieces.items()
    }
    return Splits(splits["train"], splits["validation"], splits.get("test"), classes)


def _keeps(config: DataConfig, count: int, size: int) -> bool:
    """Decide whether that many decoded images are to stay in memory."""
    if config.cache != "auto":
        return config.cache == "memory"
    # Loader processes would each fill a memory of their own.
    return not config.workers and count * 3 * size**2 <= free_bytes() / 4 / ranks_on_this_machine()


def _load_digits(config: DataConfig, spec: InputSpec) -> Splits:
    from sklearn.datasets import load_digits  # slow to import, and nothing else needs it

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] / 16
    size = (spec.image_size, spec.image_size)
    images = F.interpolate(grey, size=size, mode="bilinear", align_corners=False)
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    validation, test, train = _split(config, labels, HELD_OUT, classes)
    train = np.sort(np.concatenate([train, validation])) if config.all_data else _fewer(config, labels, train)

    def part(indices: Indices, augment: bool = False) -> Images:
        normalised = (images[indices] - mean) / std
        return Images(normalised.__getitem__, labels[indices], v2.Identity(), augment)

    return Splits(part(train, config.augment == "paper"), part(validation), part(test), classes)


def _split(config: DataConfig, labels: Indices, shares: Sequence[float], classes: Sequence[str]) -> list[Indices]:
    counts = np.bincount(labels, minlength=len(classes))
    least = int(counts.argmin())
    if counts[least] <= len(shares):
        remedy = (
            f"class {classes[least]} has {counts[least]} images, too few to split into {len(shares) + 1}; "
            "add some, or give train/, val/ and test/ folders"
        )
        raise ConfigError("data.root", config.root, remedy)
    return stratified(labels, shares, config.split_seed)


def _joined(config: DataConfig, *pieces: tuple[sources.Source, Indices]) -> tuple[sources.Source, Indices]:
    """Put some images of several sources one behind the other."""
    parts = [source for source, _ in pieces]
    starts = np.cumsum([0, *(len(source.labels) for source in parts)])
    whole = sources.Source(
        config,
        ConcatDataset([source.images for source in parts]),
        np.concatenate([source.labels for source in parts]),
        [file for source in parts for file in source.files],
    )
    return whole, np.concatenate([start + chosen for start, (_, chosen) in zip(starts, pieces, strict=False)])


def _fewer(config: DataConfig, labels: Indices, train: Indices) -> Indices:
    """Keep data.train_images of the training images."""
    if config.train_images is None:
        return train
    classes = len(np.unique(labels))
    if config.train_images < classes:
        raise ConfigError(
            "data.train_images", config.train_images, f"leaves classes without an image; give {classes} at least"
        )
    return train[balanced(labels[train], config.train_images, config.split_seed)]
