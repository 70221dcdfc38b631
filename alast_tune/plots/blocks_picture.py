"""What a run did with its blocks, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alast_tune.plots.canvas import canvas, png, style_axes
from alast_tune.plots.cloud import BLUE, GREY, INK, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

    from alast_tune.blocks import BlockReport


def blocks_png(title: str, report: BlockReport) -> bytes:
    """Draw training frequency, tokens, relative magnitude, budgets and attention of one trial.

    Returns:
        A PNG, 2250 x 1125 pixels; a method without budgets has no panel of them.
    """
    figure = canvas(15, 7.5, title)
    left, right = figure.subfigures(1, 2, width_ratios=[1.55, 1], squeeze=False)[0]
    rows = [1.0, 1.1] if report.budgets_SL.size else [1.0]
    upper, *lower = left.subfigures(len(rows), 1, height_ratios=rows, squeeze=False)[:, 0]
    blocks = np.arange(len(report.trained_L))
    trained, tokens, magnitude = upper.subplots(1, 3)
    for panel in (trained, tokens, magnitude):
        style_axes(panel)
        panel.set_xlabel("block")
        panel.set_xticks(blocks[:: max(1, len(blocks) // 6)])
    trained.bar(blocks, 100 * report.trained_L, color=BLUE, zorder=2)
    trained.set(title="Steps in which it trained", ylabel="% of steps", ylim=(0, None))
    tokens.bar(blocks, report.tokens_L, color=BLUE, zorder=2)
    tokens.axhline(report.all_tokens, color=GREY, ls=":")
    tokens.text(blocks[-1] + 0.4, report.all_tokens * 1.01, "all", color=INK, fontsize=9, ha="right", va="bottom")
    tokens.set(title="Mean tokens", ylim=(0, 1.12 * report.all_tokens))
    magnitude.plot(blocks, report.before_L, "o--", color=GREY, label="before fine-tuning")
    magnitude.plot(blocks, report.after_L, "o-", color=VERMILLION, lw=2, label="after")
    magnitude.set(
        title="Relative magnitude |f(x)| / |f(x)+x|", ylim=(0, 1.25 * max(report.before_L.max(), report.after_L.max()))
    )
    magnitude.legend(fontsize=8, loc="upper right", frameon=False)
    for part in lower:
        panel = part.subplots()
        ends = (report.steps_S[0] - 0.5, report.steps_S[-1] + 0.5, len(blocks) - 0.5, -0.5)
        shown = panel.imshow(
            report.budgets_SL.T, aspect="auto", cmap="cividis", vmin=0, vmax=1, extent=ends, interpolation="nearest"
        )
        panel.set(
            title="Compute budget during fine-tuning",
            xlabel="step",
            ylabel="block",
            yticks=blocks[:: max(1, len(blocks) // 12)],
        )
        part.colorbar(shown, ax=panel, pad=0.01).set_label("budget")
    _attention(right, report)
    return png(figure)


def _attention(figure: SubFigure, report: BlockReport) -> None:
    count, rows = len(report.images_IHWC), 1 + len(report.attended)
    figure.suptitle("Attention to the patches after fine-tuning", fontsize=11, color=INK)
    panels = figure.subplots(rows, count, squeeze=False)
    for image in range(count):
        panels[0, image].imshow(report.images_IHWC[image], interpolation="nearest")
        for row, maps_Ihw in enumerate(report.attention_AIhw, start=1):
            panels[row, image].imshow(maps_Ihw[image], cmap="cividis", vmin=0, interpolation="nearest")
    for row, name in enumerate(["image", *(f"block {block}" for block in report.attended)]):
        panels[row, 0].set_ylabel(name, color=INK)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
