"""The search space, importances and convergence, as a page and as pictures."""

from dataclasses import replace

import numpy as np
import pytest

from alast_tune.config import Choice, FloatRange, IntRange, TrialConfig
from alast_tune.plots import convergence_png, front_png, importances_png, search_html, space_png
from alast_tune.plots.cloud import NOBODY
from alast_tune.plots.search import NOT_TOLD, brief, space_axes, ways
from alast_tune.results import TrialResult
from tests.unit.plots.figures import COMPLETE, CURVE, REPORT, size_of, sweep, traces


def test_space_page_has_a_line_a_proposed_trial_and_selects_the_front():
    front, results = sweep(COMPLETE, landmarks={1: "full"})
    (lines,) = traces(search_html(front, results, REPORT), "space")
    labels = [dimension["label"] for dimension in lines["dimensions"]]
    assert labels[:2] == ["alpha", "trainable_<br>blocks"] and labels[-1] == "standing"
    assert all(len(dimension["values"]) == 3 for dimension in lines["dimensions"])  # without full and the failed one
    assert lines["dimensions"][0]["values"] == pytest.approx(np.log10([0.05, 0.03, 0.01]).tolist())
    standing = lines["dimensions"][-1]
    assert standing["values"] == [0, 1, 2]  # dominated ones are drawn first
    assert standing["constraintrange"][0] > 0
    assert lines["line"]["color"] == [0.70, 0.80, 0.90]
    assert (lines["line"]["cmin"], lines["line"]["cmax"]) == (0.80, 0.90)
    assert size_of(space_png(front, results, REPORT)) == ("PNG", (2100, 750))


def test_axes_hold_every_kind_of_parameter_and_those_that_do_not_vary():
    space = {
        "a/x": Choice(choices=(True, 1, "one")),
        "b/x": FloatRange(low=2.0, high=2.0),
        "b/n": IntRange(low=1, high=3),
    }
    trials = [
        TrialResult(0, "complete", TrialConfig(), {"a/x": value, "b/x": 2.0, "b/n": 3}, (0.5, 1e9, 1e6), 1)
        for value in (1, True, "one")
    ]
    kind, fixed, whole, *objectives = space_axes(space, trials)
    assert (kind.label, fixed.label, whole.label) == ("a/\nx", "b/\nx", "n")  # told apart where they must be
    assert kind.places_T.tolist() == [1, 0, 2]
    assert kind.ticks == {0: "True", 1: "1", 2: "one"}
    assert whole.ticks == {1.0: "1", 2.0: "2", 3.0: "3"}
    for axis in (fixed, *objectives):
        assert axis.height(axis.places_T).tolist() == [0.5] * 3
    assert brief(["method/alpha", "train/epochs"]) == {"method/alpha": "alpha", "train/epochs": "epochs"}


def test_importances_are_bars_and_what_cannot_be_told_is_said():
    front, results = sweep(COMPLETE)
    page = search_html(front, results, REPORT)
    accuracy, flops = traces(page, "importances")
    assert accuracy["y"] == flops["y"] == ["trainable_blocks", "alpha"]  # by importance
    assert (accuracy["x"], flops["x"]) == ([0.75, 0.25], [0.9, 0.1])
    assert page.count(NOT_TOLD) == 1  # for peak memory
    assert size_of(importances_png(front, REPORT))[0] == "PNG"
    assert size_of(importances_png(front, replace(REPORT, importances={})))[0] == "PNG"
    assert '"importances"' not in search_html(front, results, replace(REPORT, importances={}))


def test_convergence_has_the_front_and_the_landmarks_against_each_cost():
    front, results = sweep(COMPLETE | {0: (0.60, 2.8e12, 5.9e7)}, landmarks={0: "full"})
    lines = traces(search_html(front, results, REPORT), "convergence")
    names = [line["name"] for line in lines]
    assert names == ["front"] * 3 + ["full fine-tuning"] * 3 + ["knee"] * 3
    full = [line for line in lines if line["name"] == "full fine-tuning"]
    assert [line["x"] for line in full] == [[0.5, 1.0], pytest.approx([3e7 / 2**20, 4e7 / 2**20]), [10.0, 20.0]]
    assert all(line["y"] == [0.5, 0.9] for line in full)
    assert size_of(convergence_png(front, results, REPORT)) == ("PNG", (2100, 750))


def test_a_study_that_kept_no_times_has_two_panels():
    untimed = CURVE.copy()
    untimed[:, 3] = np.nan
    front, results = sweep(COMPLETE)
    old = replace(REPORT, curves=dict.fromkeys(COMPLETE, untimed))
    assert len(traces(search_html(front, results, old), "convergence")) == 2 * len(front.front)
    assert ways(front, results, old.curves)[1] == ("Training (TFLOP)", "Peak memory (MiB)", "")
    assert size_of(convergence_png(front, results, old))[0] == "PNG"
    resumed = replace(REPORT, curves=old.curves | {0: np.vstack([untimed[:1], CURVE[1:]])})
    points = [
        line["x"] for line in traces(search_html(front, results, resumed), "convergence") if line["xaxis"] == "x3"
    ]
    assert [None, 20.0] in points  # an epoch of before the update, one of after it


@pytest.mark.parametrize(
    "values", [{}, {0: (0.9, 1e12, 4e7)}, dict.fromkeys(range(3), (0.5, 1e12, 4e7)), {0: (0, 0, 0)}]
)
def test_no_trial_one_trial_and_equal_trials_are_drawn(values):
    front, results = sweep(values)
    report = replace(REPORT, importances={}, curves=dict.fromkeys(values, CURVE[:1] * 0))
    page = search_html(front, results, report)
    assert (NOBODY in page) == (not values)
    if values:
        assert len(traces(page, "space")[0]["line"]["color"]) == len(values)
    for picture in (
        space_png(front, results, report),
        convergence_png(front, results, report),
        front_png(front, results),
    ):
        assert size_of(picture)[0] == "PNG"
