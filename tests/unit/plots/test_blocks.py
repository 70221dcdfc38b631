"""What a trial did to its blocks, as a page and as a picture."""

import pytest

from alast_tune.plots import blocks_png, report_html
from tests.unit.plots.figures import COMPLETE, blocks, sweep, traces


def test_page_shows_each_trials_blocks_by_its_title():
    front, results = sweep(COMPLETE, baselines={1: "paper"})
    report = blocks()
    page = report_html(front, results, blocks={int(front.knee): report, 1: report})
    assert f"Trial {front.knee} of demo: the knee</h2>" in page
    assert "Trial 0001 of demo: ALaST as in the paper</h2>" in page
    by_name = {trace["name"]: trace for trace in traces(page, "blocks-1")}
    assert by_name["trained"]["y"] == report.trained_L.tolist()
    assert by_name["tokens"]["y"] == report.tokens_L.tolist()
    assert by_name["before fine-tuning"]["y"] == report.before_L.tolist()
    assert by_name["after"]["y"] == report.after_L.tolist()
    assert by_name["budgets"]["z"] == report.budgets_SL.T.tolist()
    maps = traces(page, "attention-1")
    assert [trace["type"] for trace in maps] == ["image", "heatmap", "heatmap"] * 2
    assert maps[2]["z"] == report.attention_AIhw[1, 0].tolist()


def test_picture_shows_what_the_page_does(pictures):
    report = blocks(depth=12, steps=5)
    figure = pictures.of(blocks_png("one", report))
    trained, tokens, magnitude, budgets, scale, *attention = figure.axes
    assert [bar.get_height() for bar in trained.patches] == pytest.approx((100 * report.trained_L).tolist())
    assert [bar.get_height() for bar in tokens.patches] == report.tokens_L.tolist()
    assert list(tokens.lines[0].get_ydata()) == [17, 17]
    before, after = magnitude.lines
    assert before.get_ydata().tolist() == report.before_L.tolist() and before.get_label() == "before fine-tuning"
    assert after.get_ydata().tolist() == report.after_L.tolist() and after.get_label() == "after"
    assert trained.get_xticks().tolist() == [0, 2, 4, 6, 8, 10]
    (shown,) = budgets.images
    assert shown.get_array().tolist() == report.budgets_SL.T.tolist()
    assert shown.get_extent() == [-0.5, 4.5, 11.5, -0.5] and shown.get_clim() == (0, 1)
    assert (budgets.get_xlabel(), budgets.get_ylabel(), scale.get_ylabel()) == ("step", "block", "budget")
    rows = [attention[:2], attention[2:4], attention[4:]]
    assert [panels[0].get_ylabel() for panels in rows] == ["image", "block 1", "block 3"]
    for image in range(2):
        assert rows[0][image].images[0].get_array().tolist() == report.images_IHWC[image].tolist()
        for row in range(2):
            assert rows[1 + row][image].images[0].get_array().tolist() == report.attention_AIhw[row, image].tolist()
    assert figure.get_suptitle() == "one" and figure.pixels == (2250, 1125)


@pytest.mark.parametrize("report", [blocks(budgets=False), blocks(depth=1, steps=1, images=1), blocks(depth=40)])
def test_blocks_of_other_methods_and_sizes_are_drawn(report, pictures):
    front, results = sweep(COMPLETE)
    names = [trace["name"] for trace in traces(report_html(front, results, blocks={0: report}), "blocks-0")]
    assert ("budgets" in names) == (report.budgets_SL.size > 0)
    figure = pictures.of(blocks_png("one", report))
    assert len(figure.axes) == 3 + 2 * (report.budgets_SL.size > 0) + 3 * len(report.images_IHWC)
    assert len(figure.axes[0].patches) == len(report.trained_L)
