"""Images, split once into train, validation and test, and loaders over them.

Here: putting it all together. ``sources.py`` says what a data set is: how to open image i, its label, and a name of it
that stays. ``opening.py`` finds one, and ``folders.py``, ``tables.py``, ``huggingface.py``, ``downloads.py`` and
``registry.py`` have a kind each. ``inspection.py`` looks at every image once, ``splitting.py`` divides them, ``rgb.py``
converts them, ``decoded.py`` keeps them, ``loading.py`` hands them out batch by batch, as bytes; ``images.py`` makes of
these, on the device, what a model sees, by ``augmentation.py`` if so asked.
Whatever is wrong with them (a missing folder, a class without images, an unreadable file, a download without a network)
is said in one line before anything trains; what is merely not used is said in ``Splits.notes``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alast_tune.config import DataConfig, ModelConfig
from alast_tune.data.augmentation import paper_augmentation
from alast_tune.data.decoded import Decoded, worth_keeping
from alast_tune.data.downloads import CLASS_COUNTS
from alast_tune.data.images import Batch, Images, Preparation, enlarges_as_pillow, prepare
from alast_tune.data.loading import batch_count, eval_loader, train_loader
from alast_tune.data.opening import known_datasets, open_sources
from alast_tune.data.registry import Factory, register
from alast_tune.data.sources import Opened, Source
from alast_tune.data.splitting import Indices, balanced_subset, by_hash, stratified
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec, Resizing

__all__ = [
    "Batch",
    "Images",
    "Splits",
    "batch_count",
    "check_apart",
    "check_classes",
    "eval_loader",
    "fingerprint",
    "known_datasets",
    "labels_of",
    "load_splits",
    "num_classes_of",
    "paper_augmentation",
    "prepare",
    "register_dataset",
    "train_loader",
]


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of a data set."""

    train: Images
    validation: Images
    test: Images | None
    """None if there is a training split but no test split, or data.test_fraction is 0."""
    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    spec: InputSpec
    """What they become, and how they come to that size."""
    notes: tuple[str, ...] = ()
    """What the data set has that nobody may have meant, a line each: files passed over, copies, classes not tested."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def load_splits(config: DataConfig, spec: InputSpec, verify: bool = True) -> Splits:
    """Load a data set as a model wants it, at most once in a process.

    Images that come undivided go to a split by a hash of ``data.split_seed`` and their key (the path in a folder, say),
    so that one that is added moves no other. Digits and CIFAR-100, which never grow, are drawn by their positions,
    classes in proportion.

    Args:
        config: which data set, and how to split it.
        spec: size and normalisation of the images.
        verify: look at every image first and note copies; a worker whose driver did may leave it out.

    Raises:
        ConfigError: no such data set, no images, an empty split, splits with different classes,
            an unreadable image, or an impossible download.
    """
    return _verified(config, spec) if verify else _load(config, spec)


def num_classes_of(config: DataConfig) -> int:
    """Count the classes of a data set, once in a process, without decoding an image.

    Raises:
        ConfigError: there is no such data set.
    """
    return CLASS_COUNTS.get(config.dataset) or len(open_sources(config).classes)


def register_dataset(name: str, factory: Factory) -> None:
    """Give a data set of your own a name for ``data.dataset``, in this process.

    A package does so for every process, Ray's workers too, by an entry point: group ``alast_tune.datasets``, the name,
    the factory.

    Args:
        name: of the data set; one that was registered before is replaced.
        factory: makes it of ``data.root`` (a Path, or None): an object with ``__len__``, ``__getitem__`` (an image of
            Pillow and its label) and the labels as ``targets`` or ``labels``; ``classes`` may name them. Or one such
            object a split: ``{"train": ..., "validation": ..., "test": ...}``.

    Raises:
        ConfigError: a name that is none, or that of a data set that comes with alast-tune.
    """
    register(name, factory)
    for cached in (open_sources, _verified, _load):
        cached.cache_clear()


def check_apart(config: DataConfig, field: str, folder: Path) -> None:
    """Refuse to write into an image folder, whose classes its folders are.

    Args:
        config: of the data.
        field: setting that names the folder.
        folder: to write to.

    Raises:
        ConfigError: it is data.root or lies in it.
    """
    if config.dataset == "folder" and config.root and folder.resolve().is_relative_to(config.root.resolve()):
        remedy = (
            f"lies in data.root ({config.root}), where what is written would become images; give a folder elsewhere"
        )
        raise ConfigError(field, folder, remedy)


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
    """Hash the content of the splits to 16 hexadecimal digits (of SHA-256), wherever the files lie.

    Of class names, and of each image: its split, key within it, checksum, label. Files that no process of this user
    has read on this machine are read, not decoded.

    Raises:
        ConfigError: a file is gone.
    """
    digest = hashlib.sha256(json.dumps(splits.classes).encode())
    for split in (splits.train, splits.validation, splits.test):
        digest.update(b"\n\n")
        if split is not None:
            for (key, checksum), label in zip(split.contents(), labels_of(split), strict=True):
                digest.update(f"{key}\0{checksum}\0{label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def labels_of(split: Images) -> Indices:
    """Get the labels (n,) of a split without loading its images."""
    labels: Indices = split.labels.numpy()
    return labels


@lru_cache(maxsize=8)
def _verified(config: DataConfig, spec: InputSpec) -> Splits:
    found = [item for source in open_sources(config).parts.values() for item in source.inspect(config.verify)]
    dark = [key for key, verdict in found if verdict.dark]
    notes = []
    if dark:
        notes.append(f"{len(dark)} images of 16 bits use 12 at most, and are nearly black (as {dark[0]}); rescale them")
    splits = _load(config, spec)
    return replace(splits, notes=(*splits.notes, *notes, *_copies(splits, config.all_data)))


@lru_cache(maxsize=8)
def _load(config: DataConfig, spec: InputSpec) -> Splits:
    opened = open_sources(config)
    if config.transforms == "paper" or config.dataset == "digits":
        spec = replace(spec, resizing=Resizing())
    pieces = _divide(config, opened)
    source, train = pieces["train"]
    notes = [*opened.notes, *_untested(pieces, opened.classes), *_idle(config, opened, len(train))]
    if config.all_data:
        other, validation = pieces["validation"]
        pieces["train"] = source + other, np.concatenate([train, len(source.labels) + validation])
    else:
        pieces["train"] = source, _fewer(config, source.labels, train)
    count = sum(len(indices) for _, indices in pieces.values())
    kept = _kept(opened, spec)
    cache = "none" if config.cache == "auto" and not worth_keeping(count * 3 * kept.image_size**2) else config.cache
    images = {name: _images(config, spec, name, *piece, kept, cache) for name, piece in pieces.items()}
    return Splits(images["train"], images["validation"], images.get("test"), opened.classes, spec, tuple(notes))


def _divide(config: DataConfig, opened: Opened) -> dict[str, tuple[Source, Indices]]:
    """Make the splits that a data set does not come in: source and indices of each."""
    pieces = {part: (source, np.arange(len(source.labels))) for part, source in opened.parts.items()}
    defaults = DataConfig()
    if "all" not in pieces and config.test_fraction != defaults.test_fraction:
        remedy = "is held out of data without splits only, and there is a training split; leave it out"
        raise ConfigError("data.test_fraction", config.test_fraction, remedy)
    if "validation" in pieces:
        if config.validation_fraction != defaults.validation_fraction:
            remedy = "there is a validation split already; leave it out, or remove that split"
            raise ConfigError("data.validation_fraction", config.validation_fraction, remedy)
        return pieces
    shares = {"validation": config.validation_fraction}
    if "all" in pieces and config.test_fraction:
        shares["test"] = config.test_fraction
    source, _ = pieces.pop("all" if "all" in pieces else "train")
    draw = partial(by_hash, source.keys) if opened.grows else stratified
    try:
        drawn = draw(source.labels, list(shares.values()), config.split_seed)
    except ValueError as error:  # of data sets that never grow; they have enough
        raise ConfigError("data.root", config.root, f"{error}; it is not the whole data set") from error
    pieces |= {part: (source, indices) for part, indices in zip([*shares, "train"], drawn, strict=True)}
    for part, share in shares.items():
        if not len(pieces[part][1]):
            remedy = f"leaves no {part} image of {len(source.labels)}; raise it, add images, or divide them yourself"
            raise ConfigError(f"data.{part}_fraction", share, remedy)
    return pieces


def _kept(opened: Opened, spec: InputSpec) -> InputSpec:
    """Say as what images are read and kept: of a model's size, or smaller if the device enlarges them just as well."""
    side = opened.side or spec.image_size
    small = side < spec.image_size and spec.resizing == Resizing() and enlarges_as_pillow(side, spec.image_size)
    return replace(spec, image_size=side) if small else spec


