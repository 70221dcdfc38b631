"""The fronts of several sweeps over one another, as a page and as a picture."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alast_tune.plots.canvas import canvas, png, style_axes
from alast_tune.plots.cloud import ACCURACY, BYTES, FLOPS, INK, staircase
from alast_tune.plots.document import AXIS, LAYOUT, Section, document
from alast_tune.plots.units import byte_unit, flop_unit, human_bytes, human_flops
from alast_tune.results import DIRECTIONS, FrontFile

# Okabe and Ito's palette, and a symbol each: sweeps are told apart without colours as well.
STYLES = (
    ("#0072B2", "o", "circle"),
    ("#D55E00", "s", "square"),
    ("#009E73", "^", "triangle-up"),
    ("#CC79A7", "D", "diamond"),
    ("#E69F00", "v", "triangle-down"),
    ("#56B4E9", "P", "cross"),
    (INK, "X", "x"),
)
PANELS = ((FLOPS, ACCURACY), (BYTES, ACCURACY))
"""Objective on the x and on the y axis of each projection."""


@dataclass(frozen=True)
class _Layer:
    """One sweep's front."""

    name: str
    values_FM: NDArray[np.float64]
    """In the units of the axes."""
    hover: list[str]
    colour: str
    marker: str
    symbol: str


def fronts_html(fronts: Sequence[FrontFile]) -> str:
    """Draw several fronts into one page: accuracy against FLOPs and against memory, a sweep's legend entry hides it.

    Args:
        fronts: with one reference point (:func:`~alast_tune.summary.together`), which the legend's hypervolumes need.

    Returns:
        A whole HTML page of about 5 MB, which needs nothing else.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    labels, layers = _labels(fronts), list(_layers(fronts))
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.08, shared_yaxes=True)
    for layer in layers:
        for column, (x, y) in enumerate(PANELS, start=1):
            corners = staircase(layer.values_FM, x, y)
            steps = go.Scatter(
                x=corners[:, 0].tolist(),
                y=corners[:, 1].tolist(),
                mode="lines",
                line={"color": layer.colour, "width": 1.5, "shape": "hv"},
                opacity=0.6,
                legendgroup=layer.name,
                hoverinfo="skip",
                showlegend=False,
            )
            members = go.Scatter(
                x=layer.values_FM[:, x].tolist(),
                y=layer.values_FM[:, y].tolist(),
                mode="markers",
                marker={"color": layer.colour, "symbol": layer.symbol, "size": 11},
                name=layer.name,
                legendgroup=layer.name,
                showlegend=column == 1,
                text=layer.hover,
                hovertemplate="%{text}<extra></extra>",
            )
            figure.add_traces([steps, members], rows=1, cols=column)
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    for column, (x, _) in enumerate(PANELS, start=1):
        figure.update_xaxes(title_text=labels[x], col=column)
    figure.update_yaxes(title_text=labels[ACCURACY], col=1)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(**LAYOUT, legend=legend, height=600, margin={"l": 70, "r": 20, "t": 60, "b": 60})
    point = f"{fronts[0].score_label} {fronts[0].region.floor:.4f}"
    lead = f"Hypervolumes are measured from one point, {point}. A click on a sweep's name hides it."
    return document(_title(fronts), lead, [Section("fronts", figure)])


def fronts_png(fronts: Sequence[FrontFile]) -> bytes:
    """Draw several fronts into one picture, as :func:`fronts_html` does.

    Returns:
        A PNG, 1650 x 750 pixels.
    """
    labels, layers = _labels(fronts), list(_layers(fronts))
    figure = canvas(11, 5, _title(fronts))
    left = figure.add_subplot(1, 2, 1)
    for axes, (x, y) in zip((left, figure.add_subplot(1, 2, 2, sharey=left)), PANELS, strict=True):
        for layer in layers:
            corners, points_FM = staircase(layer.values_FM, x, y), layer.values_FM
            axes.step(corners[:, 0], corners[:, 1], where="post", color=layer.colour, alpha=0.6, lw=1.3)
            axes.scatter(
                points_FM[:, x], points_FM[:, y], s=44, c=layer.colour, marker=layer.marker, label=layer.name, zorder=3
            )
        axes.set(xlabel=labels[x], ylabel=labels[y])
        style_axes(axes)
    left.legend(loc="lower right", frameon=False, fontsize=9)
    return png(figure)


def _title(fronts: Sequence[FrontFile]) -> str:
    return f"Pareto fronts of {', '.join(front.sweep for front in fronts)}"


def _units(fronts: Sequence[FrontFile]) -> tuple[tuple[float, str], tuple[float, str]]:
    members = [member.objectives for front in fronts for member in front.front]
    flops = max((objectives["train_flops"] for objectives in members), default=0.0)
    return flop_unit(flops), byte_unit(max((objectives["peak_bytes"] for objectives in members), default=0.0))


def _labels(fronts: Sequence[FrontFile]) -> tuple[str, str, str]:
    (_, flops), (_, size) = _units(fronts)
    return f"Validation {fronts[0].score_label}", f"Training FLOPs ({flops})", f"Peak memory ({size})"


def _layers(fronts: Sequence[FrontFile]) -> Iterator[_Layer]:
    (flops, _), (size, _) = _units(fronts)
    for place, front in enumerate(fronts):
        values_FM = np.array([list(member.objectives.values()) for member in front.front]).reshape(-1, len(DIRECTIONS))
        hover = []
        for member in front.front:
            accuracy, work, memory = member.objectives.values()
            costs = f"{front.score_label} {accuracy:.4f}<br>{human_flops(work)}<br>{human_bytes(memory)}"
            hover.append(f"<b>{html.escape(front.sweep)}, trial {member.trial_id}</b><br>{costs}")
        share = front.hypervolume_share
        name = f"{front.sweep} (hypervolume {'not known yet' if share is None else f'{share:.3f}'})"
        yield _Layer(name, values_FM / np.array([1.0, flops, size]), hover, *STYLES[place % len(STYLES)])
