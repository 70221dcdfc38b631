"""Augmentations of whole batches, where the pixels are: each image by numbers of its own, drawn in [0, 1).

What torchvision's classes do to one image at a time, out of the global generator, is here done to a batch by tensors
of magnitudes: an image comes out the same whichever others it is with, and no number is waited for on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

LEVELS = 31
"""Magnitudes that TrivialAugment and RandAugment know, the first of which changes nothing."""

RAND_LEVEL = 9
"""Of RandAugment, which takes two operations."""

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""Of both, all as likely."""


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
    flips = _moved((draws_B5[:, 1:3] < 0.5) & (left_out != torch.arange(2)), images_BCHW)
    corners = torch.where(left_out == 2, margin, ((2 * margin + 1) * draws_B5[:, 3:]).long())
    for dim in (-1, -2):
        images_BCHW = torch.where(flips[:, dim, None, None, None], images_BCHW.flip(dim), images_BCHW)
    padded = F.pad(images_BCHW, [margin] * 4)
    crops = zip(padded, corners.tolist(), strict=True)
    return torch.stack([image[:, top : top + size, left : left + size] for image, (top, left) in crops])


def crop(images_BCHW: Tensor, draws_B5: Tensor) -> Tensor:
    """Cut out a part of each image, enlarge it to the image's size, and flip half of them, as timm trains.

    Of 8 to 100% of the area, and of a ratio of sides from 3/4 to 4/3; bilinear.

    Args:
        images_BCHW: square; uint8, or float32.
        draws_B5: chance: the part's area, ratio, row and column; the flip.
    """
    size = images_BCHW.shape[-1]
    top, left, height, width = rectangles(draws_B5[:, :4].numpy(), size, (0.08, 1.0), 4 / 3)
    pixels = np.arange(size) + 0.5
    # Beyond a part's outermost pixels there is nothing: these are repeated, as where the part is an image by itself.
    rows_BS = np.clip(pixels * (height / size)[:, None] - 0.5, 0, height[:, None] - 1) + top[:, None]
    columns_BS = np.clip(pixels * (width / size)[:, None] - 0.5, 0, width[:, None] - 1) + left[:, None]
    flipped = draws_B5[:, 4:].numpy() < 0.5
    columns_BS = np.where(flipped, columns_BS[:, ::-1], columns_BS)
    places_2BS = _moved(torch.from_numpy((2 * np.stack([columns_BS, rows_BS]) + 1) / size - 1).float(), images_BCHW)
    grid_BHW2 = torch.stack(torch.broadcast_tensors(places_2BS[0, :, None, :], places_2BS[1, :, :, None]), dim=-1)
    return _sample(images_BCHW, grid_BHW2, "bilinear")


def trivial(images_BCHW: Tensor, draws_B8: Tensor) -> Tensor:
    """Crop, then change each image by one operation of a magnitude at random: TrivialAugment, wide.

    Args:
        images_BCHW: square; uint8, or float32 in [0, 1].
        draws_B8: chance: of :func:`crop`; the operation, its magnitude and its sign.
    """
    numbers_B3 = draws_B8[:, 5:].numpy()
    level_B = np.floor(LEVELS * numbers_B3[:, 1]).astype(np.int64)
    return _change(
        _as_bytes(crop(images_BCHW, draws_B8[:, :5])), numbers_B3[:, 0], level_B, numbers_B3[:, 2], wide=True
    )


def rand(images_BCHW: Tensor, draws_B9: Tensor) -> Tensor:
    """Crop, then change each image by two operations of the same magnitude one after the other: RandAugment.

    Args:
        images_BCHW: square; uint8, or float32 in [0, 1].
        draws_B9: chance: of :func:`crop`; twice an operation and its sign.
    """
    images_BCHW = _as_bytes(crop(images_BCHW, draws_B9[:, :5]))
    level_B = np.full(len(images_BCHW), RAND_LEVEL)
    for column in (5, 7):
        chosen, sign = draws_B9[:, column].numpy(), draws_B9[:, column + 1].numpy()
        images_BCHW = _change(images_BCHW, chosen, level_B, sign, wide=False)
    return images_BCHW


