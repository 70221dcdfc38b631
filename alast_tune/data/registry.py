"""Data sets of somebody's own: an object with images and labels, under a name that a configuration can give.

By :func:`register` in this process, or by an entry point of group ``alast_tune.datasets``, which every process that
has the package installed finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from alast_tune.config import DataConfig
from alast_tune.data.downloads import CLASS_COUNTS
from alast_tune.data.folders import role_of
from alast_tune.data.inspection import Item, Place
from alast_tune.data.sources import Opened, Source
from alast_tune.errors import ConfigError
from alast_tune.plugins import entries_of, registered_here
from alast_tune.text import shorten_list

GROUP = "alast_tune.datasets"


class MapDataset(Protocol):
    """Images and labels by number; torchvision's data sets are of this kind.

    The labels (n,) are in ``targets`` or ``labels`` too, or where torchvision has them: they have to be known before an
    image is opened. The names of the classes may be in ``classes``, and in ``keys`` (n,) a name of each image that
    stays when others are added.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Get an image as Pillow has it, and its label. Threads call it, several at a time."""


Factory: TypeAlias = Callable[[Path | None], MapDataset | Mapping[str, MapDataset]]
"""Makes a data set, or one a split (train, validation, test), of ``data.root``."""

LABELS = ("targets", "labels", "_labels", "y")
"""Where a data set has its labels; torchvision's Caltech101 and Caltech256 in the last,"""
SAMPLES = "_samples"
"""and its GTSRB, StanfordCars and some others beside each image's path."""


def register(name: str, factory: Factory) -> None:
    """Give a data set a name; in this process only, and in place of an earlier one of that name.

    Raises:
        ConfigError: a name that is none, or ours.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError("register_dataset", name, "is no name; take letters, digits, _, . and -")
    if name in {*CLASS_COUNTS, "folder"}:
        raise ConfigError("register_dataset", name, "is a data set that comes with alast-tune; choose another name")
    registered_here(GROUP)[name] = factory


def registered() -> dict[str, Factory]:
    """Find what is registered, by name: here, or by a package that is installed, and not loaded yet."""
    plugged = {entry.name: partial(_plugged, entry) for entry in entries_of(GROUP)}
    return plugged | registered_here(GROUP)


def _plugged(entry: EntryPoint, root: Path | None) -> MapDataset | Mapping[str, MapDataset]:
    made: MapDataset | Mapping[str, MapDataset] = entry.load()(root)
    return made


def open_registered(config: DataConfig, factory: Factory) -> Opened:
    """Make a registered data set.

    Raises:
        ConfigError: it cannot be made, or is not of the kind that it has to be.
    """
    place = ("data.dataset", config.dataset)
    try:
        made = factory(config.root)
    except ConfigError:
        raise
    except Exception as error:  # anybody's code
        raise ConfigError(*place, f"cannot be made of data.root = {config.root} ({_words(error)})") from error
    if not isinstance(made, Mapping):
        made = {"all": made}
    parts: dict[str, Any] = {}
    for name, dataset in made.items():
        role = "all" if name == "all" and len(made) == 1 else role_of(str(name))
        if role is None or role in parts:
            remedy = "give one data set, or a mapping of train, maybe validation, maybe test"
            raise ConfigError(*place, f"has the splits {', '.join(map(str, made))}; {remedy}")
        parts[role] = dataset
    labels = {part: _labels(place, dataset) for part, dataset in parts.items()}
    values = sorted({label for found in labels.values() for label in found}, key=lambda one: (str(type(one)), one))
    named = {part: list(names) for part, dataset in parts.items() if (names := _classes(dataset))}
    given = next(iter(named.values()), None)
    if odd := [part for part, found in named.items() if found != given]:
        raise ConfigError(*place, f"has other classes in {odd[0]} than in {next(iter(named))}; make them agree")
    names = values if given is None else given
    # Labels are numbers of the classes, or names of theirs.
    numbered = given is not None and not any(isinstance(value, str) for value in values)
    order = {value: index for index, value in enumerate(range(len(names)) if numbered else names)}
    if unknown := [value for value in values if value not in order]:
        what = f"has the label {unknown[0]!r}, and the {len(names)} classes {shorten_list(map(str, names))}"
        raise ConfigError(*place, f"{what}; make them agree, numbers count from 0")
    sources = {
        part: Source(
            place,
            _keys(place, dataset),
            np.array([order[label] for label in labels[part]], np.int64),
            partial(_item, place, dataset, labels[part]),
        )
        for part, dataset in parts.items()
    }
    return Opened(tuple(map(str, names)), sources)


def _labels(place: Place, dataset: Any) -> list[Any]:
    """Get the labels (n,), each of which can be a key."""
    found = next((found for name in LABELS if (found := getattr(dataset, name, None)) is not None), None)
    if found is None and (samples := getattr(dataset, SAMPLES, None)):
        found = [label for _, label in samples]
    if found is None:
        remedy = "has neither targets nor labels; give it one of them: a list of the labels, in the images' order"
        raise ConfigError(*place, remedy)
    labels = np.asarray(found)
    if labels.shape != (len(dataset),) or labels.dtype.kind not in "iuU":
        remedy = f"give a whole number or a name for each of the {len(dataset)} images"
        raise ConfigError(*place, f"has labels of type {labels.dtype} and shape {labels.shape}; {remedy}")
    values: list[Any] = labels.tolist()
    return values


def _classes(dataset: Any) -> Any:
    """Get the names of the classes; in torchvision's Caltech101 and Caltech256 they are ``categories``."""
    return getattr(dataset, "classes", None) or (hasattr(dataset, "y") and getattr(dataset, "categories", None))


def _keys(place: Place, dataset: Any) -> Sequence[str]:
    keys = getattr(dataset, "keys", None)
    if keys is None or callable(keys):
        return [str(index) for index in range(len(dataset))]
    keys = [str(key) for key in keys]
    if not len(dataset) == len(keys) == len(set(keys)):
        raise ConfigError(*place, f"has {len(set(keys))} different keys for {len(dataset)} images; give each its own")
    return keys


def _item(place: Place, dataset: MapDataset, labels: Sequence[Any], index: int) -> Item:
    """Get an image, which has the label that it is said to have."""
    try:
        image, label = dataset[index]
        agree = bool(label == labels[index])
    except Exception as error:  # anybody's code
        raise ConfigError(*place, f"has no image {index} ({_words(error)})") from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        remedy = "give images as Pillow has them, without any transform"
        raise ConfigError(*place, f"image {index} is of type {type(image).__name__}; {remedy}")
    if not agree:
        remedy = f"comes with the label {label!r}, and its list of labels says {labels[index]!r}; make them agree"
        raise ConfigError(*place, f"image {index} {remedy}")
    return image


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