def _images(
    config: DataConfig, spec: InputSpec, part: str, source: Source, indices: Indices, kept: InputSpec, cache: str
) -> Images:
    preparation = Preparation(spec)
    if part == "train":
        preparation = Preparation(spec, config.augment, config.random_erasing)
    if config.dataset == "digits":  # no photographs: interpolated as they are
        return Images(source, indices, partial(_digits, source, indices), preparation)
    return Images(source, indices, Decoded(source, indices, kept, cache), preparation)


def _digits(source: Source, indices: Indices, batch: list[int]) -> Tensor:
    """Get some of the digits, float32 (B, 1, 8, 8) in [0, 1]."""
    grey = [np.asarray(source.item(int(index))) for index in indices[batch]]
    return torch.from_numpy(np.stack(grey)).float()[:, None] / 16


def _untested(pieces: dict[str, tuple[Source, Indices]], classes: Sequence[str]) -> Iterator[str]:
    """Say of which classes there is nothing to validate or test on."""
    for part in ("validation", "test"):
        if part in pieces:
            source, indices = pieces[part]
            counts = np.bincount(source.labels[indices], minlength=len(classes))
            if absent := [name for name, count in zip(classes, counts, strict=True) if not count]:
                more = f" and {len(absent) - 6} more" if len(absent) > 6 else ""
                yield f"the {part} split has no image of {', '.join(absent[:6])}{more}"


