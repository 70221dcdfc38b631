"""Where images come from: torchvision's data sets and image folders, found or refused in one line."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from alast_tune.config import DataConfig
from alast_tune.data.folders import Part, open_folder
from alast_tune.data.inspection import Verdict, fault, inspect, silence_pillow
from alast_tune.data.rgb import to_rgb
from alast_tune.data.splitting import Indices
from alast_tune.errors import ConfigError

NETWORK_TIMEOUT = 5.0
"""Seconds a download server may take to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Source:
    """Images in some order, and what they are called wherever they lie."""

    root: Path | None
    """``data.root``, for errors."""
    keys: Sequence[str]
    """(n,) names that stay as the data move or grow: paths in their folder, or places in a set that never changes."""
    labels: Indices
    """(n,) of the classes' order."""
    images: Sequence[Path] | NDArray[Any]
    """(n,) files, or arrays (n, H, W, 3) of a data set that has no file for each."""

    @property
    def files(self) -> Sequence[Path]:
        """(n,) of the images; none if they do not lie in files of their own."""
        return () if isinstance(self.images, np.ndarray) else self.images

    def decode(self, index: int) -> Image.Image:
        """Read an image, RGB.

        Raises:
            ConfigError: naming a file that is gone, or no image any more.
        """
        if isinstance(self.images, np.ndarray):
            return Image.fromarray(self.images[index])
        try:
            with Image.open(self.images[index]) as image:
                return to_rgb(image)
        except Exception as error:  # the formats' readers raise nearly anything on rubbish
            raise ConfigError("data.root", self.root, fault(self.images[index], error)) from error

    def inspect(self, decode: bool) -> dict[str, Verdict]:
        """Look at all images that are files, which are read as images if so asked; what was found, by key.

        Raises:
            ConfigError: naming a file that is gone, or no image.
        """
        return dict(zip(self.keys, inspect(self.root, self.files, decode), strict=False))

    def checksums(self, indices: Indices) -> list[str]:
        """Checksum images (m,) given by their indices.

        Raises:
            ConfigError: naming a file that is gone.
        """
        if isinstance(self.images, np.ndarray):
            return [hashlib.blake2b(self.images[index].tobytes(), digest_size=16).hexdigest() for index in indices]
        return [found.checksum for found in inspect(self.root, [self.images[index] for index in indices])]

    def __add__(self, other: Source) -> Source:
        """Put the images of another source behind these."""
        labels = np.concatenate([self.labels, other.labels])
        images = (
            np.concatenate([self.images, other.images])
            if isinstance(self.images, np.ndarray) and isinstance(other.images, np.ndarray)
            else [*self.images, *other.images]
        )
        return Source(self.root, [*self.keys, *other.keys], labels, images)


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


@dataclass(frozen=True)
class Opened:
    """A data set whose images are found and not yet divided, unless it comes in splits."""

    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    parts: Mapping[str, Source]
    """"train", maybe "validation", maybe "test"; or "all" alone where nobody has split the images yet."""
    notes: tuple[str, ...] = ()
    """What was passed over, a line each."""
    grows: bool = False
    """Whether images may be added, as to anybody's folder."""


@lru_cache(maxsize=8)
def open_sources(config: DataConfig) -> Opened:
    """Find the images of a data set, downloading them if need be, once in a process; none is decoded.

    Raises:
        ConfigError: no such folder, no images, splits with different classes, or an impossible download.
    """
    silence_pillow()
    if config.dataset == "folder":
        folder = open_folder(config.root)
        parts = {name: _folder_source(config, part) for name, part in folder.parts.items()}
        return Opened(tuple(next(iter(folder.parts.values())).classes), parts, folder.notes, grows=True)
    if config.dataset == "digits":
        return _digits()
    splits = _torchvision(config)
    return Opened(
        tuple(splits["train"].classes), {part: _torchvision_source(config, images) for part, images in splits.items()}
    )


def _folder_source(config: DataConfig, part: Part) -> Source:
    files = [file for found in part.classes.values() for file in found]
    labels = np.repeat(np.arange(len(part.classes)), [len(found) for found in part.classes.values()])
    return Source(config.root, [part.key(file) for file in files], labels, files)


def _digits() -> Opened:
    from sklearn.datasets import load_digits  # slow to import, and nothing else needs it

    bunch = load_digits()
    keys = [str(index) for index in range(len(bunch.images))]
    return Opened(
        tuple(str(name) for name in bunch.target_names),
        {"all": Source(None, keys, bunch.target.astype(np.int64), bunch.images)},
    )


def _torchvision_source(config: DataConfig, images: Any) -> Source:
    if isinstance(images, datasets.CIFAR100):
        labels, found = images.targets, images.data
    else:
        labels, found = images._labels, [Path(file) for file in images._image_files]
    return Source(config.root, [str(index) for index in range(len(labels))], np.array(labels, np.int64), found)


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
