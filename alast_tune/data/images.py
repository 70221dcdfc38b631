"""Labelled images by the batch: decoded once where memory allows, augmented, normalised."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from alast_tune.data.sources import Source
from alast_tune.data.splitting import Indices

Pixels: TypeAlias = NDArray[np.uint8]


class Started(list[int]):
    """Numbers of images that threads are decoding, a part of them each."""

    def __init__(self, batch: Sequence[int], parts: Sequence[Future[Pixels]]) -> None:
        super().__init__(batch)
        self.parts = parts


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, a batch at a time.

    Args:
        pixels: gets those of a batch, (B, 3, H, W).
        labels: (n,).
        transform: makes of them what the model sees, normalised float32.
        augment: whether :meth:`drawn` gives them augmented.
    """

    def __init__(
        self,
        pixels: Callable[[list[int]], Tensor],
        labels: Indices,
        transform: Callable[[Tensor], Tensor],
        augment: bool = False,
    ) -> None:
        self.pixels = pixels
        self.labels = torch.from_numpy(labels)
        self.transform = transform
        self.augment = augment
        self._draws_N5: Tensor | None = None

    def drawn(self, seed: np.random.SeedSequence) -> Images:
        """Give the same images as they are augmented in an epoch: each has draws of its own, by its number.

        Which rank, loader process or batch asks for an image, and after which others, makes no difference.
        """
        epoch = copy.copy(self)
        if self.augment:
            epoch._draws_N5 = torch.from_numpy(np.random.default_rng(seed).random((len(self), DRAWS)))
        return epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, batch: list[int]) -> tuple[Tensor, Tensor]:
        """Get images (B, 3, H, W) and labels (B,); torch's loaders ask for whole batches where they can."""
        images = self.pixels(batch)
        if self._draws_N5 is not None:
            images = paper_augmentation(images, self._draws_N5[batch])
        return self.transform(images), self.labels[batch]


class Decoded:
    """Some images of a source, RGB and resized: decoded once if they are kept, else whenever they are needed."""

    def __init__(self, source: Source, indices: Indices, size: int, keep: bool) -> None:
        self.source = source
        self.indices = indices
        self.size = size
        # The system hands out memory when it is written to: a split that nobody looks at takes none.
        self._kept: Pixels = np.empty((len(indices) if keep else 0, 3, size, size), np.uint8)
        self._done = np.zeros(len(indices), bool)

    def __call__(self, batch: list[int]) -> Tensor:
        """Get the pixels of a batch, uint8 (B, 3, S, S).

        Raises:
            ConfigError: a file is gone, or no image any more.
        """
        if isinstance(batch, Started):
            return torch.from_numpy(np.concatenate([part.result() for part in batch.parts]))
        return torch.from_numpy(self._decode(batch))

    def start(self, batch: list[int], pool: Executor, parts: int) -> list[int]:
        """Let a pool's threads decode a batch in so many parts, unless it is in memory."""
        if self._done[batch].all():
            return batch
        chunks = [chunk for chunk in np.array_split(batch, parts) if len(chunk)]
        return Started(batch, [pool.submit(self._decode, chunk.tolist()) for chunk in chunks])

    def _decode(self, batch: list[int]) -> Pixels:
        return np.stack([self._kept[index] if self._done[index] else self._decode_one(index) for index in batch])

    def _decode_one(self, index: int) -> Pixels:
        image = self.source.decode(int(self.indices[index])).resize((self.size, self.size), Image.Resampling.BILINEAR)
        # Not a tensor: torch would start a team of threads of its own in each thread of a pool that gets here. One
        # memory layout, fresh or kept: convolutions round another one differently.
        pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        if len(self._kept):
            self._kept[index] = pixels
            self._done[index] = True
        return pixels


def free_bytes() -> int:
    """Memory that nothing uses; 0 where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows, macOS
        return 0


DRAWS = 5
"""Numbers that :func:`paper_augmentation` wants for an image."""


def paper_augmentation(images_BCHW: Tensor, draws_B5: Tensor) -> Tensor:
    """Apply two of horizontal flip, vertical flip and random crop to each image (appendix E), all pairs as often.

    A flip that is drawn flips half of the images; the crop is of the image's own size, after padding an eighth
    with zeros.

    Args:
        images_BCHW: of any type.
        draws_B5: chance, uniform in [0, 1): which of the three is left out, the two flips, the crop's row and column.
    """
    size = images_BCHW.shape[-1]
    margin = max(1, size // 8)
    left_out = (3 * draws_B5[:, :1]).long()
    flips = (draws_B5[:, 1:3] < 0.5) & (left_out != torch.arange(2))
    corners = torch.where(left_out == 2, margin, ((2 * margin + 1) * draws_B5[:, 3:]).long())
    for dim in (-1, -2):
        images_BCHW = torch.where(flips[:, dim, None, None, None], images_BCHW.flip(dim), images_BCHW)
    padded = F.pad(images_BCHW, [margin] * 4)
    crops = zip(padded, corners.tolist(), strict=True)
    return torch.stack([image[:, top : top + size, left : left + size] for image, (top, left) in crops])
