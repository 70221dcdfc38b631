"""What the search did, as figures of plotly's."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alast_tune.front import pareto_rank
from alast_tune.health import FORECAST_ERROR
from alast_tune.plots.cloud import BLUE, GREY, VERMILLION
from alast_tune.plots.document import AXIS, LAYOUT
from alast_tune.plots.front_figure import known
from alast_tune.plots.search import (
    NOT_TOLD,
    WAY_NAMES,
    WAY_STYLES,
    Moment,
    SearchReport,
    charted,
    objective_names,
    ranked,
    space_axes,
    varying,
    ways,
)
from alast_tune.plots.units import byte_unit, flop_unit, time_unit
from alast_tune.results import DIRECTIONS, OBJECTIVES, FrontFile, TrialResult
from alast_tune.summary import trial_id

RANKS = {"front": "#D55E00", "second": "#0072B2", "third": "#7FB8DC", "further": "#D0D4DA"}
"""Name and colour of the front of the trials drawn, of the front without that one, and so on."""


def space_figure(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> Any:
    """Draw the trials that the search proposed in parallel coordinates, coloured by their rank; constants left out."""
    import plotly.graph_objects as go

    trials = charted(front, results, report.space)
    values_TM = np.array([trial.values for trial in trials])
    ranks_T = np.minimum(pareto_rank(values_TM, DIRECTIONS), len(RANKS) - 1)
    order = np.argsort(-ranks_T, kind="stable")  # who is drawn last lies on top
    axes = space_axes(varying(report.space, trials), trials)
    dimensions: list[dict[str, Any]] = [
        {
            "label": axis.label.replace("\n", "<br>"),
            "values": axis.places_T[order].tolist(),
            "range": [axis.low, axis.high],
            "tickvals": list(axis.ticks),
            "ticktext": [html.escape(tick) for tick in axis.ticks.values()],
        }
        for axis in axes
    ]
    names = list(RANKS)
    rank = {"label": "rank", "values": ranks_T[order].tolist(), "range": [len(names) - 0.8, -0.2]}
    dimensions.append(rank | {"tickvals": list(range(len(names))), "ticktext": names})
    steps = [[(n + end) / len(names), colour] for n, colour in enumerate(RANKS.values()) for end in (0, 1)]
    line = {"color": ranks_T[order].tolist(), "cmin": -0.5, "cmax": len(names) - 0.5, "colorscale": steps}
    lines = go.Parcoords(
        dimensions=dimensions,
        line=line,
        unselected={"line": {"color": GREY, "opacity": 0.1}},
        tickfont={"size": 12},
        labelfont={"size": 12},
    )
    figure = go.Figure(lines)
    figure.update_layout(**LAYOUT, height=440, margin={"l": 60, "r": 70, "t": 80, "b": 30})
    return figure


def importances_figure(front: FrontFile, report: SearchReport) -> Any:
    """Draw the share of each parameter in what sets an objective's best trials apart."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    paths = ranked(report)
    figure = make_subplots(
        rows=1, cols=3, shared_yaxes=True, subplot_titles=list(objective_names(front)), horizontal_spacing=0.04
    )
    for column, objective in enumerate(OBJECTIVES, start=1):
        shares = report.importances.get(objective.name)
        if not shares:
            place = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5, "showarrow": False}
            figure.add_annotation(text=NOT_TOLD, row=1, col=column, **place)
            figure.update_xaxes(visible=False, row=1, col=column)
            continue
        bars = go.Bar(
            x=[shares.get(path) for path in paths],
            y=list(paths.values()),
            orientation="h",
            marker={"color": BLUE},
            text=[f"{shares[path]:.0%}" if path in shares else "" for path in paths],
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


def convergence_figure(front: FrontFile, results: Sequence[TrialResult], report: SearchReport) -> Any:
    """Draw accuracy after each epoch against what the run had cost so far: the front's members and the baselines."""
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
                x=known(line.costs_E3[:, cost]),
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
    figure.update_yaxes(title_text=f"Validation {front.score_label}", row=1, col=1)
    legend = {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"}
    figure.update_layout(**LAYOUT, height=480, margin={"l": 70, "r": 20, "t": 80, "b": 60}, legend=legend)
    return figure


def history_figure(points: Sequence[Moment]) -> Any:
    """Draw hypervolume against the FLOPs that were spent until then, and against hours."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    factor, unit = flop_unit(points[-1].flops)
    seconds, time_name = time_unit(3600 * points[-1].hours)
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, x_P in enumerate(
        ([point.flops / factor for point in points], [3600 * point.hours / seconds for point in points]), start=1
    ):
        line = go.Scatter(
            x=x_P,
            y=[point.share for point in points],
            mode="lines+markers",
            line={"color": BLUE, "width": 2, "shape": "hv"},
            marker={"size": 6},
            text=[point.name for point in points],
            hovertemplate="%{text}: hypervolume %{y:.4f}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(line, row=1, col=column)
    figure.update_xaxes(**AXIS, rangemode="tozero")
    figure.update_yaxes(**AXIS, rangemode="tozero")
    figure.update_xaxes(title_text=f"FLOPs spent on all trials ({unit})", row=1, col=1)
    figure.update_xaxes(title_text=f"Since the first trial began ({time_name})", row=1, col=2)
    figure.update_yaxes(title_text="Hypervolume", row=1, col=1)
    figure.update_layout(**LAYOUT, height=340, margin={"l": 70, "r": 20, "t": 10, "b": 60})
    return figure


def memory_figure(measured: Mapping[int, tuple[float, float]]) -> Any:
    """Draw measured peaks against predicted ones, (predicted, measured) bytes by trial number; a tenth is shaded."""
    import plotly.graph_objects as go

    factor, unit = byte_unit(max(max(pair) for pair in measured.values()))
    pairs_T2 = np.array(list(measured.values())) / factor
    off_T = np.abs(pairs_T2[:, 1] / pairs_T2[:, 0] - 1) > FORECAST_ERROR
    ends = [0.0, 1.08 * float(pairs_T2.max())]
    low, high = ([end * (1 + sign * FORECAST_ERROR) for end in ends] for sign in (-1, 1))
    quiet = {"mode": "lines", "hoverinfo": "skip"}
    figure = go.Figure(go.Scatter(x=ends, y=low, line={"width": 0}, showlegend=False, **quiet))
    band = {"fill": "tonexty", "fillcolor": "rgba(0, 158, 115, 0.12)", "name": "within 10%"}
    figure.add_scatter(x=ends, y=high, line={"width": 0}, **band, **quiet)
    figure.add_scatter(x=ends, y=ends, line={"color": GREY, "dash": "dot"}, name="as forecast", **quiet)
    for name, mask_T, colour in (("trial", ~off_T, BLUE), ("more than 10% off", off_T, VERMILLION)):
        figure.add_scatter(
            x=pairs_T2[mask_T, 0].tolist(),
            y=pairs_T2[mask_T, 1].tolist(),
            mode="markers",
            marker={"color": colour, "size": 10, "line": {"color": "white", "width": 1}},
            name=name,
            showlegend=bool(mask_T.any()),
            text=[trial_id(number) for number, off in zip(measured, mask_T, strict=True) if off],
            hovertemplate="trial %{text}: %{x:.3g} forecast, %{y:.3g} measured<extra></extra>",
        )
    figure.update_xaxes(**AXIS, title_text=f"Forecast ({unit})", range=ends)
    figure.update_yaxes(**AXIS, title_text=f"Measured peak memory ({unit})", range=ends)
    legend = {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "trace"}
    figure.update_layout(**LAYOUT, height=420, margin={"l": 70, "r": 20, "t": 40, "b": 60}, legend=legend)
    return figure
