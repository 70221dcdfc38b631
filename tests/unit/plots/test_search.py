"""The search space, importances and convergence, as a page and as pictures."""

from dataclasses import replace

import numpy as np
import pytest

from alast_tune.config import Choice, FloatRange, IntRange, TrialConfig, Variants
from alast_tune.plots import SearchReport, convergence_png, importances_png, report_html, space_png
from alast_tune.plots.cloud import NOBODY
from alast_tune.plots.search import (
    NOT_TOLD,
    Moment,
    brief,
    by_path,
    history,
    measured_memory,
    space_axes,
    varying,
    ways,
)
from alast_tune.plots.search_figures import RANKS
from alast_tune.results import Region, TrialResult
from alast_tune.summary import summarise
from tests.unit.plots.figures import COMPLETE, CURVE, REFERENCE, REPORT, sweep, traces, words


def test_space_has_a_line_a_proposed_trial_and_its_rank(pictures):
    front, results = sweep(COMPLETE, baselines={1: "full"})
    (lines,) = traces(report_html(front, results, REPORT), "space")
    labels = [dimension["label"] for dimension in lines["dimensions"]]
    assert labels[:2] == ["alpha", "trainable_<br>blocks"] and labels[-1] == "rank"
    assert all(len(dimension["values"]) == 3 for dimension in lines["dimensions"])  # without full and the failed one
    assert lines["dimensions"][0]["values"] == pytest.approx(np.log10([0.05, 0.03, 0.01]).tolist())
    ranks = lines["dimensions"][-1]
    assert ranks["values"] == lines["line"]["color"] == [1, 0, 0]  # those of a worse rank are drawn first
    assert ranks["ticktext"] == list(RANKS)
    assert dict(lines["line"]["colorscale"])[0] == RANKS["front"]
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


def test_a_parameter_that_is_the_same_in_all_trials_is_named_and_not_drawn(pictures):
    front, results = sweep(COMPLETE)
    for result in results:
        result.params["method/trainable_blocks"] = 4
    page = report_html(front, results, REPORT)
    (lines,) = traces(page, "space")
    assert [dimension["label"] for dimension in lines["dimensions"]][:2] == ["alpha", "accuracy"]
    assert "The same in all, and not drawn: method/trainable_blocks." in page
    panel = pictures.of(space_png(front, results, REPORT)).axes[0]
    assert [tick.get_text() for tick in panel.get_xticklabels()][:2] == ["alpha", "accuracy"]


def test_hypervolume_is_followed_in_the_order_in_which_trials_ended():
    front, results = sweep(COMPLETE)
    hours = {1: 0.5, 0: 1.0, 3: 1.5, 4: 2.0, 2: 4.0}
    points = history(front, results, replace(REPORT, ended_hours=hours))
    assert [point.name for point in points] == ["the beginning", *(f"trial {number:04d}" for number in hours)]
    assert [point.hours for point in points] == [0.0, 0.5, 1.0, 1.5, 2.0, 4.0]
    assert [point.flops for point in points] == [0, 1e12, 2e12, 2e12, 3e12, 4e12]  # the failed one has no curve
    shares = [point.share for point in points]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] == front.hypervolume_share
    assert shares[2] == shares[3] == shares[4]  # a failed and a dominated trial add nothing
    region = Region(source="full", floor=0.6, within=0.05)
    measured = summarise("demo", results, REFERENCE, region=region)
    near = history(measured, results, replace(REPORT, ended_hours=hours))
    assert near[-1].share == measured.hypervolume_share < points[-1].share  # from the beginning in one reference
    pending = summarise("demo", results, REFERENCE, region=Region(source="pending", within=0.05))
    assert history(pending, results, replace(REPORT, ended_hours=hours)) == []
    few = history(front, results, replace(REPORT, ended_hours=hours), most=2)
    assert few == [points[0], points[3], points[5]]
    first, second = traces(report_html(front, results, replace(REPORT, ended_hours=hours)), "history")
    assert first["y"] == second["y"] == shares
    assert first["x"] == [0, 1, 2, 2, 3, 4] and second["x"] == [point.hours for point in points]
    carried = [replace(results[0], origin="before"), *results[1:]]
    own = replace(REPORT, ended_hours={1: 0.5})
    alone = history(front, carried, own)
    assert alone[0] == Moment("the beginning", 0.0, 0.0, alone[0].share) and 0 < alone[0].share < alone[1].share


def test_memory_is_drawn_beside_its_forecast():
    front, results = sweep(COMPLETE)
    report = replace(REPORT, predicted_bytes={0: 4.1e7, 1: 2e7, 3: 4e7})
    assert measured_memory(results, report) == {0: (4.1e7, 4e7), 1: (2e7, 4e7)}  # the failed one has no curve
    page = report_html(front, results, report)
    drawn = {trace.get("name"): trace for trace in traces(page, "memory")}
    near, off = drawn["trial"], drawn["more than 10% off"]
    assert (near["text"], off["text"]) == (["0000"], ["0001"])
    assert (off["x"], off["y"]) == (pytest.approx([2e7 / 2**20]), pytest.approx([4e7 / 2**20]))
    assert "The memory forecast was off" in page
    assert '"memory"' not in report_html(front, results, REPORT)


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
    page = report_html(front, results, REPORT)
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
    assert '"importances"' not in report_html(front, results, replace(REPORT, importances={}))