def erase(images_BCHW: Tensor, draws_B5: Tensor, probability: float) -> Tensor:
    """Set a rectangle of some images to 0, which is the mean where they are normalised; in place.

    Of 2 to 33% of the area, and of a ratio of sides from 0.3 to 1/0.3: timm's random erasing, of constant colour.

    Args:
        images_BCHW: square, normalised.
        draws_B5: chance: whether; the rectangle's area, ratio, row and column.
        probability: of an image to lose one.
    """
    size, draws = images_BCHW.shape[-1], draws_B5.numpy()
    top, left, height, width = rectangles(draws[:, 1:], size, (0.02, 1 / 3), 1 / 0.3)
    place = np.arange(size)
    rows_BS = (top[:, None] <= place) & (place < (top + height)[:, None]) & (draws[:, :1] < probability)
    columns_BS = (left[:, None] <= place) & (place < (left + width)[:, None])
    inside_2BS = _moved(torch.from_numpy(np.stack([rows_BS, columns_BS])), images_BCHW)
    return images_BCHW.masked_fill_(inside_2BS[0, :, None, :, None] & inside_2BS[1, :, None, None, :], 0)


ERASE_DRAWS = 5
"""Numbers that :func:`erase` wants for an image."""

AUGMENTATIONS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "none": (0, lambda images_BCHW, draws_B0: images_BCHW),
    "paper": (5, paper_augmentation),
    "crop": (5, crop),
    "trivial": (8, trivial),
    "rand": (9, rand),
}
"""``data.augment`` -> how many numbers an image wants, and what they make of a batch."""


def rectangles(
    draws_B4: NDArray[np.float64], side: int, areas: tuple[float, float], ratio: float
) -> tuple[NDArray[np.int64], ...]:
    """Draw rectangles in a square: area uniform, and the logarithm of the ratio of sides, among those that fit.

    timm and torchvision draw both again until the rectangle fits; this is what they come to.

    Args:
        draws_B4: chance: area, ratio, row, column.
        side: of the square, pixels.
        areas: least and greatest, as shares.
        ratio: greatest of width to height; its inverse is the least.

    Returns:
        Top, left, height and width (B,), pixels.
    """
    area_G = np.linspace(*areas, 4097)
    fitting_G = np.minimum(math.log(ratio), -np.log(area_G))  # how large a ratio's logarithm may be
    mass_G = np.concatenate([[0], np.cumsum(fitting_G[1:] + fitting_G[:-1])])
    area_B = np.interp(draws_B4[:, 0], mass_G / mass_G[-1], area_G)
    log_B = (2 * draws_B4[:, 1] - 1) * np.minimum(math.log(ratio), -np.log(area_B))
    height, width = (
        np.clip(np.rint(side * np.sqrt(area_B * np.exp(sign * log_B))), 1, side).astype(np.int64) for sign in (-1, 1)
    )
    top, left = (
        np.floor(draw * (side - length + 1)).astype(np.int64)
        for draw, length in ((draws_B4[:, 2], height), (draws_B4[:, 3], width))
    )
    return top, left, height, width


def _change(
    images_BCHW: Tensor, chosen_B: NDArray[Any], level_B: NDArray[Any], sign_B: NDArray[Any], *, wide: bool
) -> Tensor:
    """Change each image by an operation: those of one operation together; ``wide``: TrivialAugment's magnitudes."""
    chosen_B = np.floor(len(OPERATIONS) * chosen_B).astype(np.int64)
    sign_B = np.where(sign_B < 0.5, -1, 1)
    for number in np.unique(chosen_B).tolist():
        (which,) = np.nonzero(chosen_B == number)
        places = _moved(torch.from_numpy(which), images_BCHW)
        changed = operate(OPERATIONS[number], images_BCHW[places], level_B[which], sign_B[which], wide=wide)
        images_BCHW.index_copy_(0, places, changed)  # crops of their own
    return images_BCHW


def operate(
    name: str, images_BCHW: Tensor, level_B: NDArray[np.int64], sign_B: NDArray[np.int64], *, wide: bool
) -> Tensor:
    """Change images by one of :data:`OPERATIONS`, as torchvision does.

    Args:
        name: of the operation.
        images_BCHW: uint8.
        level_B: magnitudes, of :data:`LEVELS`.
        sign_B: 1 or -1, for what goes two ways.
        wide: magnitudes of TrivialAugment's wide space, not of RandAugment's.
    """
    if name in {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}:
        return _warp(name, images_BCHW, level_B, sign_B, wide=wide)
    if name in {"brightness", "colour", "contrast", "sharpness"}:
        return _blend(name, images_BCHW, 1 + sign_B * _magnitudes(level_B, 0, 0.99 if wide else 0.9))
    if name == "posterize":
        bits_B = np.rint(_magnitudes(level_B, 8, 2 if wide else 4)).astype(np.int64)
        masks_B = torch.from_numpy((256 - (1 << (8 - bits_B))).astype(np.uint8))
        return images_BCHW & _each(masks_B, images_BCHW)
    if name == "solarize":
        bounds_B = torch.from_numpy(255 * _magnitudes(level_B, 1, 0)).float()
        return torch.where(images_BCHW >= _each(bounds_B, images_BCHW), ~images_BCHW, images_BCHW)
    changed: Tensor = {"autocontrast": V.autocontrast, "equalize": V.equalize}.get(name, torch.clone)(images_BCHW)
    return changed


