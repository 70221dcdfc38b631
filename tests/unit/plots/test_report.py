"""The reports' figures: of the size they say, and with every mark in them."""

import io
import math

import pytest
from PIL import Image

from alast_tune.plots import Mark, ablation_png, ratios_png

HALF = {"train_flops": 0.5, "peak_bytes": 0.6, "train_seconds": 0.7, "accuracy": 0.99}
VERMILLION = (0xD5, 0x5E, 0x00)
GREEN = (0x00, 0x9E, 0x73)


def pixels(png: bytes, colour: tuple[int, int, int]) -> int:
    """Count the pixels of one colour."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return sum(count for count, seen in image.getcolors(1 << 24) or [] if seen == colour)


def test_figure_5_grows_with_the_methods_and_marks_the_papers() -> None:
    few, many = ratios_png({"a": HALF}, {}), ratios_png({str(number): HALF for number in range(12)}, {})
    assert Image.open(io.BytesIO(few)).width == Image.open(io.BytesIO(many)).width == 1800
    assert Image.open(io.BytesIO(few)).height < Image.open(io.BytesIO(many)).height
    assert pixels(ratios_png({"a": HALF}, {"a": HALF}), VERMILLION) > pixels(few, VERMILLION)


@pytest.mark.parametrize("names", [("0.1", "0.5", "1"), ("calibrate", "1", "0.6")], ids=["numbers", "names"])
def test_an_ablation_has_a_colour_a_line_and_takes_names_and_numbers(names: tuple[str, ...]) -> None:
    marks = [
        Mark(name, line, 0.8 + place / 100, 0.01, 0.5 + place / 10)
        for line in ("rate 1", "rate 2", "rate 3")
        for place, name in enumerate(names)
    ]
    png = ablation_png("alpha", "alpha", marks, 0.9, log=True)
    assert Image.open(io.BytesIO(png)).size == (1650, 630)
    assert pixels(png, GREEN) > 50 and pixels(png, VERMILLION) > 50
    assert pixels(ablation_png("alpha", "alpha", marks[:3], 0.9), GREEN) == 0


def test_without_full_fine_tuning_or_trials_there_is_a_picture_nevertheless() -> None:
    assert Image.open(io.BytesIO(ratios_png({}, {}))).width == 1800
    assert Image.open(io.BytesIO(ablation_png("K", "K", [], None))).size == (1650, 630)
    lone = ablation_png("K", "K", [Mark("1", "", 0.5, 0.0, math.nan)], None)
    assert Image.open(io.BytesIO(lone)).size == (1650, 630)