def test_convergence_has_the_front_and_the_baselines_against_each_cost(pictures):
    front, results = sweep(COMPLETE | {0: (0.60, 2.8e12, 5.9e7)}, baselines={0: "full"})
    lines = traces(report_html(front, results, REPORT), "convergence")
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
    assert len(traces(report_html(front, results, old), "convergence")) == 2 * len(front.front)
    assert ways(front, results, old.curves)[1] == ("Training (TFLOP)", "Peak memory (MiB)", "")
    assert [panel.get_xlabel() for panel in pictures.of(convergence_png(front, results, old)).axes] == [
        "Training (TFLOP)",
        "Peak memory (MiB)",
    ]
    resumed = replace(REPORT, curves=old.curves | {0: np.vstack([untimed[:1], CURVE[1:]])})
    points = [
        line["x"] for line in traces(report_html(front, results, resumed), "convergence") if line["xaxis"] == "x3"
    ]
    assert [None, 20.0] in points  # an epoch of before the update, one of after it


@pytest.mark.parametrize(
    "values", [{}, {0: (0.9, 1e12, 4e7)}, dict.fromkeys(range(3), (0.5, 1e12, 4e7)), {0: (0, 0, 0)}]
)
def test_no_trial_one_trial_and_equal_trials_are_drawn(values, pictures):
    front, results = sweep(values)
    report = replace(REPORT, importances={}, curves=dict.fromkeys(values, CURVE[:1] * 0))
    page = report_html(front, results, report)
    assert (NOBODY in page) == (not values)
    if values:
        assert len(traces(page, "space")[0]["line"]["color"]) == len(values)
    for draw in (space_png, convergence_png):
        figure = pictures.of(draw(front, results, report))
        assert (words(figure) == [NOBODY]) == (not figure.axes) == (not values)
    if values:
        space = pictures.of(space_png(front, results, report)).axes[0]
        assert sum(len(line.get_ydata()) == 5 for line in space.lines) == len(values) + (1 if front.knee else 0)


LORA = {"method/rank": Choice(choices=(16, 4)), "train/learning_rate": FloatRange(low=1e-3, high=1e-1, log=True)}
FULL = {"train/learning_rate": FloatRange(low=1e-5, high=1e-3, log=True), "method/from_block": IntRange(low=0, high=4)}
WAYS = {"way": Variants(variants={"lora": LORA, "full": FULL, "never": {"method/merge": IntRange(low=0, high=9)}})}


def trials_of_two_ways():
    params = [
        {"way": "lora", "lora/method/rank": 4, "lora/train/learning_rate": 1e-2},
        {"way": "full", "full/train/learning_rate": 1e-4, "full/method/from_block": 2},
        {"way": "lora", "lora/method/rank": 16, "lora/train/learning_rate": 1e-3},
    ]
    return [
        TrialResult(number, "complete", TrialConfig(), one, (0.9 - number / 10, 3e12 - number * 1e12, 1e8), 1)
        for number, one in enumerate(params)
    ]


def test_a_path_has_one_axis_over_the_variants_and_a_place_for_those_without_it():
    trials = trials_of_two_ways()
    way, rank, rate, block, *_ = space_axes(varying(WAYS, trials), trials)
    assert [axis.label for axis in (way, rank, rate, block)] == ["way", "rank", "learning_\nrate", "from_\nblock"]
    assert way.places_T.tolist() == [0, 1, 0]
    assert rank.ticks[rank.low] == "-" and rank.places_T.tolist() == [1, rank.low, 0] and rank.ticks[0] == "16"
    assert rate.places_T == pytest.approx([-2, -4, -3]) and (rate.low, rate.high) == (-5, -1)
    assert "-" not in rate.ticks.values() and rate.ticks[-5.0] == "1e-05"
    assert block.places_T.tolist() == [block.low, 2, block.low] and block.low < 0 and block.ticks[2.0] == "2"
    mixed = {
        "way": Variants(
            variants={"lora": {"method/x": Choice(choices=("a", 2))}, "full": {"method/x": IntRange(low=0, high=1)}}
        )
    }
    results = [
        TrialResult(n, "complete", TrialConfig(), {"way": way, f"{way}/method/x": value}, (0.5, 1e9, 1e6), 1)
        for n, (way, value) in enumerate((("lora", "a"), ("full", 1), ("lora", 2)))
    ]
    assert [axis.label for axis in space_axes(varying(mixed, results), results)][:2] == ["way", "x"]
    whole = {
        "way": Variants(
            variants={"lora": {"method/x": Choice(choices=(8, 2))}, "full": {"method/x": IntRange(low=0, high=4)}}
        )
    }
    assert by_path(whole, trials)["method/x"] == IntRange(low=0, high=8)


def test_a_page_of_a_conditional_space_has_its_axes_and_its_importances(pictures):
    trials = trials_of_two_ways()
    front = summarise("s", trials, (0.0, 4e12, 2e8))
    shares = {"way": 1.0, "lora/train/learning_rate": 0.7, "lora/method/rank": 0.3}
    report = SearchReport(space=WAYS, importances={"accuracy": shares, "train_flops": {"way": 1.0}}, curves={})
    page = report_html(front, trials, report)
    (lines,) = traces(page, "space")
    assert [one["label"] for one in lines["dimensions"]][:4] == ["way", "rank", "learning_<br>rate", "from_<br>block"]
    assert "A setting that its method lacks is at -." in page and "share 100% among them" in page
    accuracy, flops = traces(page, "importances")
    names = ["way", "lora/train/learning_rate", "lora/method/rank"]
    assert accuracy["y"] == flops["y"] == names and accuracy["x"] == [1.0, 0.7, 0.3] and flops["x"] == [1.0, None, None]
    assert pictures.of(space_png(front, trials, report)).axes[0].get_xticklabels()[1].get_text() == "rank"
    panel = pictures.of(importances_png(front, report)).axes[1]
    assert words(panel) == ["100%", "", ""]
