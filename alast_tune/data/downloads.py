"""Data sets of other packages, known by name: scikit-learn's digits, and torchvision's, found or downloaded."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torchvision import datasets

from alast_tune.config import DataConfig
from alast_tune.data.sources import Opened, Source
from alast_tune.errors import ConfigError

NETWORK_TIMEOUT = 5.0
"""Seconds a download server may take to answer before it counts as out of reach."""

CLASS_COUNTS = {"digits": 10, "cifar100": 100, "flowers102": 102, "food101": 101}
"""Name -> classes, known before anything is downloaded."""

SIDES = {"cifar100": 32}
"""Name -> side of all images, pixels."""


@dataclass(frozen=True)
class _Download:
    url: str
    place: str
    """What torchvision looks for under data.root."""


_DOWNLOADS = {
    "cifar100": _Download("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python/, unpacked"),
    "flowers102": _Download(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
        "flowers-102/ with jpg/, imagelabels.mat and setid.mat",
    ),
    "food101": _Download("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "food-101/ with images/ and meta/"),
}


def open_download(config: DataConfig) -> Opened:
    """Open one of the data sets of :data:`CLASS_COUNTS`, downloading what is not there.

    Raises:
        ConfigError: no folder for it, or an impossible download.
    """
    if config.dataset == "digits":
        return _digits()
    splits = _torchvision(config)
    parts = {part: _source(config, images) for part, images in splits.items()}
    return Opened(tuple(splits["train"].classes), parts, side=SIDES.get(config.dataset), grows=False)


def _digits() -> Opened:
    from sklearn.datasets import load_digits  # slow to import, and nothing else needs it

    bunch = load_digits()
    keys = [str(index) for index in range(len(bunch.images))]
    source = Source(("data.dataset", "digits"), keys, bunch.target.astype(np.int64), bunch.images.__getitem__)
    return Opened(tuple(str(name) for name in bunch.target_names), {"all": source}, grows=False)


def _source(config: DataConfig, images: Any) -> Source:
    if isinstance(images, datasets.CIFAR100):
        labels, found = images.targets, images.data
    else:
        labels, found = images._labels, [Path(file) for file in images._image_files]
    keys = [str(index) for index in range(len(labels))]
    return Source(("data.root", config.root), keys, np.array(labels, np.int64), found.__getitem__)


def _torchvision(config: DataConfig) -> dict[str, Any]:
    """Open torchvision's splits, downloading what is not there."""
    download = _DOWNLOADS[config.dataset]
    if config.root is None:
        raise _refuse(
            config, f"{config.dataset} needs a folder; give one that holds {download.place}, or may be filled"
        )
    if config.root.exists() and not config.root.is_dir():
        raise _refuse(config, "is a file; give a folder")
    try:
        return _construct(config, download=False)
    except RuntimeError:  # not there, or not intact
        by_hand = f"put {download.place} (from {download.url}) there"
        if not config.download:
            raise _refuse(config, f"no intact {config.dataset}; {by_hand}, or set data.download to true") from None
    try:
        _probe(download.url)
        config.root.mkdir(parents=True, exist_ok=True)
        with FileLock(config.root / f".{config.dataset}.lock"):  # one process a machine downloads, the others wait
            return _construct(config, download=True)
    except (OSError, RuntimeError) as error:
        raise _refuse(
            config, f"no intact {config.dataset}, and it cannot be downloaded ({error}); {by_hand}"
        ) from error


def _construct(config: DataConfig, download: bool) -> dict[str, Any]:
    root = str(config.root)
    if config.dataset == "cifar100":
        return {part: datasets.CIFAR100(root, part == "train", download=download) for part in ("train", "test")}
    if config.dataset == "food101":
        return {part: datasets.Food101(root, part, download=download) for part in ("train", "test")}
    names = {"train": "train", "validation": "val", "test": "test"}
    return {part: datasets.Flowers102(root, name, download=download) for part, name in names.items()}


def _probe(url: str) -> None:
    """Ask a server for one header: torchvision's own download waits for ever on a network that swallows packets."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; what it thinks of HEAD does not matter


def _refuse(config: DataConfig, remedy: str) -> ConfigError:
    return ConfigError("data.root", config.root, remedy)
