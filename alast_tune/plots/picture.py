"""The front as a picture, for reports and for MLflow's preview."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from alast_tune.near_full import region_floor
from alast_tune.plots.canvas import canvas, png, say, style_axes
from alast_tune.plots.cloud import ACCURACY, BASELINE_COLOURS, BLUE, BYTES, FLOPS, GREY, INK, NOBODY, VERMILLION, Cloud
from alast_tune.results import BASELINES, FrontFile, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MARKERS = {"full": "s", "paper": "D"}
"""Frames around the baselines."""
LABEL_ROOM = 20
"""Members that may carry a label; beyond them only the knee and the two ends do."""


def front_png(front: FrontFile, results: Sequence[TrialResult]) -> bytes:
    """Draw accuracy against FLOPs, coloured by memory, and accuracy against memory, coloured by FLOPs.

    Args:
        front: says which trials are members, and the knee.
        results: every trial; those that are not complete are left out.

    Returns:
        A PNG, 1650 x 750 pixels; without a complete trial it says so.
    """
    cloud = Cloud.of(front, results)
    figure = canvas(11, 5, f"Pareto front of {front.sweep}")
    floor = region_floor(front)
    if cloud.ids:
        panels = [(figure.add_subplot(1, 2, 1), FLOPS, BYTES), (figure.add_subplot(1, 2, 2), BYTES, FLOPS)]
        for axes, x, colour in panels:
            _panel(figure, axes, cloud, x, colour)
            if floor is not None and floor > axes.get_ylim()[0]:
                axes.axhline(floor, color=GREY, lw=0.8, ls=":", zorder=0)  # what counts lies above
        panels[0][0].legend(loc="lower right", frameon=False, fontsize=9, labelspacing=0.9)
        figure.draw_without_rendering()  # labels need to know where everything lies
        figure.set_layout_engine("none")
        for axes, x, _ in panels:
            _label(axes, cloud, x)
    else:
        say(figure, NOBODY)
    return png(figure)


def _panel(figure: Figure, axes: Axes, cloud: Cloud, x: int, colour: int) -> None:
    values_TM, member_T = cloud.values_TM, cloud.member_T
    corners = cloud.staircase(x, ACCURACY)
    axes.step(corners[:, 0], corners[:, 1], where="post", color=BLUE, alpha=0.5, lw=1.2, zorder=1)
    dominated_TM = values_TM[~member_T]
    if len(dominated_TM):
        axes.scatter(
            dominated_TM[:, x], dominated_TM[:, ACCURACY], s=28, c=GREY, alpha=0.4, lw=0, label="dominated", zorder=2
        )
    front_TM, knee_TM = values_TM[member_T & ~cloud.knee_T], values_TM[cloud.knee_T]
    limits = {"vmin": values_TM[:, colour].min(), "vmax": values_TM[:, colour].max()}
    dots = axes.scatter(
        front_TM[:, x],
        front_TM[:, ACCURACY],
        s=70,
        c=front_TM[:, colour],
        cmap="cividis",
        edgecolors=INK,
        lw=0.8,
        label="front" if len(front_TM) else None,
        zorder=3,
        **limits,
    )
    axes.scatter(
        knee_TM[:, x],
        knee_TM[:, ACCURACY],
        s=260,
        marker="*",
        c=VERMILLION,
        edgecolors="white",
        lw=0.8,
        label="knee",
        zorder=4,
    )
    for name, mask_T in cloud.baselines.items():
        axes.scatter(
            values_TM[mask_T, x],
            values_TM[mask_T, ACCURACY],
            s=170,
            marker=MARKERS[name],
            facecolors="none",
            edgecolors=BASELINE_COLOURS[name],
            lw=1.8,
            label=BASELINES[name],
            zorder=3.5,
        )
    figure.colorbar(dots, ax=axes, pad=0.02).set_label(cloud.labels[colour], color=INK)
    axes.set(xlabel=cloud.labels[x], ylabel=cloud.labels[ACCURACY])
    style_axes(axes)
    axes.margins(0.08)


def _label(axes: Axes, cloud: Cloud, x: int) -> None:
    """Write trial ids beside members, each where it hides no point and no other label, or not at all."""
    points_T2 = axes.transData.transform(cloud.values_TM[:, [x, ACCURACY]])
    taken = [_square(point, 9.0 if member else 5.0) for point, member in zip(points_T2, cloud.member_T, strict=True)]
    legend = axes.get_legend()
    taken += [legend.get_window_extent()] if legend else []
    for index in _by_importance(cloud):
        for offset, across, along in _places():
            text = axes.annotate(
                cloud.ids[index],
                cloud.values_TM[index, [x, ACCURACY]].tolist(),
                xytext=offset,
                textcoords="offset points",
                ha=across,
                va=along,
                fontsize=8,
                color=VERMILLION if cloud.knee_T[index] else INK,
                zorder=5,
            )
            box = text.get_window_extent()
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


def _by_importance(cloud: Cloud) -> list[int]:
    """List members: the knee first, then the cheapest and the most accurate, then the others if they are few."""
    members = np.flatnonzero(cloud.member_T)
    values_FM = cloud.values_TM[members]
    ends = [members[values_FM[:, FLOPS].argmin()], members[values_FM[:, ACCURACY].argmax()]] if len(members) else []
    others = members.tolist() if len(members) <= LABEL_ROOM else []
    order = [*np.flatnonzero(cloud.knee_T), *ends, *others]
    return list(dict.fromkeys(int(index) for index in order))


def _places() -> Iterator[tuple[tuple[float, float], str, str]]:
    """Offer places around a point, in points of 1/72 inch, the best first."""
    # The steps reach a point from below and leave it to the right: these places come last.
    for side, up in ((-1, 1), (-1, 0), (0, 1), (1, -1), (1, 1), (-1, -1), (1, 0), (0, -1)):
        reach = 8.0 if 0 in (side, up) else 5.0
        yield (
            (side * reach, up * reach),
            ("right", "center", "left")[side + 1],
            ("top", "center", "bottom")[up + 1],
        )


def _square(centre: np.ndarray, half: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half)
