"""Trials as points."""

import pytest

from alast_tune.plots.cloud import ACCURACY, BYTES, FLOPS, Cloud, drawn, sampled
from alast_tune.summary import trial_id
from tests.unit.plots.figures import COMPLETE, sweep


def test_staircase_is_the_front_of_the_projection():
    front, results = sweep(COMPLETE)
    cloud = Cloud.of(front, results)
    assert cloud.labels[FLOPS] == "Training FLOPs (TFLOP)"
    assert cloud.staircase(FLOPS, ACCURACY).tolist() == [[0.5, 0.8], [1.0, 0.9], [2.0, 0.95]]
    assert cloud.staircase(FLOPS, BYTES).tolist() == [[0.5, pytest.approx(3e7 / 2**20)]]


def test_of_many_trials_the_front_and_a_sample_are_drawn():
    front, results = sweep({number: (0.5 if number else 0.9, 1e12 + number, 1e8 + number) for number in range(50)})
    chosen = drawn(front, results, most=10)
    assert chosen == drawn(front, results, most=10) and len(chosen) == 10
    assert {member.trial_id for member in front.front} <= {trial_id(result.number) for result in chosen}
    assert f"Of 50 complete trials {len(chosen)} are drawn" in sampled(front, chosen)
    assert drawn(front, results, most=50) == results and sampled(front, results) == ""
