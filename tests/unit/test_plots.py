"""Figures hold what they should; how they look is checked in the browser (tests/e2e)."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from alast_tune.config import TrialConfig, apply_params
from alast_tune.plots import front_html, front_png, human_bytes, human_flops
from alast_tune.plots.cloud import ACCURACY, BYTES, FLOPS, NOBODY, Cloud
from alast_tune.results import TrialResult
from alast_tune.summary import summarise

REFERENCE = (0.0, 3e12, 6e7)
COMPLETE = {0: (0.90, 1.0e12, 4e7), 1: (0.95, 2.0e12, 5e7), 2: (0.80, 0.5e12, 3e7), 4: (0.70, 2.5e12, 5.5e7)}


def sweep(values, sweep_name="demo"):
    results = []
    for number in range(max(values, default=-1) + 1):
        params = {"method/alpha": 0.01 * (number + 1), "method/trainable_blocks": number + 1}
        config = apply_params(TrialConfig(), params)
        state = "complete" if number in values else "failed"
        results.append(TrialResult(number, state, config, params, values.get(number), 2))
    return summarise(sweep_name, results, REFERENCE), results


def traces(page):
    """Read the figure's traces back from the page."""
    start = re.search(r'Plotly\.newPlot\(\s*"front",\s*', page).end()
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


def test_page_needs_no_network():
    page = front_html(*sweep(COMPLETE))
    assert not re.search(r"<script[^>]*\bsrc=|<link\b", page)
    assert '"showSendToCloud": false' in page
    assert len(page) > 1_000_000  # plotly itself is inside


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
