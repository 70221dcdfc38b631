"""What an image file shows, as 8-bit RGB: the one conversion, of which ``tracking/served.py`` carries a copy."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""


class PixelRangeError(ValueError):
    """Grey values of which nobody can say what is black and what is white."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as a viewer shows it: upright (EXIF), what is transparent on white, the first frame.

    16-bit grey becomes its upper 8 bits; floats are taken to lie in [0, 1].

    Raises:
        PixelRangeError: grey values beyond 16 bits, below 0, or floats outside of [0, 1].
        Exception: what Pillow raises on a damaged file, or on a mode that it cannot convert.
    """
    image.load()
    orientation = None
    with suppress(Exception):  # EXIF that is damaged turns nothing, as in a viewer
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    elif image.has_transparency_data:
        if image.mode == "La":  # has no way to RGBA of its own
            image = image.convert("LA")
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("RGB")
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    most = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= most):  # nor where there are NaNs
        raise PixelRangeError(
            f"has grey values from {low:g} to {high:g}, not in [0, {most}]; save it with 8 or 16 bits"
        )
    white = image.info.get("transparency")
    grey = (values * 255 + 0.5 if image.mode == "F" else values >> 8).astype(np.uint8)
    if isinstance(white, int):
        grey[values == white] = 255
    return Image.fromarray(grey)
