"""The page of a front; how it looks is checked in the browser (tests/e2e)."""

import json
import re
from dataclasses import replace

from alast_tune.plots import (
    front_html,
    with_runs,
)
from alast_tune.plots.cloud import NOBODY
from alast_tune.results import BASELINES
from alast_tune.summary import summarise
from tests.unit.plots.figures import COMPLETE, REFERENCE, ids, sweep, traces


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


def test_baselines_are_framed_in_every_view_also_dominated_ones():
    front, results = sweep(COMPLETE | {0: (0.60, 2.8e12, 5.9e7)}, baselines={0: "full", 1: "paper"})
    page = front_html(front, results)
    for name, number, symbol in (("full", 0, "square-open"), ("paper", 1, "diamond-open")):
        frames = [trace for trace in traces(page) if trace["name"] == BASELINES[name]]
        assert [frame["marker"]["symbol"] for frame in frames] == [symbol] * 4
        values = results[number].values
        assert [frame["x"] for frame in frames] == [[values[1] / 1e12], [values[2] / 2**20]] + [[values[1] / 1e12]] * 2
    assert "0000" in ids(page, "dominated")[0]
    hover = {text.split("<br>")[0]: text for trace in traces(page)[:5] for text in trace.get("text", [])}
    # What stands for a baseline in the space is not what it had.
    assert hover["<b>trial 0000</b>"].split("<br>")[1:] == [
        "<b>full fine-tuning</b>",
        "accuracy 0.6000",
        "2.80 TFLOP",
        "56.3 MiB",
    ]
    assert "method/trainable_blocks = 9" in hover["<b>trial 0001</b>"]


def test_run_ids_are_filled_in_later_and_only_added_to():
    front, results = sweep(COMPLETE)
    results[0] = replace(results[0], mlflow_run_id="before")
    page = front_html(front, results)

    def runs(text):
        return json.loads(re.search(r'<script type="application/json" id="runs">(.*?)</script>', text)[1])

    shown = dict.fromkeys(["0000", "0001", "0002", "0004"])
    assert runs(page) == shown | {"0000": "before"}
    later = with_runs(page, {"0001": "</script><b>", "0003": "of a trial that failed"})
    assert runs(later) == shown | {"0000": "before", "0001": "</script><b>"}
    assert len(later) > 1_000_000
    nobody = front_html(*sweep({}))
    assert with_runs(nobody, {"0000": "a"}) == nobody


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


def test_one_member_is_its_own_knee():
    page = front_html(*sweep({0: (0.9, 1e12, 4e7)}))
    assert ids(page, "knee") == [["0000"]] * 4
    assert ids(page, "front") == ids(page, "dominated") == [[]] * 4


def test_no_member_is_said():
    front, results = sweep({})
    page = front_html(front, results)
    assert NOBODY in page
    assert "Plotly.newPlot" not in page
