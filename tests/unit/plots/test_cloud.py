"""Trials as points."""

import pytest

from alast_tune.plots.cloud import ACCURACY, BYTES, FLOPS, Cloud
from tests.unit.plots.figures import COMPLETE, sweep


def test_staircase_is_the_front_of_the_projection():
    front, results = sweep(COMPLETE)
    cloud = Cloud.of(front, results)
    assert cloud.labels[FLOPS] == "Training FLOPs (TFLOP)"
    assert cloud.staircase(FLOPS, ACCURACY).tolist() == [[0.5, 0.8], [1.0, 0.9], [2.0, 0.95]]
    assert cloud.staircase(FLOPS, BYTES).tolist() == [[0.5, pytest.approx(3e7 / 2**20)]]
