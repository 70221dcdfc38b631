"""Labelled images by the batch, augmented and normalised."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from alast_tune.data.sources import Source
from alast_tune.data.splitting import Indices


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, a batch at a time.

    Args:
        source: of the images.
        indices: (n,) of the images in the source.
        pixels: gets those of a batch, (B, 3, H, W), by their numbers among the n.
        transform: makes of them what the model sees, normalised float32.
        augment: whether :meth:`drawn` gives them augmented.
    """

    def __init__(
        self,
        source: Source,
        indices: Indices,
        pixels: Callable[[list[int]], Tensor],
        transform: Callable[[Tensor], Tensor],
        augment: bool = False,
    ) -> None:
        self.source = source
        self.indices = indices
        self.pixels = pixels
        self.labels = torch.from_numpy(source.labels[indices])
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

    def drawing(self) -> str:
        """Say how they are augmented: a hash of what was drawn; empty: they are as they are."""
        return (
            ""
            if self._draws_N5 is None
            else hashlib.blake2b(self._draws_N5.numpy().tobytes(), digest_size=16).hexdigest()
        )

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

    def contents(self) -> Iterable[tuple[str, str]]:
        """Name each image, as it is called wherever the data lie, with a checksum of its content; reads what is new.

        Raises:
            ConfigError: a file is gone.
        """
        return zip(
            (self.source.keys[index] for index in self.indices), self.source.checksums(self.indices), strict=True
        )


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
