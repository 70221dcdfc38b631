"""What a data set is to all else: how to open image i, its label, and a name of it that stays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from alast_tune.data.inspection import Item, Place, Verdict, fault, inspect
from alast_tune.data.rgb import to_rgb
from alast_tune.data.splitting import Indices
from alast_tune.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """Labelled images in some order."""

    place: Place
    """Setting that names the data, and its value, for errors."""
    keys: Sequence[str]
    """(n,) names that stay as the data move or grow: paths in their folder, or positions where nothing is inserted."""
    labels: Indices
    """(n,) of the classes' order."""
    item: Callable[[int], Item]
    """Gets image i as it lies there: a file, a file's bytes, a Pillow image, or an array. Threads call it."""

    def open(self, index: int) -> Image.Image:
        """Open an image; a file is not decoded yet."""
        item = self.item(index)
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
        if isinstance(item, Image.Image):
            return item
        return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)

    def decode(self, index: int) -> Image.Image:
        """Read an image, RGB.

        Raises:
            ConfigError: naming an image that is gone, or none any more.
        """
        try:
            with self.open(index) as image:
                return to_rgb(image)
        except ConfigError:
            raise
        except Exception as error:  # the formats' readers raise nearly anything on rubbish
            raise ConfigError(*self.place, fault(self._name(index), error)) from error

    def inspect(self, decode: bool) -> Iterator[tuple[str, Verdict]]:
        """Look at all images, which are decoded if so asked; their keys, and what was found.

        Raises:
            ConfigError: naming an image that is gone, or none.
        """
        return zip(self.keys, self._inspect(np.arange(len(self.labels)), decode), strict=True)

    def checksums(self, indices: Indices) -> list[str]:
        """Checksum images (m,) given by their indices.

        Raises:
            ConfigError: naming an image that is gone.
        """
        return [found.checksum for found in self._inspect(indices)]

    def _inspect(self, indices: Indices, decode: bool = False) -> list[Verdict]:
        return inspect(self.place, self.item, self._name, indices.tolist(), decode)

    def _name(self, index: int) -> str:
        """Name an image to a person: a file by its path, another one by its key."""
        item = self.item(index)
        return self.keys[index] if isinstance(item, bytes | Image.Image | np.ndarray) else str(item)

    def __add__(self, other: Source) -> Source:
        """Put the images of another source behind these."""
        labels = np.concatenate([self.labels, other.labels])
        return Source(self.place, [*self.keys, *other.keys], labels, partial(_item_of_two, self, other))


def _item_of_two(first: Source, second: Source, index: int) -> Item:
    count = len(first.labels)
    return first.item(index) if index < count else second.item(index - count)


@dataclass(frozen=True)
class Opened:
    """A data set whose images are found and not yet divided, unless it comes in splits."""

    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    parts: Mapping[str, Source]
    """"train", maybe "validation", maybe "test"; or "all" alone where nobody has split the images yet."""
    notes: tuple[str, ...] = ()
    """What was passed over, a line each."""
    side: int | None = None
    """Of all images, square ones, where that is known beforehand; pixels."""
    grows: bool = True
    """Whether images may be added, as to anybody's folder: splits then follow from each key alone."""
