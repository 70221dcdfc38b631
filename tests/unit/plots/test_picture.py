"""The picture of a front."""

import numpy as np
import pytest

from alast_tune.plots import front_png, report_html
from alast_tune.plots.cloud import NOBODY
from tests.unit.plots.figures import COMPLETE, ids, points, sweep, words

MIB = 2**20


def test_members_dominated_and_knee_are_drawn_against_both_costs(pictures):
    front, results = sweep(COMPLETE, baselines={0: "full", 4: "paper"})
    figure = pictures.of(front_png(front, results))
    flops, memory, flops_scale, memory_scale = figure.axes
    knee = int(front.knee)
    for axes, cost, unit in ((flops, 1, 1e12), (memory, 2, MIB)):

        def at(*numbers, cost=cost, unit=unit):
            return [[COMPLETE[n][cost] / unit, COMPLETE[n][0]] for n in numbers]

        drawn = points(axes)
        assert drawn["dominated"] == at(4)
        assert sorted(drawn["front"]) == sorted(at(*{0, 1, 2} - {knee}))
        assert drawn["knee"] == at(knee)
        assert drawn["full fine-tuning"] == at(0) and drawn["ALaST as in the paper"] == at(4)
        assert len(drawn) == 5
        steps, floor = axes.lines
        assert set(floor.get_ydata()) == {COMPLETE[0][0] - 0.05}  # from which accuracy on it counts
        assert steps.get_drawstyle() == "steps-post"
        assert list(map(list, zip(*steps.get_data(), strict=True))) == at(2, 0, 1)
        assert set(words(axes)) <= {"0000", "0001", "0002"} and len(words(axes)) == len(set(words(axes)))
    assert (flops.get_xlabel(), flops.get_ylabel()) == ("Training FLOPs (TFLOP)", "Validation accuracy")
    assert memory.get_xlabel() == flops_scale.get_ylabel() == "Peak memory (MiB)"
    assert memory_scale.get_ylabel() == "Training FLOPs (TFLOP)"
    by_memory = next(part for part in flops.collections if part.get_label() == "front")
    assert by_memory.get_clim() == pytest.approx((3e7 / MIB, 5.5e7 / MIB))  # of all, not of the front alone
    assert front.knee in words(flops)
    assert [text.get_text() for text in flops.get_legend().texts][:3] == ["dominated", "front", "knee"]
    assert memory.get_legend() is None and figure.pixels == (1650, 750)
    assert figure.get_suptitle() == "Pareto front of demo"


def test_one_member_is_a_knee_without_a_front(pictures):
    figure = pictures.of(front_png(*sweep({0: (0.9, 1e12, 4e7)})))
    assert points(figure.axes[0]) == {"knee": [[1.0, 0.9]]}
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["knee"]
    assert words(figure.axes[0]) == ["0000"]


def test_no_member_is_said(pictures):
    figure = pictures.of(front_png(*sweep({})))
    assert not figure.axes and NOBODY in words(figure) and figure.pixels == (1650, 750)


def test_equal_trials_and_many_trials_are_drawn(pictures):
    accuracies = np.linspace(0.1, 0.9, 30)
    front, results = sweep({n: (float(a), float(a * 1e12), 4e7) for n, a in enumerate(accuracies)})
    assert len(front.front) == 30  # accuracy rises with cost: every trial is a member
    axes = pictures.of(front_png(front, results)).axes[0]
    assert len(points(axes)["front"]) == 29
    assert set(words(axes)) == {front.knee, "0000", "0029"}  # so many have no room for all their names
    same = dict.fromkeys(range(3), (0.5, 1000000000000.0, 40000000.0))
    assert ids(report_html(*sweep(same)), "front") == [["0001", "0002"]]
    assert len(points(pictures.of(front_png(*sweep(same))).axes[0])["front"]) == 2
