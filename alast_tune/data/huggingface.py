"""Data sets of Hugging Face: a folder that ``save_to_disk`` has written, or a name on its hub, in their own splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants, get_session

from alast_tune.config import DataConfig
from alast_tune.data.folders import role_of
from alast_tune.data.inspection import Item, Place
from alast_tune.data.sources import Opened, Source
from alast_tune.errors import ConfigError

PREFIX = "hf:"
"""Of ``data.dataset``, before a name on the hub."""

HUB_TIMEOUT = 5.0
"""Seconds the hub may take to answer before it counts as out of reach."""


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` has written a folder."""
    one = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return one or (folder / "dataset_dict.json").is_file()


def open_saved(config: DataConfig) -> Opened:
    """Open a folder that ``save_to_disk`` has written.

    Raises:
        ConfigError: it cannot be read, or has no images with labels.
    """
    place = ("data.root", config.root)
    package = _package(place)
    try:
        found = package.load_from_disk(str(config.root))
    except Exception as error:  # what is missing or damaged there
        raise ConfigError(*place, f"cannot be read as a data set of Hugging Face ({_words(error)})") from error
    return _opened(config, place, package, found)


def open_named(config: DataConfig) -> Opened:
    """Open a data set by its name on the hub: ``hf:user/name``, or ``hf:user/name:configuration``.

    It is downloaded into ``data.root``, or where HF_HOME says; where the hub is out of reach, what lies there is taken.

    Raises:
        ConfigError: no such data set, it cannot be had, or has no images with labels.
    """
    place = ("data.dataset", config.dataset)
    package = _package(place)
    name, _, configuration = config.dataset.removeprefix(PREFIX).partition(":")
    where = None if config.root is None else str(config.root)
    offline = _out_of_reach() if config.download else "data.download is false"
    try:
        with _offline(package, offline is not None):
            found = package.load_dataset(name, configuration or None, cache_dir=where)
    except Exception as error:  # of the network, of the hub, of the files there
        if offline is None:
            raise ConfigError(*place, f"cannot be loaded ({_words(error)})") from error
        cache = where or package.config.HF_DATASETS_CACHE
        remedy = "load it where there is a network, save_to_disk a folder, and give that as data.root"
        raise ConfigError(*place, f"is not in {cache}, and cannot be downloaded ({offline}); {remedy}") from error
    return _opened(config, place, package, found)


def _package(place: Place) -> Any:
    try:
        import datasets  # an optional extra, and seconds to import
    except ImportError as error:
        remedy = f"needs the package datasets ({error}); pip install 'alast-tune[datasets]'"
        raise ConfigError(*place, remedy) from error
    return datasets


def _out_of_reach() -> str | None:
    """Say why the hub does not answer; None if it does. Its own client would ask again for most of a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # requests, httpx or offline mode, depending on the hub's version
        return f"{constants.ENDPOINT} is out of reach: {_words(error)}"
    return None


@contextmanager
def _offline(package: Any, offline: bool) -> Iterator[None]:
    """Let the package look at what it has downloaded before, and nowhere else."""
    before = package.config.HF_HUB_OFFLINE
    package.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        package.config.HF_HUB_OFFLINE = before


def _opened(config: DataConfig, place: Place, package: Any, found: Any) -> Opened:
    splits = found if isinstance(found, Mapping) else {"all": found}
    parts: dict[str, Any] = {}
    unused = []
    for name, dataset in splits.items():
        role = "all" if len(splits) == 1 else role_of(name)  # a single one is always called train
        if role in parts:
            raise ConfigError(*place, f"has two splits that both look like {role}: {', '.join(splits)}; keep one")
        if role is None:
            unused.append(f"{name} ({len(dataset)} images)")
        else:
            parts[role] = dataset
    if not parts:
        raise ConfigError(*place, f"has the splits {', '.join(splits) or 'none'}; none of them is a train split")
    notes = [f"not used, since no train, validation or test split: {', '.join(unused)}"] if unused else []
    first = next(iter(parts.values()))
    image, label = (_column(config, place, package, first, use) for use in ("image", "label"))
    for part, dataset in parts.items():
        if other := [name for name in (image, label) if dataset.features.get(name) != first.features[name]]:
            agree = f"in {part} than in {next(iter(parts))}; make them agree"
            raise ConfigError(*place, f"has another column {other[0]} {agree}")
    labels = {part: list(dataset.with_format(None)[label]) for part, dataset in parts.items()}
    for part in ("validation", "test"):
        if part in parts and all(value in {None, -1} for value in labels[part]):  # as the hub has those of competitions
            notes.append(f"the {part} split has no labels, and is not used")
            del parts[part], labels[part]
    names = getattr(first.features[label], "names", None)
    values = range(len(names)) if names else sorted({value for found in labels.values() for value in found} - {None})
    order = {value: index for index, value in enumerate(values)}
    sources = {}
    for part, dataset in parts.items():
        if odd := [index for index, value in enumerate(labels[part]) if value not in order]:
            more = f" (one of {len(odd)} such images)" if len(odd) > 1 else ""
            what = f"image {odd[0]} of {part} has the label {labels[part][odd[0]]!r}"
            raise ConfigError(*place, f"{what}, which is none of the {len(order)} classes; remove it{more}")
        images = dataset.with_format(None).select_columns([image]).cast_column(image, package.Image(decode=False))
        keys = [str(index) for index in range(len(dataset))]
        numbers = np.array([order[value] for value in labels[part]], np.int64)
        sources[part] = Source(place, keys, numbers, _Images(images, image))
    return Opened(tuple(map(str, names or values)), sources, tuple(notes))


def _column(config: DataConfig, place: Place, package: Any, dataset: Any, use: str) -> str:
    """Find a column by the name that is given, or else by its type."""
    kinds = {"image": package.Image, "label": package.ClassLabel}
    given, features = getattr(config.columns, use), dataset.features
    there = ", ".join(features)
    if given is not None:
        if given not in features:
            raise ConfigError(f"data.columns.{use}", given, f"{place[1]} has no such column, it has {there}")
        found = [given]
    else:
        found = [name for name, feature in features.items() if isinstance(feature, kinds[use])]
    if len(found) != 1:
        what = f"{len(found) or 'no'} columns of type {kinds[use].__name__}"
        raise ConfigError(*place, f"has {what}; set data.columns.{use} to one of {there}")
    kind = features[found[0]]
    if use == "image" and not isinstance(kind, package.Image):
        raise ConfigError(f"data.columns.{use}", found[0], f"is no Image column ({kind}); give one of {there}")
    plain = isinstance(kind, package.Value) and kind.dtype.startswith(("int", "uint", "string", "large_string", "bool"))
    if use == "label" and not (isinstance(kind, package.ClassLabel) or plain):
        raise ConfigError(f"data.columns.{use}", found[0], f"is no column of labels ({kind}); give one of {there}")
    return str(found[0])


@dataclass(frozen=True)
class _Images:
    """Images as they lie in a data set: the bytes of a file, or a path."""

    dataset: Any
    column: str

    def __call__(self, index: int) -> Item:
        found = self.dataset[index][self.column] or {}
        if content := found.get("bytes"):
            return bytes(content)
        if path := found.get("path"):
            return Path(path)
        raise ValueError("there is none")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
