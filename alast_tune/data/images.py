"""Labelled images by the batch, augmented and normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        transform: makes of them what the model sees, normalised float32; it may draw from torch's global generator.
    """

    def __init__(
        self,
        source: Source,
        indices: Indices,
        pixels: Callable[[list[int]], Tensor],
        transform: Callable[[Tensor], Tensor],
    ) -> None:
        self.source = source
        self.indices = indices
        self.pixels = pixels
        self.labels = torch.from_numpy(source.labels[indices])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, batch: list[int]) -> tuple[Tensor, Tensor]:
        """Get images (B, 3, H, W) and labels (B,); torch's loaders ask for whole batches where they can."""
        return self.transform(self.pixels(batch)), self.labels[batch]

    def contents(self) -> Iterable[tuple[str, str]]:
        """Name each image, as it is called wherever the data lie, with a checksum of its content; reads what is new.

        Raises:
            ConfigError: a file is gone.
        """
        return zip(
            (self.source.keys[index] for index in self.indices), self.source.checksums(self.indices), strict=True
        )


def paper_augmentation(images_BCHW: Tensor) -> Tensor:
    """Apply two of horizontal flip, vertical flip and random crop to each image (appendix E), all pairs as often.

    A flip that is drawn flips half of the images; the crop is of the image's own size, after padding an eighth
    with zeros. It draws from torch's global generator.
    """
    batch, size = len(images_BCHW), images_BCHW.shape[-1]
    margin = max(1, size // 8)
    left_out = torch.randint(3, (batch, 1))
    flips = (torch.rand(batch, 2) < 0.5) & (left_out != torch.arange(2))
    corners = torch.where(left_out == 2, margin, torch.randint(2 * margin + 1, (batch, 2)))
    for dim in (-1, -2):
        images_BCHW = torch.where(flips[:, dim, None, None, None], images_BCHW.flip(dim), images_BCHW)
    padded = F.pad(images_BCHW, [margin] * 4)
    crops = zip(padded, corners.tolist(), strict=True)
    return torch.stack([image[:, top : top + size, left : left + size] for image, (top, left) in crops])
