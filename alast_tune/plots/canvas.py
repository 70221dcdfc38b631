"""Figures of matplotlib's that become PNGs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from alast_tune.plots.cloud import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = "#E6E8EB"


def canvas(width: float, height: float, title: str) -> Figure:
    """Make an empty figure, sizes in inches of 150 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it would keep the figure, and choose a backend for the whole process.
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    return figure


def say(figure: Figure, text: str) -> None:
    """Write in its middle why a figure, or a panel of one, is empty."""
    figure.text(0.5, 0.5, text, ha="center", color=INK)


def style_axes(axes: Axes, grid: Literal["x", "both"] = "both") -> None:
    """Leave a panel its grid, or the lines across one axis, and two of its edges."""
    axes.grid(axis=grid, color=GRID, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Render it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
