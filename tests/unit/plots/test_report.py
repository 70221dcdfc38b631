"""The reports' figures: every mark at its place."""

import math

import pytest
from matplotlib.colors import to_hex

from alast_tune.plots import Mark, ablation_png, ratios_png
from alast_tune.plots.cloud import NOBODY
from tests.unit.plots.figures import Pictures, points, words

HALF = {"train_flops": 0.5, "peak_bytes": 0.6, "train_seconds": 0.7, "accuracy": 0.99}
OTHER = {name: value / 2 for name, value in HALF.items()}


def test_figure_5_has_a_bar_a_method_and_marks_the_papers(pictures: Pictures) -> None:
    figure = pictures.of(ratios_png({"a": HALF, "b": OTHER}, {"b": HALF, "elsewhere": HALF}))
    assert [axes.get_title() for axes in figure.axes] == ["Training FLOPs", "Peak memory", "Time", "Accuracy"]
    for axes, measure in zip(figure.axes, HALF, strict=True):
        assert [bar.get_width() for bar in axes.patches] == [HALF[measure], OTHER[measure]]
        assert [bar.get_y() + bar.get_height() / 2 for bar in axes.patches] == pytest.approx([0, 1])
        assert points(axes) == {"the paper's": [[HALF[measure], 1.0]]}
        (one,) = axes.lines
        assert list(one.get_xdata()) == [1.0, 1.0]
        assert axes.yaxis_inverted() and axes.get_xlim()[0] == 0
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["", ""]
    assert {text.get_text() for text in figure.legends[0].texts} == {"ours", "the paper's"}
    assert figure.pixels == (1800, round(150 * (1.4 + 0.32 * 4)))


def test_figure_5_grows_with_the_methods(pictures: Pictures) -> None:
    many = pictures.of(ratios_png({str(number): HALF for number in range(12)}, {}))
    assert many.pixels == (1800, round(150 * (1.4 + 0.32 * 12)))
    assert len(many.axes[0].patches) == 12 and points(many.axes[0]) == {}


@pytest.mark.parametrize("names", [("0.1", "0.5", "1"), ("calibrate", "1", "0.6")], ids=["numbers", "names"])
def test_an_ablation_has_a_colour_a_line_and_takes_names_and_numbers(
    pictures: Pictures, names: tuple[str, ...]
) -> None:
    marks = [
        Mark(name, line, 0.8 + place / 100, 0.01, 0.5 + place / 10)
        for line in ("rate 1", "rate 2", "rate 3")
        for place, name in enumerate(names)
    ]
    figure = pictures.of(ablation_png("title", "alpha", marks, 0.9, log=True))
    left, right = figure.axes
    numeric = names[0] == "0.1"
    places = [0.1, 0.5, 1.0] if numeric else [0, 1, 2]
    for axes, x_3 in ((left, places), (right, [0.5, 0.6, 0.7])):
        lines = [bars.lines[0] for bars in axes.containers]
        assert [line.get_xdata().tolist() for line in lines] == [pytest.approx(x_3)] * 3
        assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([0.8, 0.81, 0.82])] * 3
        assert [to_hex(line.get_color()).upper() for line in lines] == ["#0072B2", "#D55E00", "#009E73"]
        (spread,) = axes.containers[0].lines[2]
        assert spread.get_segments()[1][:, 1] == pytest.approx([0.80, 0.82])
        full = [line for line in axes.lines if line.get_label() == "full fine-tuning"]
        assert [list(line.get_ydata()) for line in full] == [[0.9, 0.9]]
    assert {line.lines[0].get_linewidth() for line in left.containers} == {1.5 if numeric else 0}
    assert left.get_xscale() == ("log" if numeric else "linear") and right.get_xscale() == "linear"
    assert list(left.get_xticks()) == places and [tick.get_text() for tick in left.get_xticklabels()] == [*names]
    assert words(right) == [*names] * 3
    assert (left.get_xlabel(), left.get_ylabel()) == ("alpha", "Validation accuracy")
    assert right.get_xlabel() == "Training FLOPs, in proportion to full fine-tuning"
    labels = ["rate 1", "rate 2", "rate 3", "full fine-tuning"]
    assert sorted(text.get_text() for text in left.get_legend().texts) == sorted(labels)
    assert figure.get_suptitle() == "title" and figure.pixels == (1650, 630)


def test_without_full_fine_tuning_or_trials_there_is_a_picture_nevertheless(pictures: Pictures) -> None:
    for png, pixels in ((ratios_png({}, {}), (1800, 402)), (ablation_png("K", "K", [], None), (1650, 630))):
        figure = pictures.pop(0)
        assert png and words(figure) == [NOBODY] and not figure.axes and figure.pixels == pixels
    left, _ = pictures.of(ablation_png("K", "K", [Mark("1", "", 0.5, 0.0, math.nan)], None)).axes
    assert [bars.lines[0].get_xydata().tolist() for bars in left.containers] == [[[1.0, 0.5]]]
    assert left.get_legend() is None and left.get_xscale() == "linear"
