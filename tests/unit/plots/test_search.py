"""The search space, importances and convergence, as a page and as pictures."""

from dataclasses import replace

import numpy as np
import pytest

from alast_tune.config import Choice, FloatRange, IntRange, TrialConfig
from alast_tune.plots import convergence_png, importances_png, search_html, space_png
from alast_tune.plots.cloud import NOBODY
from alast_tune.plots.search import NOT_TOLD, brief, space_axes, ways
from alast_tune.results import TrialResult
from tests.unit.plots.figures import COMPLETE, CURVE, REPORT, sweep, traces, words


def test_space_has_a_line_a_proposed_trial_and_selects_the_front(pictures):
    front, results = sweep(COMPLETE, baselines={1: "full"})
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
    figure = pictures.of(space_png(front, results, REPORT))
    panel, scale = figure.axes
    polylines = [line for line in panel.lines if len(line.get_ydata()) == 5]
    knee = next(line for line in polylines if line.get_label() == "knee")
    assert len(polylines) == 3 + 1 and knee.get_linewidth() == 6
    heights = sorted(line.get_ydata()[0] for line in polylines if line is not knee)
    assert heights == pytest.approx([(np.log10(alpha) + 3) / 3 for alpha in (0.01, 0.03, 0.05)])  # of the whole range
    assert sorted(line.get_linewidth() for line in polylines if line is not knee) == [0.8, 2.0, 2.0]
    labels = [tick.get_text() for tick in panel.get_xticklabels()]
    assert labels[:2] == ["alpha", "trainable_\nblocks"] and len(labels) == 5
    assert [text.get_text() for text in panel.get_legend().texts] == ["knee", "dominated"]
    assert scale.get_ylim() == (0.80, 0.90) and figure.pixels == (2100, 750)


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


def test_importances_are_bars_and_what_cannot_be_told_is_said(pictures):
    front, results = sweep(COMPLETE)
    page = search_html(front, results, REPORT)
    accuracy, flops = traces(page, "importances")
    assert accuracy["y"] == flops["y"] == ["trainable_blocks", "alpha"]  # by importance
    assert (accuracy["x"], flops["x"]) == ([0.75, 0.25], [0.9, 0.1])
    assert page.count(NOT_TOLD) == 1  # for peak memory
    figure = pictures.of(importances_png(front, REPORT))
    assert [[bar.get_width() for bar in panel.patches] for panel in figure.axes] == [[0.75, 0.25], [0.9, 0.1], []]
    assert [words(panel) for panel in figure.axes] == [["75%", "25%"], ["90%", "10%"], [NOT_TOLD]]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == accuracy["y"]
    assert figure.axes[0].yaxis_inverted() and figure.pixels == (1650, 450)
    untold = pictures.of(importances_png(front, replace(REPORT, importances={})))
    assert words(untold) == [f"Not to be told: {NOT_TOLD}."] and not untold.axes
    assert '"importances"' not in search_html(front, results, replace(REPORT, importances={}))


def test_convergence_has_the_front_and_the_baselines_against_each_cost(pictures):
    front, results = sweep(COMPLETE | {0: (0.60, 2.8e12, 5.9e7)}, baselines={0: "full"})
    lines = traces(search_html(front, results, REPORT), "convergence")
    names = [line["name"] for line in lines]
    assert names == ["front"] * 3 + ["full fine-tuning"] * 3 + ["knee"] * 3
    full = [line for line in lines if line["name"] == "full fine-tuning"]
    assert [line["x"] for line in full] == [[0.5, 1.0], pytest.approx([3e7 / 2**20, 4e7 / 2**20]), [10.0, 20.0]]
    assert all(line["y"] == [0.5, 0.9] for line in full)
    figure = pictures.of(convergence_png(front, results, REPORT))
    assert len(figure.axes) == 3
    for panel, x_2 in zip(figure.axes, (full[0]["x"], full[1]["x"], full[2]["x"]), strict=True):
        assert [line.get_xdata().tolist() for line in panel.lines] == [x_2] * 3
        assert [line.get_ydata().tolist() for line in panel.lines] == [[0.5, 0.9]] * 3
        assert [line.get_linestyle() for line in panel.lines] == ["-", "--", "-"]
    assert figure.axes[0].get_xlabel() == "Training (TFLOP)" and figure.axes[0].get_ylabel() == "Validation accuracy"
    legend = [text.get_text() for text in figure.axes[0].get_legend().texts]
    assert legend == ["front", "full fine-tuning", "knee"] and figure.pixels == (2100, 750)


def test_a_study_that_kept_no_times_has_two_panels(pictures):
    untimed = CURVE.copy()
    untimed[:, 3] = np.nan
    front, results = sweep(COMPLETE)
    old = replace(REPORT, curves=dict.fromkeys(COMPLETE, untimed))
    assert len(traces(search_html(front, results, old), "convergence")) == 2 * len(front.front)
    assert ways(front, results, old.curves)[1] == ("Training (TFLOP)", "Peak memory (MiB)", "")
    assert [panel.get_xlabel() for panel in pictures.of(convergence_png(front, results, old)).axes] == [
        "Training (TFLOP)",
        "Peak memory (MiB)",
    ]
    resumed = replace(REPORT, curves=old.curves | {0: np.vstack([untimed[:1], CURVE[1:]])})
    points = [
        line["x"] for line in traces(search_html(front, results, resumed), "convergence") if line["xaxis"] == "x3"
    ]
    assert [None, 20.0] in points  # an epoch of before the update, one of after it


@pytest.mark.parametrize(
    "values", [{}, {0: (0.9, 1e12, 4e7)}, dict.fromkeys(range(3), (0.5, 1e12, 4e7)), {0: (0, 0, 0)}]
)
def test_no_trial_one_trial_and_equal_trials_are_drawn(values, pictures):
    front, results = sweep(values)
    report = replace(REPORT, importances={}, curves=dict.fromkeys(values, CURVE[:1] * 0))
    page = search_html(front, results, report)
    assert (NOBODY in page) == (not values)
    if values:
        assert len(traces(page, "space")[0]["line"]["color"]) == len(values)
    for draw in (space_png, convergence_png):
        figure = pictures.of(draw(front, results, report))
        assert (words(figure) == [NOBODY]) == (not figure.axes) == (not values)
    if values:
        space = pictures.of(space_png(front, results, report)).axes[0]
        assert sum(len(line.get_ydata()) == 5 for line in space.lines) == len(values) + (1 if front.knee else 0)
