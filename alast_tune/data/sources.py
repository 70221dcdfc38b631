"""Where images come from: torchvision's data sets and image folders, found or refused in one line."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from alast_tune.config import DataConfig
from alast_tune.data.splitting import Indices
from alast_tune.errors import ConfigError

NETWORK_TIMEOUT = 5.0
"""Seconds a download server may take to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Source:
    """Images in some order, as PIL opens them."""

    config: DataConfig
    images: Dataset[Any]
    """Items are (PIL image, label)."""
    labels: Indices
    """(n,) of the classes' order."""
    files: Sequence[Path]
    """(n,) of the images; empty if they do not lie in files of their own."""

    def decode(self, index: int) -> Image.Image:
        """Read an image, RGB.

        Raises:
            ConfigError: naming a file that is gone, or no image any more.
        """
        try:
            image: Image.Image = self.images[index][0]
        except Exception as error:  # as in _fault
            fault = f"{type(error).__name__}: {error}"
            raise _refuse(self.config, _unreadable(self.files[index], fault)) from error
        return image


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


@lru_cache(maxsize=2)
def open_sources(config: DataConfig) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Find the images of a data set, downloading them if need be; none is decoded.

    Returns:
        The class names, and the sources there are: "train", maybe "validation", maybe "test";
        or "all" alone where nobody has split the images yet.

    Raises:
        ConfigError: no such folder, no images, splits with different classes, or an impossible download.
    """
    if config.dataset == "folder":
        parts = folder_parts(config)
        names = {part: folder_classes(config, folder) for part, folder in parts.items()}
        reference = names.get("train", names.get("all", ()))
        for part, found in names.items():
            if found != reference:
                odd = ", ".join(sorted(set(found) ^ set(reference))[:4])
                raise _refuse(config, f"{parts[part].name}/ and train/ hold different classes ({odd}); make them agree")
        return reference, {part: _folder_source(config, folder) for part, folder in parts.items()}
    splits = _torchvision(config)
    train = splits["train"]
    return tuple(train.classes), {part: _torchvision_source(config, images) for part, images in splits.items()}


def folder_parts(config: DataConfig) -> dict[str, Path]:
    """Find the splits of an image folder: "train" and what else there is, or "all" if it is not split.

    Raises:
        ConfigError: data.root is unset or no folder, or has other splits than train only.
    """
    if config.root is None:
        raise _refuse(config, "an image folder must be given; it holds train/<class>/* or <class>/*")
    if not config.root.is_dir():
        raise _refuse(config, "no such folder; give one that holds train/<class>/* or <class>/*")
    candidates = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
    parts = {
        part: config.root / name
        for part, names in candidates.items()
        for name in reversed(names)  # the first name wins
        if (config.root / name).is_dir()
    }
    if not parts:
        return {"all": config.root}
    if "train" not in parts:
        raise _refuse(config, f"has {', '.join(folder.name for folder in parts.values())} but no train folder; add it")
    return parts


def folder_classes(config: DataConfig, folder: Path) -> tuple[str, ...]:
    """List the classes of one split of an image folder, sorted.

    Raises:
        ConfigError: there are fewer than two.
    """
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(classes) < 2:
        found = f"one class only ({classes[0]})" if classes else "no class folders"
        raise _refuse(
            config, f"{folder.name}/ holds {found}; it takes one folder of images for each of 2 or more classes"
        )
    return classes


def verify(config: DataConfig, files: Sequence[Path]) -> None:
    """Read every image file to its end, JPEGs at an eighth of their size, in threads.

    Raises:
        ConfigError: naming the first file that is no image or is cut short.
    """
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        faults = [
            (file, fault) for file, fault in zip(files, pool.map(_fault, files, chunksize=64), strict=True) if fault
        ]
    if faults:
        more = f", and so are {len(faults) - 1} more" if len(faults) > 1 else ""
        raise _refuse(config, _unreadable(*faults[0], more))


def _unreadable(file: Path, fault: str, more: str = "") -> str:
    return f"{file} is no readable image ({fault}){more}; repair or remove it"


def _fault(file: Path) -> str | None:
    try:
        with Image.open(file) as image:
            # PIL's verify() passes over the data of a JPEG; decoding it small finds a truncated one cheaply.
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as error:  # the formats' readers raise nearly anything on rubbish
        return f"{type(error).__name__}: {error}"
    return None


def _folder_source(config: DataConfig, folder: Path) -> Source:
    try:
        images = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:  # names the classes without an image
        raise _refuse(config, f"{folder.name}/: {error}; add images, or remove the class") from error
    return Source(config, images, np.array(images.targets, np.int64), [Path(path) for path, _ in images.samples])


def _torchvision_source(config: DataConfig, images: Any) -> Source:
    if isinstance(images, datasets.CIFAR100):
        return Source(config, images, np.array(images.targets, np.int64), ())
    return Source(config, images, np.array(images._labels, np.int64), images._image_files)


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
