"""report.html; how it looks and what its buttons do is checked in the browser (tests/e2e)."""

import json
import re
from dataclasses import replace

import pytest
from plotly.offline import get_plotlyjs

from alast_tune.other_seeds import reseeded
from alast_tune.plots import report_html
from alast_tune.plots.cloud import NOBODY
from alast_tune.results import BASELINES, SeedRun
from alast_tune.summary import summarise
from tests.unit.plots.figures import COMPLETE, REFERENCE, REPORT, blocks, sweep, traces

FULL = {0: (0.93, 2.8e12, 5.9e7)}
HOSTILE = "<img src=x onerror=alert(1)></script>"


def data(page):
    """What the page's script is given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def ended(results):
    return replace(REPORT, ended_hours={result.number: (1 + result.number) / 60 for result in results})


def test_page_has_every_part_that_there_is_something_to_show_of():
    front, results = sweep(COMPLETE, baselines={1: "paper"})
    whole = report_html(front, results, replace(ended(results), predicted_bytes={0: 5e7}), {0: blocks(), 1: blocks()})
    assert headings(whole) == [
        "Health",
        "The front",
        "Hypervolume",
        "Search space",
        "Importance of the parameters",
        "Convergence",
        "How far trials went",
        "Memory, forecast and measured",
        f"Block by block · Trial {front.knee} of demo: the knee",
        "Block by block · Trial 0001 of demo: ALaST as in the paper",
    ]
    assert headings(report_html(front, results)) == ["Health", "The front", "How far trials went"]


def test_page_needs_no_network_and_holds_plotly_once():
    front, results = sweep(COMPLETE)
    page = report_html(front, results, ended(results), {0: blocks(), 1: blocks()})
    assert not re.search(r"<script[^>]*\bsrc=|<link\b", page)
    assert '"showSendToCloud": false' in page
    assert 4_000_000 < len(page) < 6_000_000  # plotly itself is inside


def test_answer_names_the_cheapest_near_full_fine_tuning_and_the_command():
    front, results = sweep(COMPLETE | FULL, baselines={0: "full"})
    for number, seconds in ((0, 40.0), (1, 10.0)):
        results[number] = replace(results[number], metrics={"train_seconds": seconds}, device="a card")
    front = summarise("demo", results, REFERENCE)
    page = report_html(front, results, words=["/elsewhere/demo"])
    cards = re.findall(r'<div class="card".*?</code></div></div>', page)
    assert len(cards) == 3
    one = re.sub(r"<[^>]+>", "|", cards[0])
    assert "Cheapest within 1 point of full fine-tuning" in one and "|trial 0001 |ALaST, K 2|" in one
    assert "accuracy |0.9500|" in one and "71% of the FLOPs" in one and "85% of the memory" in one
    assert "25% of the time" in one
    assert "|alast-tune promote /elsewhere/demo --pick 0001 -o best.yaml|" in one
    assert "within 5 points" in cards[1] and "the knee" in cards[2]
    results[1] = replace(results[1], device="another card")
    assert "of the time" not in report_html(summarise("demo", results, REFERENCE), results)


def test_where_nothing_is_cheaper_the_answer_says_so():
    front, results = sweep({0: (0.97, 2.8e12, 5.9e7), 1: (0.5, 1e12, 3e7)}, baselines={0: "full"})
    page = report_html(front, results)
    assert page.count("Nothing that is cheaper") == 3  # the knee is full fine-tuning: nobody else is near it
    assert page.count('<div class="card" data-trial=') == 0
    without = report_html(*sweep(COMPLETE))
    assert without.count('<div class="card"') == 1 and "point of full" not in without


def test_front_has_an_axis_a_cost_and_time_where_it_is_known():
    front, results = sweep(COMPLETE | {5: (0.93, 2.8e12, 5.9e7)}, baselines={5: "full"})
    page = report_html(front, results)
    steps, dominated, others, knee, full, picked = traces(page)
    assert [trace.get("name") for trace in (dominated, others, knee, full, picked)] == [
        "dominated",
        "front",
        "knee",
        BASELINES["full"],
        "picked",
    ]
    members = {member.trial_id for member in front.front}
    assert set(others["customdata"]) == members - {front.knee} and knee["customdata"] == [front.knee]
    assert dominated["customdata"] == ["0004", "0005"] and dominated["marker"]["opacity"] < 0.5
    assert steps["x"] == [0.5, 1.0, 2.0] and steps["y"] == [0.8, 0.9, 0.95]
    assert (full["x"], full["marker"]["symbol"]) == ([2.8], "square-open")
    assert dominated["text"][0].split("<br>") == [
        "<b>trial 0004</b>",
        "accuracy 0.7000",
        "2.50 TFLOP (89% of full)",
        "52.5 MiB (93% of full)",
        "method/alpha = 0.05",
        "method/trainable_blocks = 5",
    ]
    flops, memory = data(page)["views"]
    assert (flops["name"], memory["name"]) == ("FLOPs", "peak memory")
    assert flops["x"] == [trace["x"] for trace in (steps, dominated, others, knee, full)]
    assert memory["x"][4] == pytest.approx([5.9e7 / 2**20])
    assert len(memory["x"]) == len(memory["y"]) == 5 and 'data-axis="time"' not in page
    timed = [replace(one, metrics={"train_seconds": 30.0 + one.number}, device="cpu") for one in results]
    timed[0] = replace(timed[0], device="cuda")  # another kind's times do not compare
    time = data(report_html(front, timed))["views"][2]
    assert time["title"] == "Training time (s)" and time["all"] == [None, 31.0, 32.0, 34.0, 35.0]
    assert time["x"][0] == [31.0]  # of the front whose time is known the quickest is the best
    assert 'data-range="0.855"' in page and "within 5 points of full fine-tuning" in page


def test_what_stands_for_a_baseline_in_the_space_is_not_what_it_had():
    front, results = sweep(COMPLETE, baselines={0: "full", 1: "paper"})
    hover = {
        text.split("<br>")[0]: text for trace in traces(report_html(front, results)) for text in trace.get("text", [])
    }
    assert hover["<b>trial 0000</b>"].split("<br>")[1:3] == ["<b>full fine-tuning</b>", "accuracy 0.9000"]
    assert "alpha" not in hover["<b>trial 0000</b>"]
    assert "method/trainable_blocks = 9" in hover["<b>trial 0001</b>"]


def test_page_has_a_table_row_a_member():
    front, results = sweep(COMPLETE)
    page = report_html(front, results)
    assert re.findall(r'<tr data-trial="(\d+)"', page) == [member.trial_id for member in front.front]
    assert data(page)["members"] == [member.trial_id for member in front.front]
    assert page.count('class="knee"') == 1
    assert "<th>test accuracy</th>" not in page
    tested = summarise("demo", results, REFERENCE, {0: 0.875})
    assert "<th>test accuracy</th>" in report_html(tested, results)


def test_ends_say_how_far_trials_went_and_why_they_stopped():
    front, results = sweep(COMPLETE)
    results[3] = replace(results[3], state="failed", epochs=1, reason="CUDA error")
    results += [
        replace(results[0], number=5, state="pruned", values=None, epochs=0, reason="never launched: predicted 9 GiB"),
        replace(results[0], number=6, state="running", values=None, epochs=1),
    ]
    stop = "stopped after 1 of 2 epochs: place 3 of 4 there, dominated by 0001"
    results += [replace(results[0], number=7, state="pruned", values=None, epochs=1, reason=stop)]
    results += [replace(results[0], number=8, state="infeasible", values=None, epochs=1, reason="peak 9 GiB")]
    results += [replace(results[0], number=9, state="pruned", values=None, epochs=1, reason=stop.partition(":")[0])]
    rows = re.findall(
        r"<tr>(.*?)</tr>", report_html(front, results).partition('class="ends"')[2].partition("</table>")[0]
    )
    cells = [re.sub(r"<[^>]+>", "|", row.replace("<br>", "; ")).strip("|").split("|") for row in rows[1:]]
    said = [[cell for cell in row if cell] for row in cells]
    assert said == [
        ["not launched", "9", "1", "trial 0005: never launched: predicted 9 GiB"],
        [
            "1",
            "8",
            "4",
            (
                "trial 0003: failed: CUDA error; trial 0007: place 3 of 4 there, dominated by 0001; "
                "trial 0008: over a limit: peak 9 GiB; trial 0009: others had more accuracy at less cost"
            ),
        ],
        ["2", "4", "0", "4 ran their whole budget"],
    ]
    many = [replace(results[3], number=number) for number in range(20, 60)]
    assert "and 28 more" in report_html(front, results[:3] + many)


def test_health_is_checked_seeds_included():
    front, results = sweep(COMPLETE)
    assert "No check has found anything." in report_html(front, results, replace(REPORT, space={}))
    runs = {
        member.trial_id: [
            SeedRun(seed=n, objectives=member.objectives | {"accuracy": accuracy}, test_accuracy=None)
            for n, accuracy in enumerate((0.2, 0.9))
        ]
        for member in front.front
    }
    page = report_html(front, results, reseeded=reseeded(front.front, front.sweep, runs))
    assert "<b>Seeds differ more than members.</b>" in page
    assert "<th>accuracy, 2 other seeds</th>" in page and page.count("<td>0.5500 ± 0.4950</td>") == len(front.front)
    assert "accuracy <b>0.5500</b>" in page and "mean of 2 other seeds" in page  # on the cards


def test_names_settings_and_reasons_are_escaped():
    front, results = sweep(COMPLETE)
    results[0].params[HOSTILE] = HOSTILE
    results[3] = replace(results[3], reason=HOSTILE)
    search = ended(results)
    search = replace(search, importances={"accuracy": {f"method/{HOSTILE}": 1.0}})
    page = report_html(front, results, search, words=[HOSTILE])
    shown = page.replace(get_plotlyjs(), "")
    assert len(shown) < 100_000
    assert "onerror=alert(1)&gt;" in shown  # of the reason and the command
    assert "<img" not in shown
    assert data(page)["promote"] == [f"alast-tune promote '{HOSTILE}' --pick", "-o best.yaml"]


def test_one_member_is_its_own_knee():
    page = report_html(*sweep({0: (0.9, 1e12, 4e7)}))
    _, dominated, others, knee, _ = traces(page)
    assert knee["customdata"] == ["0000"] and dominated["customdata"] == others["customdata"] == []


def test_without_a_complete_trial_the_page_says_so_and_why_others_ended():
    front, results = sweep({})
    failed = replace(sweep(COMPLETE)[1][3], reason="no images")
    page = report_html(front, [*results, failed])
    assert NOBODY in page and "trial 0003: failed: no images" in page
    assert "Plotly.newPlot" not in page and len(page) < 10_000
