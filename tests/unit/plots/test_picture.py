"""The picture of a front."""

import numpy as np
import pytest

from alast_tune.plots import front_html, front_png
from tests.unit.plots.figures import COMPLETE, ids, size_of, sweep


@pytest.mark.parametrize("values", [COMPLETE, {0: (0.9, 1e12, 4e7)}, {}])
def test_picture_is_a_png_of_one_size(values):
    assert size_of(front_png(*sweep(values))) == ("PNG", (1650, 750))


def test_equal_trials_and_many_trials_are_drawn():
    generator = np.random.default_rng(0)
    many = {n: (float(a), float(a * 1e12), 4e7) for n, a in enumerate(generator.uniform(0.1, 0.9, 60))}
    front, results = sweep(many)
    assert len(front.front) == 60  # accuracy rises with cost: every trial is a member
    assert size_of(front_png(front, results))[0] == "PNG"
    same = dict.fromkeys(range(3), (0.5, 1000000000000.0, 40000000.0))
    assert ids(front_html(*sweep(same)), "front") == [["0001", "0002"]] * 4
