"""Which classes a model takes for one another, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alast_tune.plots.canvas import GRID, canvas, png
from alast_tune.plots.cloud import BLUE, INK
from alast_tune.text import safe

NAMED = 60
"""Most classes whose names are written beside the rows."""

_NUMBERED = 25
"""Most classes with a number in each cell."""

_LONGEST = 18
"""Characters of a name that there is room for."""


def confusion_png(title: str, confusion_KK: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix: rows are classes, colours the share of the row's images, numbers images.

    Args:
        title: of the figure.
        confusion_KK: images by their class (row) and by the class that they are taken for.
        classes: K names.

    Returns:
        A PNG, square but for the names, 900 to 1800 pixels high.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    count = len(confusion_KK)
    side = float(np.clip(3.5 + 0.16 * count, 6, 12))
    figure = canvas(side + 1.2, side, title)
    axes = figure.add_subplot()
    share_KK = 100 * confusion_KK / confusion_KK.sum(axis=1, keepdims=True).clip(1)
    shown = axes.imshow(
        share_KK, cmap=LinearSegmentedColormap.from_list("share", ["white", BLUE]),
        norm=PowerNorm(0.5, 0, 100),  # what is seldom taken for another is to be seen all the same
        interpolation="nearest",
    )  # fmt: skip
    bar = figure.colorbar(shown, ax=axes, pad=0.02, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("% of the class's images")
    bar.outline.set_visible(False)
    axes.set_xlabel("taken for", color=INK)
    axes.set_ylabel("class", color=INK)
    if count <= NAMED:
        size = float(np.clip(260 / count, 6.5, 9))
        names = [_short(safe(name)) for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        edges = np.arange(count + 1) - 0.5
        axes.hlines(edges, -0.5, count - 0.5, color=GRID, lw=0.5)
        axes.vlines(edges, -0.5, count - 0.5, color=GRID, lw=0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if count <= _NUMBERED:
        for row, column in zip(*np.nonzero(confusion_KK), strict=True):
            colour = "white" if share_KK[row, column] > 30 else INK
            number = str(confusion_KK[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
    return png(figure)


def _short(name: str) -> str:
    """Leave out the middle of a long name: of several that begin alike the end tells."""
    return name if len(name) <= _LONGEST else f"{name[:10]}…{name[11 - _LONGEST :]}"