def _magnitudes(level_B: NDArray[np.int64], least: float, most: float) -> NDArray[np.float64]:
    """Look up magnitudes of levels, rounded as torchvision's are."""
    found: NDArray[np.float64] = torch.linspace(least, most, LEVELS).double().numpy()[level_B]
    return found


def _warp(
    name: str, images_BCHW: Tensor, level_B: NDArray[np.int64], sign_B: NDArray[np.int64], *, wide: bool
) -> Tensor:
    """Shear about the upper left corner, move or turn; nearest pixels, black beyond the image."""
    size, count = images_BCHW.shape[-1], len(images_BCHW)
    sources_B23 = np.tile(np.eye(2, 3), (count, 1, 1))  # from a place in the result, from the centre, to one before
    if name.startswith("shear"):
        shear_B, row = sign_B * _magnitudes(level_B, 0, 0.99 if wide else 0.3), int(name == "shear_y")
        sources_B23[:, row, 1 - row] = shear_B
        sources_B23[:, row, 2] = shear_B * size / 2
    elif name.startswith("translate"):
        pixels_B = sign_B * np.trunc(_magnitudes(level_B, 0, 32 if wide else 150 / 331 * size))
        sources_B23[:, int(name == "translate_y"), 2] = -pixels_B
    else:
        angle_B = np.radians(sign_B * _magnitudes(level_B, 0, 135 if wide else 30))
        cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
        sources_B23[:, :, :2] = np.stack([cos_B, -sin_B, sin_B, cos_B], axis=-1).reshape(-1, 2, 2)
    rows_2B3 = _moved(torch.from_numpy(sources_B23).float(), images_BCHW).unbind(1)
    middle = torch.arange(size, device=images_BCHW.device) - (size - 1) / 2
    x_BHW, y_BHW = middle[None, None, :], middle[None, :, None]
    grid = [
        row_B3[:, None, None, 0] * x_BHW + row_B3[:, None, None, 1] * y_BHW + row_B3[:, None, None, 2]
        for row_B3 in rows_2B3
    ]
    return _sample(images_BCHW, torch.stack(grid, dim=-1) / (size / 2), "nearest")


def _blend(name: str, images_BCHW: Tensor, factor_B: NDArray[np.float64]) -> Tensor:
    """Mix images with what has no brightness, no colour, no contrast or no detail; a factor above 1 leads away."""
    pixels = images_BCHW.float()
    factor, rest = (_each(torch.from_numpy(values).float(), images_BCHW) for values in (factor_B, 1 - factor_B))
    if name == "sharpness":
        inner = pixels[..., 1:-1, 1:-1]  # a view: the border stays as it is
        smooth = ((9 * F.avg_pool2d(pixels, 3, stride=1) + 4 * inner) / 13).round_()
        inner.add_((smooth - inner) * rest)
        return pixels.clamp_(0, 255).to(torch.uint8)
    if name == "brightness":
        return pixels.mul_(factor).clamp_(0, 255).to(torch.uint8)
    red, green, blue = pixels.unbind(1)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue).floor_()[:, None]
    if name == "contrast":  # whole numbers, whose sum is exact whatever the order in which they are added
        grey = (grey.sum((1, 2, 3), dtype=torch.float64) / grey[0].numel()).float()[:, None, None, None]
    return pixels.mul_(factor).add_(grey * rest).clamp_(0, 255).to(torch.uint8)


def _sample(images_BCHW: Tensor, grid_BHW2: Tensor, mode: str) -> Tensor:
    beyond = "zeros" if mode == "nearest" else "border"
    found = F.grid_sample(images_BCHW.float(), grid_BHW2, mode=mode, padding_mode=beyond, align_corners=False)
    return found if images_BCHW.is_floating_point() else found.round_().to(images_BCHW.dtype)


def _as_bytes(images_BCHW: Tensor) -> Tensor:
    return images_BCHW if images_BCHW.dtype == torch.uint8 else (255 * images_BCHW).round_().to(torch.uint8)


def _each(values_B: Tensor, images_BCHW: Tensor) -> Tensor:
    return _moved(values_B, images_BCHW)[:, None, None, None]


def _moved(values: Tensor, images_BCHW: Tensor) -> Tensor:
    """Bring what was drawn to where the images are, without waiting for it."""
    return values.to(images_BCHW.device, non_blocking=True)
