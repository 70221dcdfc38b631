"""What a trial did to its blocks, as a page and as a picture."""

import pytest

from alast_tune.plots import blocks_html, blocks_png
from tests.unit.plots.figures import COMPLETE, blocks, size_of, sweep, traces


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
