"""One conversion to RGB, in training and where the model is served: what a viewer shows."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alast_tune.data.rgb import PixelRangeError, to_rgb

RAMP = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.integers(0, 256, (20, 40, 3), np.uint8)


def square(mode: str) -> Image.Image:
    """A black square on what is transparent black."""
    image = Image.new(mode, (40, 20), 0)
    image.paste((0,) * (len(image.getbands()) - 1) + (255,), (10, 5, 20, 15))
    return image


def palette() -> Image.Image:
    image = Image.new("P", (40, 20), 0)
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 5, 20, 15))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES: dict[str, Callable[[Path], None]] = {
    "plain.png": lambda file: Image.fromarray(NOISE).save(file),
    "plain.jpg": lambda file: Image.fromarray(NOISE).save(file),
    "grey16.png": lambda file: Image.fromarray(RAMP.astype(np.uint16)).save(file),
    "grey16.tiff": lambda file: Image.fromarray(RAMP.astype(np.uint16)).save(file),
    "grey16.pgm": lambda file: Image.fromarray(RAMP.astype(np.int32)).save(file),
    "grey32.tiff": lambda file: Image.fromarray(RAMP.astype(np.int32)).save(file),
    "float.tiff": lambda file: Image.fromarray((RAMP / 65535).astype(np.float32)).save(file),
    "rgba.png": lambda file: square("RGBA").save(file),
    "la.png": lambda file: square("LA").save(file),
    "rgba.webp": lambda file: square("RGBA").save(file, lossless=True, exact=True),
    "palette.png": lambda file: palette().save(file, transparency=0),
    "palette-bytes.png": lambda file: palette().save(file, transparency=bytes([0, 255, 255])),
    "palette.gif": lambda file: palette().save(file, transparency=0),
    "rgb-key.png": lambda file: Image.fromarray(NOISE).save(file, transparency=tuple(map(int, NOISE[0, 0]))),
    "cmyk.jpg": lambda file: Image.fromarray(NOISE).convert("CMYK").save(file),
    "bits.png": lambda file: Image.fromarray(RAMP > 30000).save(file),
    "film.gif": lambda file: palette().save(file, save_all=True, append_images=[Image.new("P", (40, 20), 2)]),
    **{f"turn{n}.jpg": lambda file, n=n: Image.fromarray(NOISE).save(file, exif=turned(n)) for n in range(1, 9)},
    "turn6.png": lambda file: Image.fromarray(NOISE).save(file, exif=turned(6)),
    "turn6.tiff": lambda file: Image.fromarray(NOISE).save(file, exif=turned(6)),
    "turn6.webp": lambda file: Image.fromarray(NOISE).save(file, exif=turned(6), lossless=True),
    "turn6-16bit.png": lambda file: Image.fromarray(RAMP.astype(np.uint16)).save(file, exif=turned(6)),
    "bad-exif.jpg": lambda file: Image.fromarray(NOISE).save(file, exif=b"Exif\0\0rubbish of no use"),
}


def shown(tmp_path: Path, name: str) -> np.ndarray:
    FILES[name](tmp_path / name)
    with Image.open(tmp_path / name) as image:
        found = to_rgb(image)
    assert found.mode == "RGB"
    return np.asarray(found)


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own class
@pytest.mark.parametrize("name", FILES)
def test_a_served_model_sees_the_same(tmp_path: Path, name: str) -> None:
    from alast_tune.tracking import served  # imports MLflow

    here = shown(tmp_path, name)
    there = served.to_rgb(Image.open(io.BytesIO((tmp_path / name).read_bytes())))
    assert np.array_equal(np.asarray(there), here)


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "cmyk.jpg", "bits.png", "turn1.jpg", "bad-exif.jpg"])
def test_what_needs_nothing_else_is_pillows_conversion_bit_for_bit(tmp_path: Path, name: str) -> None:
    found = shown(tmp_path, name)
    assert np.array_equal(found, np.asarray(Image.open(tmp_path / name).convert("RGB")))


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tiff", "grey16.pgm", "grey32.tiff", "float.tiff"])
def test_deep_grey_keeps_its_levels(tmp_path: Path, name: str) -> None:
    found = shown(tmp_path, name)[:, :, 0]
    assert len(np.unique(found)) >= 200
    assert np.abs(found.astype(int) - (RAMP.astype(int) >> 8)).max() <= 1


@pytest.mark.parametrize("name", ["rgba.png", "la.png", "rgba.webp", "palette.png", "palette-bytes.png", "palette.gif"])
def test_what_is_transparent_is_white(tmp_path: Path, name: str) -> None:
    found = shown(tmp_path, name)
    inside = np.zeros((20, 40), bool)
    inside[5:15, 10:20] = True
    assert (found[inside] == 0).all()
    assert (found[~inside] == 255).all()


def test_half_transparent_is_between() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("name", [*(f"turn{n}.jpg" for n in range(1, 9)), "turn6.png", "turn6.tiff", "turn6.webp"])
def test_photographs_stand_upright(tmp_path: Path, name: str) -> None:
    turns = [None, None, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2),
             lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90]  # fmt: skip
    turn = turns[int(name[4])]
    kind = name.rpartition(".")[2]
    Image.fromarray(NOISE).save(tmp_path / f"flat.{kind}", **({"lossless": True} if kind == "webp" else {}))
    flat = np.asarray(Image.open(tmp_path / f"flat.{kind}").convert("RGB"))
    assert np.array_equal(shown(tmp_path, name), turn(flat) if turn else flat)


def test_deep_grey_stands_upright_too(tmp_path: Path) -> None:
    assert np.abs(shown(tmp_path, "turn6-16bit.png")[:, :, 0] - np.rot90(RAMP.astype(int) >> 8, -1)).max() <= 1


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    assert (shown(tmp_path, "film.gif") == 0).all()


@pytest.mark.parametrize(
    "values",
    [np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32), np.full((2, 2), 1.5, np.float32),
     np.full((2, 2), -0.5, np.float32), np.full((2, 2), np.nan, np.float32)],
)  # fmt: skip
def test_greys_that_could_mean_anything_are_refused(values: np.ndarray) -> None:
    with pytest.raises(PixelRangeError, match=r"has grey values from .* to .*, not in \[0, .*; save it with"):
        to_rgb(Image.fromarray(values))
