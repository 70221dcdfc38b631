"""Images, split once into train, validation and test, and loaders over them.

Here: normalising, augmenting, loading; ``sources.py`` finds the images, ``splitting.py`` divides them.
Whatever is wrong with them (a missing folder, a class too small to split, an unreadable file, a
download without a network) is said in one line before anything trains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from alast_tune.config import DataConfig, ModelConfig
from alast_tune.data import sources
from alast_tune.data.splitting import Indices, balanced, stratified
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec

_CLASSES = {"digits": 10, "cifar100": 100, "flowers102": 102, "food101": 101}

HELD_OUT = (0.2, 0.2)
"""Validation and test share of a data set that nobody has split yet."""


class Images(Dataset[tuple[Tensor, int]]):
    """Some images of a source, each transformed when it is asked for."""

    def __init__(
        self, images: Dataset[Any], labels: Indices, indices: Indices, transform: Callable[[Any], Tensor]
    ) -> None:
        self.images = images
        self.indices = indices
        self.labels = torch.from_numpy(labels[indices])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[int(self.indices[index])]
        return self.transform(image), int(label)


Split = TensorDataset | Images
"""Items are an image (3, H, W), normalised float32, and its label."""


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set."""

    train: Split
    validation: Split
    test: Split | None
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


def train_loader(dataset: Split, batch_size: int, workers: int, generator: torch.Generator) -> DataLoader[Any]:
    """Make a loader that shuffles: the generator's state determines the order, and the seeds of the workers.

    An incomplete last batch is left out, unless it is the only one. Without workers, augmentation draws
    from torch's global generator.
    """
    # Not persistent_workers: those are seeded once, so a resumed run would see other augmentations.
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        generator=generator,
        num_workers=workers,
        drop_last=len(dataset) > batch_size,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(dataset: Split, batch_size: int, workers: int) -> DataLoader[Any]:
    """Make a loader over everything in order; it moves no random state."""
    # A loader draws a seed for its workers whenever it starts: without its own generator, from the global one.
    return DataLoader(
        dataset,
        batch_size,
        num_workers=workers,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def fingerprint(splits: Splits) -> str:
    """Hash class names, and size and labels of each split in order, to 16 hexadecimal digits (of SHA-256)."""
    digest = hashlib.sha256(json.dumps(splits.classes).encode())
    for split in (splits.train, splits.validation, splits.test):
        labels = np.zeros(0, np.int64) if split is None else labels_of(split)
        digest.update(len(labels).to_bytes(8, "little"))
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def labels_of(split: Split) -> Indices:
    """Get the labels (n,) of a split without loading its images."""
    labels: Indices = (split.tensors[1] if isinstance(split, TensorDataset) else split.labels).numpy()
    return labels


def paper_augmentation(image_size: int) -> v2.Transform:
    """Draw two of horizontal flip, vertical flip and random crop for each image (appendix E), all pairs as often.

    A flip that is drawn flips half of the images; the crop is of the image's own size, after padding an eighth.
    """
    horizontal, vertical = v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()
    crop = v2.RandomCrop(image_size, padding=max(1, image_size // 8))
    pairs = ((horizontal, vertical), (horizontal, crop), (vertical, crop))
    return v2.RandomChoice([v2.Compose(pair) for pair in pairs])


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
            whole = found["train"]
            held_out, rest = _split(config, whole.labels, (config.validation_fraction,), classes)
            pieces |= {"train": (whole, rest), "validation": (whole, held_out)}
    plain = [v2.Resize((spec.image_size, spec.image_size))]
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    augmentation = [paper_augmentation(spec.image_size)] if config.augment == "paper" else []

    def split(part: str) -> Images | None:
        if part not in pieces:
            return None
        source, indices = pieces[part]
        steps = [*plain, *finish]
        if part == "train":
            indices = _fewer(config, source.labels, indices)
            steps = [*plain, *augmentation, *finish]
        return Images(source.images, source.labels, indices, v2.Compose(steps))

    train, validation = split("train"), split("validation")
    assert train is not None
    assert validation is not None
    return Splits(train, validation, split("test"), classes)


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
    train = _fewer(config, labels, train)

    def part(indices: Indices) -> TensorDataset:
        return TensorDataset((images[indices] - mean) / std, torch.from_numpy(labels[indices]))

    augmented: Split = part(train)
    if config.augment == "paper":
        augmented = Images(augmented, labels[train], np.arange(len(train)), paper_augmentation(spec.image_size))
    return Splits(augmented, part(validation), part(test), classes)


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
