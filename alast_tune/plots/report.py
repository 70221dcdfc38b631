"""Figures of the reports: figure 5 of the paper, and one of each ablation (figure 8 among them)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alast_tune.plots.canvas import canvas, png, say, style_axes
from alast_tune.plots.cloud import BLUE, GREY, INK, NOBODY, VERMILLION

_PANELS = {
    "train_flops": "Training FLOPs",
    "peak_bytes": "Peak memory",
    "train_seconds": "Time",
    "accuracy": "Accuracy",
}
_COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Mark:
    """One setting of an ablation."""

    name: str
    """What varies first; its place on the axis if it is a number."""
    line: str
    """What varies second: marks of one line are connected."""
    accuracy: float
    spread: float
    """Standard deviation of the accuracy over seeds."""
    flops: float
    """In proportion to full fine-tuning."""


def ratios_png(ours: Mapping[str, Mapping[str, float]], paper: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw figure 5: methods' FLOPs, memory, time and accuracy as shares of full fine-tuning's.

    Args:
        ours: method -> ``train_flops``, ``peak_bytes``, ``train_seconds``, ``accuracy``.
        paper: the same as the paper prints it, for the methods that it has.

    Returns:
        A PNG, 1800 pixels wide; without methods it says so.
    """
    figure = canvas(12, 1.4 + 0.32 * max(4, len(ours)), "In proportion to full fine-tuning")
    if not ours:
        say(figure, NOBODY)
        return png(figure)
    methods = list(ours)
    for place, (measure, title) in enumerate(_PANELS.items()):
        axes = figure.add_subplot(1, len(_PANELS), place + 1)
        values = [ours[method][measure] for method in methods]
        axes.barh(range(len(methods)), values, color=BLUE, height=0.62, label="ours", zorder=2)
        beside = [(paper[method][measure], row) for row, method in enumerate(methods) if method in paper]
        axes.scatter(
            [value for value, _ in beside], [row for _, row in beside],
            marker="D", s=34, c=VERMILLION, edgecolors="white", lw=0.8, label="the paper's", zorder=3,
        )  # fmt: skip
        axes.axvline(1.0, color=INK, lw=1, zorder=4)
        axes.set_yticks(range(len(methods)), methods if place == 0 else [""] * len(methods))
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(title, fontsize=10, color=INK)
        style_axes(axes, "x")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png(figure)


def ablation_png(title: str, label: str, marks: Sequence[Mark], full: float | None, log: bool = False) -> bytes:
    """Draw accuracy against what varies, and against FLOPs.

    Args:
        title: of the figure.
        label: of the axis of what varies first.
        marks: in the order of the axis.
        full: accuracy of full fine-tuning, a dashed line; None leaves it out.
        log: the axis is logarithmic; only where all names are positive numbers.

    Returns:
        A PNG, 1650 x 630 pixels; without marks it says so.
    """
    figure = canvas(11, 4.2, title)
    if not marks:
        say(figure, NOBODY)
        return png(figure)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    names = list(dict.fromkeys(mark.name for mark in marks))
    numeric = all(_number(name) is not None for name in names)
    place = {name: (_number(name) or 0.0) if numeric else float(row) for row, name in enumerate(names)}
    for row, line in enumerate(dict.fromkeys(mark.line for mark in marks)):
        colour = _COLOURS[row % len(_COLOURS)]
        side, across = (-1, "right") if row % 2 else (1, "left")  # names of two lines keep out of each other's way
        mine = [mark for mark in marks if mark.line == line]
        style: dict[str, Any] = {"color": colour, "marker": "o", "ms": 6, "elinewidth": 1.2, "capsize": 3}
        accuracy, spread = [mark.accuracy for mark in mine], [mark.spread for mark in mine]
        style |= {"label": line or None}
        left.errorbar([place[mark.name] for mark in mine], accuracy, spread, lw=1.5 if numeric else 0, **style)
        right.errorbar([mark.flops for mark in mine], accuracy, spread, lw=0, **style)
        for mark in mine:
            at = (mark.flops, mark.accuracy)
            right.annotate(mark.name, at, (6 * side, 5), textcoords="offset points", ha=across, fontsize=8, color=INK)
    if numeric and log:
        left.set_xscale("log")
    left.set_xticks([place[name] for name in names], names, minor=False)
    left.minorticks_off()
    for axes, x in ((left, label), (right, "Training FLOPs, in proportion to full fine-tuning")):
        if full is not None:
            axes.axhline(full, color=GREY, ls="--", lw=1.2, zorder=0, label="full fine-tuning")
        axes.set_xlabel(x)
        axes.margins(0.14)
        style_axes(axes)
    left.set_ylabel("Validation accuracy")
    right.sharey(left)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, fontsize=9)
    return png(figure)


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
