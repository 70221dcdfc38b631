"""Figures hold what they should; how they look is checked in the browser (tests/e2e)."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from alast_tune.blocks import BlockReport
from alast_tune.config import Choice, FloatRange, IntRange, SweepConfig, TrialConfig
from alast_tune.plots import (
    SearchReport,
    blocks_html,
    blocks_png,
    convergence_png,
    front_html,
    front_png,
    human_bytes,
    human_flops,
    importances_png,
    search_html,
    space_png,
    with_runs,
)
from alast_tune.plots.cloud import ACCURACY, BYTES, FLOPS, NOBODY, Cloud
from alast_tune.plots.search import NOT_TOLD, brief, space_axes, ways
from alast_tune.results import LANDMARKS, TrialResult
from alast_tune.summary import summarise
from alast_tune.tune.space import trial_config

REFERENCE = (0.0, 3e12, 6e7)
COMPLETE = {0: (0.90, 1.0e12, 4e7), 1: (0.95, 2.0e12, 5e7), 2: (0.80, 0.5e12, 3e7), 4: (0.70, 2.5e12, 5.5e7)}


SPACE = {
    "method/alpha": FloatRange(low=1e-3, high=1.0, log=True),
    "method/trainable_blocks": IntRange(low=1, high=12),
}
SWEEP = SweepConfig(space=SPACE)


def sweep(values, sweep_name="demo", landmarks=None):
    """Trials with these objectives; landmarks by number."""
    results = []
    for number in range(max(values, default=-1) + 1):
        params = {"method/alpha": 0.01 * (number + 1), "method/trainable_blocks": number + 1}
        landmark = (landmarks or {}).get(number)
        config = trial_config(SWEEP, params, landmark)
        state = "complete" if number in values else "failed"
        results.append(TrialResult(number, state, config, params, values.get(number), 2, landmark=landmark))
    return summarise(sweep_name, results, REFERENCE), results


def traces(page, figure="front"):
    """Read a figure's traces back from the page."""
    start = re.search(rf'Plotly\.newPlot\(\s*"{figure}",\s*', page).end()
    return json.JSONDecoder().raw_decode(page, start)[0]


def ids(page, name):
    return [sorted(trace["customdata"]) for trace in traces(page) if trace["name"] == name]


def test_page_shows_members_dominated_and_knee_in_all_four_views():
    front, results = sweep(COMPLETE)
    page = front_html(front, results)
    members = {member.trial_id for member in front.front} - {front.knee}
    assert front.knee in ("0000", "0001", "0002")
    assert ids(page, "front") == [sorted(members)] * 4
    assert ids(page, "knee") == [[front.knee]] * 4
    assert ids(page, "dominated") == [["0004"]] * 4
    assert [trace["type"] for trace in traces(page) if trace["name"] == "pointer"] == ["scatter"] * 3 + ["scatter3d"]
    text = next(trace for trace in traces(page) if trace["name"] == "dominated")["text"][0]
    assert text.split("<br>") == [
        "<b>trial 0004</b>",
        "accuracy 0.7000",
        "2.50 TFLOP",
        "52.5 MiB",
        "method/alpha = 0.05",
        "method/trainable_blocks = 5",
    ]


def test_landmarks_are_framed_in_every_view_also_dominated_ones():
    front, results = sweep(COMPLETE | {0: (0.60, 2.8e12, 5.9e7)}, landmarks={0: "full", 1: "paper"})
    page = front_html(front, results)
    for name, number, symbol in (("full", 0, "square-open"), ("paper", 1, "diamond-open")):
        frames = [trace for trace in traces(page) if trace["name"] == LANDMARKS[name]]
        assert [frame["marker"]["symbol"] for frame in frames] == [symbol] * 4
        values = results[number].values
        assert [frame["x"] for frame in frames] == [[values[1] / 1e12], [values[2] / 2**20]] + [[values[1] / 1e12]] * 2
    assert "0000" in ids(page, "dominated")[0]
    hover = {text.split("<br>")[0]: text for trace in traces(page)[:5] for text in trace.get("text", [])}
    # What stands for a landmark in the space is not what it had.
    assert hover["<b>trial 0000</b>"].split("<br>")[1:] == [
        "<b>full fine-tuning</b>",
        "accuracy 0.6000",
        "2.80 TFLOP",
        "56.3 MiB",
    ]
    assert "method/trainable_blocks = 9" in hover["<b>trial 0001</b>"]
    assert size_of(front_png(front, results)) == ("PNG", (1650, 750))


def test_run_ids_are_filled_in_later_and_only_added_to():
    front, results = sweep(COMPLETE)
    results[0] = replace(results[0], mlflow_run_id="before")
    page = front_html(front, results)

    def runs(text):
        return json.loads(re.search(r'<script type="application/json" id="runs">(.*?)</script>', text)[1])

    assert runs(page) == {"0000": "before"}
    later = with_runs(page, {"0001": "</script><b>"})
    assert runs(later) == {"0000": "before", "0001": "</script><b>"}
    assert len(later) > 1_000_000
    nobody = front_html(*sweep({}))
    assert with_runs(nobody, {"0000": "a"}) == nobody


@pytest.mark.parametrize("figures", ["front", "search", "blocks"])
def test_pages_need_no_network_and_hold_plotly_once(figures):
    front, results = sweep(COMPLETE)
    page = {
        "front": lambda: front_html(front, results),
        "search": lambda: search_html(front, results, REPORT),
        "blocks": lambda: blocks_html(front, results, {0: blocks(), 1: blocks()}),
    }[figures]()
    assert not re.search(r"<script[^>]*\bsrc=|<link\b", page)
    assert '"showSendToCloud": false' in page
    assert 4_000_000 < len(page) < 6_000_000  # plotly itself is inside