def _idle(config: DataConfig, opened: Opened, images: int) -> Iterator[str]:
    """Name the given settings that have no effect on these data, of which ``images`` are training images."""
    if config.train_images is not None and config.train_images > images and not config.all_data:
        yield f"data.train_images = {config.train_images}, and there are only {images} training images: all are taken"
    if config.split_seed and config.train_images is None and "validation" in opened.parts:
        yield f"data.split_seed = {config.split_seed} does nothing: the data come divided"


def _copies(splits: Splits, all_data: bool) -> Iterator[str]:
    """Say which images are, byte for byte, held out and in a split before, or in one split under two labels."""
    parts = {"train": splits.train, "validation": None if all_data else splits.validation, "test": splits.test}
    seen: dict[str, tuple[str, str, int]] = {}
    """By checksum: split, key and label of the first."""
    for part, images in parts.items():
        found = list(zip(images.contents(), labels_of(images).tolist(), strict=True)) if images else []
        again = [(key, *seen[checksum][:2]) for (key, checksum), _ in found if checksum in seen]
        if again:
            key, where, other = again[0]
            yield (
                f"{len(again)} of {len(found)} {part} images are copies of images in another split, which makes "
                f"accuracies look better than they are: {key} is {other} of {where}; remove them"
            )
        contradicting = []
        for (key, checksum), label in found:
            where, other, its_label = seen.setdefault(checksum, (part, key, label))
            if where == part and its_label != label:
                contradicting.append((key, other))
        if contradicting:
            yield (
                f"{len(contradicting)} of {len(found)} {part} images have a copy of another class in that split: "
                f"{contradicting[0][0]} is {contradicting[0][1]}; remove the wrong ones"
            )


def _fewer(config: DataConfig, labels: Indices, train: Indices) -> Indices:
    """Keep data.train_images of the training images."""
    if config.train_images is None:
        return train
    classes = len(np.unique(labels))
    if config.train_images < classes:
        raise ConfigError(
            "data.train_images", config.train_images, f"leaves classes without an image; give {classes} at least"
        )
    return train[balanced_subset(labels[train], config.train_images, config.split_seed)]
