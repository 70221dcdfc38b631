"""The front as a figure of plotly's whose horizontal axis can be FLOPs, memory or time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alast_tune.near_full import NEAR, points, region_floor
from alast_tune.plots.cloud import (
    ACCURACY,
    BASELINE_COLOURS,
    BLUE,
    BYTES,
    FLOPS,
    GREY,
    INK,
    VERMILLION,
    Cloud,
    staircase,
)
from alast_tune.plots.document import AXIS, LAYOUT
from alast_tune.plots.units import time_unit
from alast_tune.results import BASELINES, FrontFile

SYMBOLS = {"full": "square-open", "paper": "diamond-open"}
"""Frames around the baselines, which may be members of the front or dominated."""


def front_figure(front: FrontFile, cloud: Cloud) -> tuple[Any, list[dict[str, Any]]]:
    """Draw accuracy against cost: the front and what it attains, dominated trials dim, the region of interest shaded.

    Returns:
        The figure, which shows FLOPs; and for each axis that it can have its ``name``, ``title``, and the ``x`` and
        ``y`` of every trace. A last trace is empty: the ring around a trial that is picked.
    """
    import plotly.graph_objects as go

    axes = _axes(cloud)
    accuracy_T = cloud.values_TM[:, ACCURACY]
    member_T, knee_T = cloud.member_T, cloud.knee_T
    edge = {"color": "white", "width": 1.5}
    masks = {
        "dominated": (~member_T, {"color": GREY, "opacity": 0.35, "size": 9}),
        "front": (member_T & ~knee_T, {"color": BLUE, "size": 13, "line": edge}),
        "knee": (knee_T, {"color": VERMILLION, "symbol": "star", "size": 20, "line": edge}),
    }
    for name, mask_T in cloud.baselines.items():
        colour = BASELINE_COLOURS[name]
        style = {"symbol": SYMBOLS[name], "size": 21, "color": colour, "line": {"color": colour, "width": 2}}
        masks[BASELINES[name]] = (mask_T, style)
    steps = {"color": BLUE, "width": 1.5, "shape": "hv"}
    figure = go.Figure(
        go.Scatter(mode="lines", line=steps, opacity=0.6, name="attained", hoverinfo="skip", showlegend=False)
    )
    for name, (mask_T, marker) in masks.items():
        chosen = np.flatnonzero(mask_T)
        figure.add_scatter(
            mode="markers",
            marker=marker,
            name=name,
            showlegend=len(chosen) > 0,
            customdata=[cloud.ids[index] for index in chosen],
            text=[cloud.hover[index] for index in chosen],
            **({"hoverinfo": "skip"} if name in BASELINES.values() else {"hovertemplate": "%{text}<extra></extra>"}),
        )
    ring = {"symbol": "circle-open", "size": 26, "color": INK, "line": {"color": INK, "width": 2.5}}
    figure.add_scatter(
        x=[None], y=[None], mode="markers", marker=ring, name="picked", hoverinfo="skip", showlegend=False
    )
    views = []
    for name, title, x_T in axes:
        members = np.column_stack([accuracy_T, x_T])[member_T & np.isfinite(x_T)]
        corners = staircase(members, FLOPS, ACCURACY)  # less cost, more accuracy
        columns = [corners, *(np.column_stack([x_T[mask_T], accuracy_T[mask_T]]) for mask_T, _ in masks.values())]
        view = {axis: [known(points[:, place]) for points in columns] for place, axis in enumerate("xy")}
        views.append({"name": name, "title": title, "all": known(x_T)} | view)
    for trace, x, y in zip(figure.data, views[0]["x"], views[0]["y"], strict=False):
        trace.update(x=x, y=y)
    low, high = float(accuracy_T.min()), float(accuracy_T.max())
    pad = 0.06 * (high - low) or 0.01
    figure.update_xaxes(**AXIS, title_text=views[0]["title"], rangemode="tozero")
    figure.update_yaxes(**AXIS, title_text=cloud.labels[ACCURACY], range=[low - pad, high + pad])
    bottom = region_floor(front)
    if bottom is not None:
        figure.add_hrect(bottom, high + 2 * pad, fillcolor="#009E73", opacity=0.09, line_width=0, layer="below")
        words = f"within {points(front.region.within or NEAR)} of full fine-tuning"
        words = f"{front.score_label} {bottom:.4g} and above" if front.region.source == "min_accuracy" else words
        place = {"xref": "paper", "x": 0.005, "y": bottom, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text=words, showarrow=False, font={"size": 12, "color": "#00684C"}, **place)
    legend = {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "trace"}
    figure.update_layout(**LAYOUT, height=520, margin={"l": 70, "r": 20, "t": 40, "b": 60}, legend=legend)
    return figure, views


def known(values: NDArray[np.float64]) -> list[float | None]:
    """Give JSON's null for what is not known; lists, since plotly packs arrays as base64, which nobody can read."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _axes(cloud: Cloud) -> list[tuple[str, str, NDArray[np.float64]]]:
    """List what accuracy can be drawn against: name, title and values, (T,); time only if it is known of a trial."""
    axes = [(name, cloud.labels[n], cloud.values_TM[:, n]) for name, n in (("FLOPs", FLOPS), ("peak memory", BYTES))]
    if np.isfinite(cloud.seconds_T).any():
        factor, unit = time_unit(float(np.nanmax(cloud.seconds_T)))
        axes.append(("time", f"Training time ({unit})", cloud.seconds_T / factor))
    return axes
