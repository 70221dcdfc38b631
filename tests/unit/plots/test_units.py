"""Quantities as people read them."""

import pytest

from alast_tune.plots import human_bytes, human_flops


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (154.7e9, "155 GFLOP"),
        (2.134e15, "2.13 PFLOP"),
        (45.6e12, "45.6 TFLOP"),
        (1e25, "10000 ZFLOP"),
    ],
)
def test_human_flops(flops, text):
    assert human_flops(flops) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536, "1.50 KiB"),
        (3 << 20, "3.00 MiB"),
        (1000 << 20, "1000 MiB"),
        (6e9, "5.59 GiB"),
    ],
)
def test_human_bytes(size, text):
    assert human_bytes(size) == text
