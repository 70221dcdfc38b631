"""Finding a data set: which kind it is, and what every kind has to have."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from alast_tune.config import DataConfig
from alast_tune.data.downloads import CLASS_COUNTS, open_download
from alast_tune.data.folders import open_folder
from alast_tune.data.huggingface import PREFIX, is_saved, open_named, open_saved
from alast_tune.data.inspection import Place, silence_pillow
from alast_tune.data.registry import GROUP, open_registered, registered
from alast_tune.data.sources import Opened, Source
from alast_tune.data.tables import SUFFIXES, open_table
from alast_tune.errors import ConfigError
from alast_tune.text import shorten_list


@lru_cache(maxsize=8)
def open_sources(config: DataConfig) -> Opened:
    """Find the images of a data set, downloading them if need be, once in a process; none is decoded.

    Raises:
        ConfigError: no such data set, no images, splits with different classes, or an impossible download.
    """
    silence_pillow()
    place, opened = _open(config)
    return _checked(place, opened)


def known_datasets() -> list[str]:
    """Name what ``data.dataset`` may be in this process."""
    return [*CLASS_COUNTS, "folder", f"{PREFIX}user/name", *registered()]


def _open(config: DataConfig) -> tuple[Place, Opened]:
    name, root = config.dataset, config.root
    table = name == "folder" and root is not None and root.suffix.lower() in SUFFIXES and not root.is_dir()
    package = name.startswith(PREFIX) or (name == "folder" and root is not None and is_saved(root))
    for use, column in config.columns:
        if column is not None and not (table or (package and use != "split")):
            remedy = "is of a table" if use == "split" else "is of a table, or of a data set of Hugging Face"
            raise ConfigError(f"data.columns.{use}", column, f"{remedy}; leave it out")
    place: Place = ("data.dataset", name)
    if name in CLASS_COUNTS:
        return place, open_download(config)
    if name.startswith(PREFIX):
        return place, open_named(config)
    if name != "folder":
        if name not in registered():
            own = f"your own takes alast_tune.register_dataset, or an entry point of group {GROUP}"
            raise ConfigError(*place, f"no such data set; there are {', '.join(known_datasets())}; {own}")
        return place, open_registered(config, registered()[name])
    place = ("data.root", root)
    if root is not None and _is_webdataset(root):
        remedy = (
            "looks like WebDataset (.tar shards), which is read from front to back and has no length, whereas trials "
            "draw images at random, and splits and costs follow from all of them; unpack the shards into an image "
            "folder, or write a Parquet file"
        )
        raise ConfigError(*place, remedy)
    if table:
        return place, open_table(config)
    if package:
        return place, open_saved(config)
    return place, _open_folder(root)


def _open_folder(root: Path | None) -> Opened:
    folder = open_folder(root)
    sources = {}
    for role, part in folder.parts.items():
        files = [file for found in part.classes.values() for file in found]
        labels = np.repeat(np.arange(len(part.classes)), [len(found) for found in part.classes.values()])
        sources[role] = Source(("data.root", root), [part.key(file) for file in files], labels, files.__getitem__)
    return Opened(tuple(next(iter(folder.parts.values())).classes), sources, folder.notes)


def _is_webdataset(root: Path) -> bool:
    """Whether a path is one of shards (``train-{000..099}.tar``, a URL, a pipe), or a folder of nothing else."""
    if ".tar" in root.suffixes or root.suffix == ".tgz":
        return True
    if not root.is_dir():
        return str(root).startswith("pipe:")
    found = [file.suffix for file in root.iterdir() if not file.name.startswith(".")]
    return ".tar" in found and set(found) <= {".tar", ".json", ".txt", ".idx"}


def _checked(place: Place, opened: Opened) -> Opened:
    """Refuse what nobody can train on, or measure by: one class, or classes that are only held out."""
    train = opened.parts.get("all", opened.parts.get("train"))
    if train is None or not len(train.labels):
        there = ", ".join(opened.parts) or "no split"
        raise ConfigError(*place, f"has {there} and no image to train on; give a train split")
    counts = np.bincount(train.labels, minlength=len(opened.classes))
    if np.count_nonzero(counts) < 2:
        found = ", ".join(opened.classes[label] for label in np.flatnonzero(counts))
        raise ConfigError(*place, f"has images of one class only to train on ({found}); it takes 2 or more")
    for part, source in opened.parts.items():
        if odd := [opened.classes[label] for label in np.unique(source.labels) if not counts[label]]:
            remedy = f"the {part} split has images of {shorten_list(odd)}, and the training split none"
            raise ConfigError(*place, f"{remedy}; make them agree")
    absent = [name for name, count in zip(opened.classes, counts, strict=True) if not count]
    notes = [f"there is no image of {shorten_list(absent)}"] if absent else []
    return replace(opened, notes=(*opened.notes, *notes))
