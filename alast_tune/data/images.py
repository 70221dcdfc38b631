"""Labelled images by the batch: bytes on their way, augmented and normalised where they are computed with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from alast_tune.data.augmentation import AUGMENTATIONS, ERASE_DRAWS, erase
from alast_tune.data.sources import Source
from alast_tune.data.splitting import Indices
from alast_tune.models import InputSpec

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Preparation:
    """What makes of pixels what a model sees.

    Args:
        spec: size and normalisation.
        augment: ``data.augment``, of what is drawn.
        erasing: ``data.random_erasing``, of what is drawn.
    """

    spec: InputSpec
    augment: str = "none"
    erasing: float = 0.0

    def draw(self, seed: np.random.SeedSequence, images: int) -> Tensor | None:
        """Draw what an epoch's images are augmented by, (n, numbers of an image); None: they are as they are."""
        generator = np.random.default_rng(seed)
        counts = AUGMENTATIONS[self.augment][0], ERASE_DRAWS if self.erasing else 0
        # One after the other: erasing changes nothing about the rest.
        return torch.from_numpy(np.hstack([generator.random((images, n)) for n in counts])) if any(counts) else None

    def __call__(self, pixels_BCHW: Tensor, draws_BD: Tensor | None) -> Tensor:
        """Enlarge, augment and normalise, on the pixels' device.

        Args:
            pixels_BCHW: uint8; or float32 in [0, 1], grey maybe. Of the size that a model takes, or smaller.
            draws_BD: of :meth:`draw`, on a CPU.

        Returns:
            float32 (B, 3, S, S), that no other tensor shares.
        """
        pixels_BCHW = _enlarge(pixels_BCHW, self.spec.image_size)
        if draws_BD is None:
            return self._normalise(pixels_BCHW)
        count, augmentation = AUGMENTATIONS[self.augment]
        if self.augment == "paper" and pixels_BCHW.is_floating_point():
            # The border of a digit's crop is what the model sees as 0, that of a picture's is black.
            images_BCHW = augmentation(self._normalise(pixels_BCHW), draws_BD[:, :count])
        else:
            images_BCHW = self._normalise(augmentation(pixels_BCHW, draws_BD[:, :count]))
        return erase(images_BCHW, draws_BD[:, count:], self.erasing) if self.erasing else images_BCHW

    def _normalise(self, pixels_BCHW: Tensor) -> Tensor:
        mean_C11, std_C11 = (
            torch.tensor(values)[:, None, None].to(pixels_BCHW.device, non_blocking=True)
            for values in (self.spec.mean, self.spec.std)
        )
        if pixels_BCHW.is_floating_point():
            return pixels_BCHW.sub(mean_C11).div_(std_C11)
        return pixels_BCHW.float().mul_(1 / 255).sub_(mean_C11).div_(std_C11)


@dataclass(frozen=True)
class Batch:
    """Images on their way to a device."""

    pixels_BCHW: Tensor
    draws_BD: Tensor | None
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.pixels_BCHW)

    def split(self, size: int) -> list[Batch]:
        """Divide it into batches of a size, or less for the last one."""
        parts = self.pixels_BCHW.split(size)
        draws = [None] * len(parts) if self.draws_BD is None else self.draws_BD.split(size)
        return [replace(self, pixels_BCHW=part, draws_BD=drawn) for part, drawn in zip(parts, draws, strict=True)]


def prepare(images: Tensor | Batch, device: torch.device) -> Tensor:
    """Bring a loader's images, or features, to a device, as a model sees them there; a GPU is not waited for."""
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return images.preparation(images.pixels_BCHW.to(device, non_blocking=True), images.draws_BD)


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, a batch at a time.

    Args:
        source: of the images.
        indices: (n,) of the images in the source.
        pixels: gets those of a batch, (B, C, H, W), by their numbers among the n.
        preparation: makes of them what the model sees, once :func:`prepare` is asked for it; None: they are that.
    """

    def __init__(
        self,
        source: Source,
        indices: Indices,
        pixels: Callable[[list[int]], Tensor],
        preparation: Preparation | None = None,
    ) -> None:
        self.source = source
        self.indices = indices
        self.pixels = pixels
        self.labels = torch.from_numpy(source.labels[indices])
        self.preparation = preparation
        self.loaders: dict[int, DataLoader[Any]] = {}
        """With processes of their own, which stay: by how many."""
        self._draws_ND: Tensor | None = None

    def drawn(self, seed: np.random.SeedSequence) -> Images:
        """Give the same images as they are augmented in an epoch: each has draws of its own, by its number.

        Which rank, loader process or batch asks for an image, and after which others, makes no difference.
        """
        epoch = copy.copy(self)
        if self.preparation is not None:
            epoch._draws_ND = self.preparation.draw(seed, len(self))
        return epoch

    def drawing(self) -> str:
        """Say how they are prepared, and what was drawn for it: a hash."""
        drawn = b"" if self._draws_ND is None else self._draws_ND.numpy().tobytes()
        return hashlib.blake2b(repr(self.preparation).encode() + drawn, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, batch: list[int]) -> tuple[Tensor, Tensor]:
        """Get images as a model sees them, (B, 3, S, S) on the CPU, and labels (B,)."""
        return prepare(self.batch(batch, self.pixels(batch)), CPU), self.labels[batch]

    def batch(self, numbers: list[int], pixels: Tensor) -> Tensor | Batch:
        """Put to the pixels of some images, by their numbers, what prepares them."""
        if self.preparation is None:
            return pixels
        return Batch(pixels, None if self._draws_ND is None else self._draws_ND[numbers], self.preparation)

    def contents(self) -> Iterable[tuple[str, str]]:
        """Name each image, as it is called wherever the data lie, with a checksum of its content; reads what is new.

        Raises:
            ConfigError: a file is gone.
        """
        return zip(
            (self.source.keys[index] for index in self.indices), self.source.checksums(self.indices), strict=True
        )


@cache
def enlarges_as_pillow(side: int, size: int) -> bool:
    """Whether bytes enlarged here, on a CPU, are those that Pillow makes of them: it depends on both sides."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    expected = np.asarray(Image.fromarray(noise_HWC).resize((size, size), Image.Resampling.BILINEAR))
    enlarged = _enlarge(torch.from_numpy(noise_HWC).permute(2, 0, 1).contiguous()[None], size)[0]
    return torch.equal(enlarged.permute(1, 2, 0), torch.from_numpy(expected.copy()))


def _enlarge(pixels_BCHW: Tensor, size: int) -> Tensor:
    """Bring images that are kept at a size of their own to a model's."""
    if pixels_BCHW.is_floating_point():
        return F.interpolate(pixels_BCHW, (size, size), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    if pixels_BCHW.shape[-1] == size:
        return pixels_BCHW
    larger: Tensor = V.resize(pixels_BCHW, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return larger
