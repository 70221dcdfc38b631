"""The search as an interactive page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alast_tune.plots.cloud import BLUE, NOBODY, sampled
from alast_tune.plots.document import AXIS, LAYOUT, Section, document
from alast_tune.plots.search import (
    NOT_TOLD,
    OBJECTIVE_NAMES,
    WAY_NAMES,
    WAY_STYLES,
    SearchReport,
    brief,
    charted,
    colour_range,
    ranked,
    space_axes,
    standing,
    ways,
)
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult


def search_html(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> str:
    """Draw the search space in parallel coordinates, what matters in it, and how the front's members converged.

    Args:
        front: says which trials are members, and the knee.
        results: every trial; those that are not complete are left out.
        report: what the study tells about the search.

    Returns:
        A whole HTML page of about 5 MB; a figure of which there is nothing to show is left out.
    """
    sections = []
    if charted(front, results, report.space):
        text = (
            "A line is a complete trial that the search proposed. Those on the front stand out; drag along an axis to "
            "choose others, click it to choose all, move axes by their names."
        ) + sampled(front, results)
        sections.append(Section("space", _space(front, results, report), "Search space", text))
    if report.importances:
        text = (
            "Share of each parameter in what sets the trials best in an objective, a tenth or five, apart from all "
            "that the search proposed (PED-ANOVA)."
        )
        sections.append(Section("importances", _importances(report), "Importance of the parameters", text))
    if ways(front, results, report.curves)[0]:
        text = "Validation accuracy after each epoch against what the run had cost so far: the front and the baselines."
        sections.append(Section("convergence", _convergence(front, results, report), "Convergence", text))
    return document(f"Search of {front.sweep}", "" if sections else NOBODY, sections)


def _space(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> Any:
    import plotly.graph_objects as go

    trials = charted(front, results, report.space)
    members = {member.trial_id for member in front.front}
    dimensions = [
        {
            "label": axis.label.replace("\n", "<br>"),
            "values": axis.places_T.tolist(),
            "range": [axis.low, axis.high],
            "tickvals": list(axis.ticks),
            "ticktext": list(axis.ticks.values()),
        }
        for axis in space_axes(report.space, trials)
    ]
    dimensions.append(
        {
            "label": "standing",
            "values": [standing(front, members, trial) for trial in trials],
            "range": [-0.2, 2.2],
            "tickvals": [0, 1, 2],
            "ticktext": ["dominated", "front", "knee"],
            "constraintrange": [0.8, 2.2],
        }
    )
    low, high = colour_range(front, trials)
    lines = go.Parcoords(
        dimensions=dimensions,
        line={
            "color": [trial.values[0] for trial in trials if trial.values],
            "cmin": low,
            "cmax": high,
            "colorscale": "Cividis",
            "showscale": True,
            "colorbar": {"title": {"text": "accuracy"}, "thickness": 14},
        },
        unselected={"line": {"color": "#8A8F98", "opacity": 0.25}},
        tickfont={"size": 12},
        labelfont={"size": 12},
    )
    figure = go.Figure(lines)
    figure.update_layout(**LAYOUT, height=520, margin={"l": 60, "r": 20, "t": 90, "b": 30})
    return figure


def _importances(report: SearchReport) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    paths = ranked(report.importances)
    labels = brief(paths)
    figure = make_subplots(
        rows=1, cols=3, shared_yaxes=True, subplot_titles=list(OBJECTIVE_NAMES), horizontal_spacing=0.04
    )
    for column, objective in enumerate(OBJECTIVES, start=1):
        shares = report.importances.get(objective.name)
        if not shares:
            place = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5, "showarrow": False}
            figure.add_annotation(text=NOT_TOLD, row=1, col=column, **place)
            figure.update_xaxes(visible=False, row=1, col=column)
            continue
        bars = go.Bar(
            x=[shares[path] for path in paths],
            y=[labels[path] for path in paths],
            orientation="h",
            marker={"color": BLUE},
            text=[f"{shares[path]:.0%}" for path in paths],
            textposition="outside",
            cliponaxis=False,
            name=objective.name,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
        figure.add_trace(bars, row=1, col=column)
    figure.update_xaxes(**AXIS, range=[0, 1.1], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(linecolor="#8A8F98", autorange="reversed", ticksuffix=" ")
    figure.update_layout(
        **LAYOUT, height=130 + 34 * len(paths), margin={"l": 10, "r": 30, "t": 40, "b": 40}, showlegend=False
    )
    return figure


def _convergence(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    lines, labels = ways(front, results, report.curves)
    costs = [cost for cost, label in enumerate(labels) if label]
    figure = make_subplots(rows=1, cols=len(costs), shared_yaxes=True, horizontal_spacing=0.04)
    named = set()
    for line in lines:
        colour, width = WAY_STYLES[line.kind]
        for column, cost in enumerate(costs, start=1):
            trace = go.Scatter(
                x=_known(line.costs_E3[:, cost]),
                y=line.accuracy_E.tolist(),
                mode="lines+markers",
                line={"color": colour, "width": width, "dash": "dash" if line.kind in ("full", "paper") else "solid"},
                marker={"size": 5 + 1.5 * width},
                opacity=0.55 if line.kind == "member" else 1.0,
                name=WAY_NAMES[line.kind],
                legendgroup=line.kind,
                showlegend=line.kind not in named,
                customdata=list(range(1, len(line.accuracy_E) + 1)),
                hovertemplate=f"<b>{line.name}</b><br>epoch %{{customdata}}: %{{y:.4f}}, %{{x:.4g}}<extra></extra>",
            )
            figure.add_trace(trace, row=1, col=column)
            named.add(line.kind)
    figure.update_xaxes(**AXIS, rangemode="tozero")
    figure.update_yaxes(**AXIS)
    for column, cost in enumerate(costs, start=1):
        figure.update_xaxes(title_text=labels[cost], row=1, col=column)
    figure.update_yaxes(title_text="Validation accuracy", row=1, col=1)
    legend = {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"}
    figure.update_layout(**LAYOUT, height=480, margin={"l": 70, "r": 20, "t": 80, "b": 60}, legend=legend)
    return figure


def _known(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