def test_page_has_a_table_row_a_member():
    front, results = sweep(COMPLETE)
    page = front_html(front, results)
    assert re.findall(r'<tr data-trial="(\d+)"', page) == [member.trial_id for member in front.front]
    assert page.count('class="knee"') == 1
    assert "test accuracy" not in page.rsplit("<table>", 1)[1]
    tested = summarise("demo", results, REFERENCE, {0: 0.875})
    assert "<th>test accuracy</th>" in front_html(tested, results)


def test_names_and_settings_are_escaped():
    front, results = sweep(COMPLETE)
    results[0].params["<img src=x>"] = "<script>alert(1)</script>"
    page = front_html(front, results)
    assert "<img src=x>" not in page
    assert "alert(1)</script>" not in page


def size_of(picture):
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image.format, image.size


@pytest.mark.parametrize("values", [COMPLETE, {0: (0.9, 1e12, 4e7)}, {}])
def test_picture_is_a_png_of_one_size(values):
    assert size_of(front_png(*sweep(values))) == ("PNG", (1650, 750))


def test_one_member_is_its_own_knee():
    page = front_html(*sweep({0: (0.9, 1e12, 4e7)}))
    assert ids(page, "knee") == [["0000"]] * 4
    assert ids(page, "front") == ids(page, "dominated") == [[]] * 4


def test_no_member_is_said():
    front, results = sweep({})
    page = front_html(front, results)
    assert NOBODY in page
    assert "Plotly.newPlot" not in page


def test_equal_trials_and_many_trials_are_drawn():
    generator = np.random.default_rng(0)
    many = {n: (float(a), float(a * 1e12), 4e7) for n, a in enumerate(generator.uniform(0.1, 0.9, 60))}
    front, results = sweep(many)
    assert len(front.front) == 60  # accuracy rises with cost: every trial is a member
    assert size_of(front_png(front, results))[0] == "PNG"
    same = dict.fromkeys(range(3), (0.5, 1000000000000.0, 40000000.0))
    assert ids(front_html(*sweep(same)), "front") == [["0001", "0002"]] * 4


def test_staircase_is_the_front_of_the_projection():
    front, results = sweep(COMPLETE)
    cloud = Cloud.of(front, results)
    assert cloud.labels[FLOPS] == "Training FLOPs (TFLOP)"
    assert cloud.staircase(FLOPS, ACCURACY).tolist() == [[0.5, 0.8], [1.0, 0.9], [2.0, 0.95]]
    assert cloud.staircase(FLOPS, BYTES).tolist() == [[0.5, pytest.approx(3e7 / 2**20)]]


CURVE = np.array([[0.5, 0.5e12, 3e7, 10.0], [0.9, 1.0e12, 4e7, 20.0]])
REPORT = SearchReport(
    space=SPACE,
    importances={
        "accuracy": {"method/alpha": 0.25, "method/trainable_blocks": 0.75},
        "train_flops": {"method/alpha": 0.1, "method/trainable_blocks": 0.9},
    },
    curves=dict.fromkeys(COMPLETE, CURVE),
)


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


def blocks(depth=12, steps=30, budgets=True, images=2, side=4):
    draw = np.random.default_rng(0)
    return BlockReport(
        steps_S=np.arange(steps, dtype=float),
        budgets_SL=draw.uniform(size=(steps, depth)) if budgets else np.empty((0, depth)),
        trained_L=draw.uniform(size=depth),
        tokens_L=draw.uniform(1, 17, size=depth),
        all_tokens=17,
        before_L=draw.uniform(size=depth),
        after_L=draw.uniform(size=depth),
        images_IHWC=draw.integers(0, 255, size=(images, 16, 16, 3), dtype=np.uint8),
        attended=(1, 3),
        attention_AIhw=draw.uniform(size=(2, images, side, side)),
    )


def test_blocks_page_shows_each_trials_blocks_by_its_title():
    front, results = sweep(COMPLETE, landmarks={1: "paper"})
    report = blocks()
    page = blocks_html(front, results, {int(front.knee): report, 1: report})
    assert f"<h2>Trial {front.knee} of demo: the knee</h2>" in page
    assert "<h2>Trial 0001 of demo: ALaST as in the paper</h2>" in page
    by_name = {trace["name"]: trace for trace in traces(page, "blocks-1")}
    assert by_name["trained"]["y"] == report.trained_L.tolist()
    assert by_name["tokens"]["y"] == report.tokens_L.tolist()
    assert by_name["before fine-tuning"]["y"] == report.before_L.tolist()
    assert by_name["after"]["y"] == report.after_L.tolist()
    assert by_name["budgets"]["z"] == report.budgets_SL.T.tolist()
    maps = traces(page, "attention-1")
    assert [trace["type"] for trace in maps] == ["image", "heatmap", "heatmap"] * 2
    assert maps[2]["z"] == report.attention_AIhw[1, 0].tolist()


@pytest.mark.parametrize("report", [blocks(budgets=False), blocks(depth=1, steps=1, images=1), blocks(depth=40)])
def test_blocks_of_other_methods_and_sizes_are_drawn(report):
    front, results = sweep(COMPLETE)
    names = [trace["name"] for trace in traces(blocks_html(front, results, {0: report}), "blocks-0")]
    assert ("budgets" in names) == (report.budgets_SL.size > 0)
    assert size_of(blocks_png("one", report)) == ("PNG", (2250, 1125))


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
