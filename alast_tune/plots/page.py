"""The front as an interactive page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from alast_tune.plots.cloud import (
    ACCURACY,
    BASELINE_COLOURS,
    BLUE,
    BYTES,
    FLOPS,
    GREY,
    INK,
    NOBODY,
    VERMILLION,
    Cloud,
    sampled,
)
from alast_tune.plots.document import AXIS, LAYOUT, Section, document
from alast_tune.plots.search import brief
from alast_tune.plots.units import human_bytes, human_flops, short
from alast_tune.results import BASELINES, FrontFile, TrialResult
from alast_tune.summary import trial_id

PANELS = ((FLOPS, ACCURACY), (BYTES, ACCURACY), (FLOPS, BYTES))
"""Objective on the x and on the y axis of each projection."""
SYMBOLS = {"full": "square-open", "paper": "diamond-open"}
"""Frames around the baselines, which may be members of the front or dominated."""
RUNS_BEGIN, RUNS_END = '<script type="application/json" id="runs">', "</script>"


def front_html(front: FrontFile, results: Sequence[TrialResult]) -> str:
    """Draw three projections and a 3-D view of the trials, and a table of the front.

    Projections zoom together where they share an axis; the trial under the pointer, in a projection or in the table,
    is ringed in all four views, and a click copies its MLflow run id. Faint: dominated trials. Framed: baselines.
    Steps: what the front attains.

    Args:
        front: says which trials are members, and the knee.
        results: every trial; those that are not complete are left out.

    Returns:
        A whole HTML page of about 5 MB; without a complete trial a small one that says so.
    """
    cloud = Cloud.of(front, results)
    title = f"Pareto front of {front.sweep}"
    if not cloud.ids:
        return document(title, NOBODY, [])
    script = Template(Path(__file__).with_name("front.js").read_text(encoding="utf-8")).substitute(
        values=json.dumps(dict(zip(cloud.ids, cloud.values_TM.tolist(), strict=True))), panels=json.dumps(PANELS)
    )
    runs = {trial_id(one.number): one.mlflow_run_id for one in results if one.state == "complete"}
    before = '<p id="picked">A click on a point or a row copies the id of its MLflow run.</p>'
    after = [
        f'<div id="table">{_table(front, results)}</div>',
        RUNS_BEGIN + _in_script(runs) + RUNS_END,
        f"<script>\n{script}</script>",
    ]
    return document(
        title, _lead(front) + sampled(front, results), [Section("front", _figure(cloud))], before, "\n".join(after)
    )


def with_runs(page: str, runs: Mapping[str, str]) -> str:
    """Fill in the MLflow run of each trial where they were not known yet when the page was made.

    Args:
        page: of :func:`front_html`; one without trials comes back as it is.
        runs: MLflow run ids by trial id; trials that are not in it keep what they have, those that the page does not
            show are left out.
    """
    before, begin, rest = page.partition(RUNS_BEGIN)
    known, end, after = rest.partition(RUNS_END)
    filled = {name: runs.get(name, run) for name, run in json.loads(known or "{}").items()}
    return before + begin + _in_script(filled) + end + after if begin else page


def _in_script(values: Mapping[str, str | None]) -> str:
    return json.dumps(values).replace("<", "\\u003c")


def _lead(front: FrontFile) -> str:
    counts = front.trials
    lead = f"{len(front.front)} of {counts.complete} complete trials on the front"
    if counts.pruned or counts.failed:
        lead += f" ({counts.pruned} pruned, {counts.failed} failed)"
    return f"{lead} · hypervolume share {front.hypervolume_share:.3f} · knee: trial {front.knee}"


def _figure(cloud: Cloud) -> Any:
    from plotly.subplots import make_subplots

    specs: list[list[dict[str, str]]] = [[{}, {}], [{}, {"type": "scene"}]]
    figure = make_subplots(rows=2, cols=2, specs=specs, horizontal_spacing=0.1, vertical_spacing=0.12)
    for place, axes in enumerate([*PANELS, (FLOPS, BYTES, ACCURACY)]):
        row, column = divmod(place, 2)
        for trace in _traces(cloud, axes, legend=place == 0):
            figure.add_trace(trace, row=row + 1, col=column + 1)
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    accuracy, flops, size = ({"title": {"text": label}} for label in cloud.labels)
    figure.update_layout(
        **LAYOUT,
        height=900,
        margin={"l": 70, "r": 20, "t": 80, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "trace"},
        xaxis=flops,
        yaxis=accuracy,
        xaxis2=size,
        yaxis2=accuracy | {"matches": "y"},
        xaxis3=flops | {"matches": "x"},
        yaxis3=size,
        scene={
            # Titles of a scene are not moved out of one another's way: units alone, and the whole box kept in view.
            "xaxis": {"title": {"text": cloud.units[FLOPS]}},
            "yaxis": {"title": {"text": cloud.units[BYTES]}},
            "zaxis": {"title": {"text": "Accuracy"}},
            "camera": {"eye": {"x": 1.5, "y": -1.7, "z": 0.7}, "center": {"x": 0, "y": 0, "z": -0.12}},
        },
    )
    return figure


def _traces(cloud: Cloud, axes: tuple[int, ...], legend: bool) -> list[Any]:
    """Make the traces of one view, from the back to the front: connection, dominated, members, knee, pointer."""
    import plotly.graph_objects as go

    flat = len(axes) == 2
    kind = go.Scatter if flat else go.Scatter3d
    quiet = {"hoverinfo": "skip", "showlegend": False}
    if flat:
        path, line = cloud.staircase(*axes), {"color": BLUE, "width": 1.5, "shape": "hv"}
    else:
        path, line = cloud.values_TM[cloud.member_T][:, list(axes)], {"color": BLUE, "width": 3}
        path = path[np.argsort(path[:, 0], kind="stable")]
    traces = [kind(**_columns(path), mode="lines", line=line, opacity=0.6, name="connection", **quiet)]
    # WebGL draws the same size larger, and has no star.
    size = 1.0 if flat else 0.5
    edge = {"color": "white", "width": 1.5 if flat else 0}
    styles = {
        "dominated": (~cloud.member_T, {"color": GREY, "opacity": 0.4, "size": 9 * size}),
        "front": (cloud.member_T & ~cloud.knee_T, {"color": BLUE, "size": 13 * size, "line": edge}),
        "knee": (
            cloud.knee_T,
            {
                "color": VERMILLION,
                "symbol": "star" if flat else "diamond",
                "size": 20 * size if flat else 6,
                "line": edge,
            },
        ),
    }
    for name, (mask_T, marker) in styles.items():
        chosen = np.flatnonzero(mask_T)
        traces.append(
            kind(
                **_columns(cloud.values_TM[chosen][:, list(axes)]),
                mode="markers",
                marker=marker,
                name=name,
                legendgroup=name,
                showlegend=legend and len(chosen) > 0,
                customdata=[cloud.ids[index] for index in chosen],
                text=[cloud.hover[index] for index in chosen],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for name, mask_T in cloud.baselines.items():
        frame = {"symbol": SYMBOLS[name], "size": 21 if flat else 13, "color": BASELINE_COLOURS[name]}
        traces.append(
            kind(
                **_columns(cloud.values_TM[mask_T][:, list(axes)]),
                mode="markers",
                marker=frame | {"line": {"color": BASELINE_COLOURS[name], "width": 2}},
                name=BASELINES[name],
                legendgroup=name,
                showlegend=legend,
                hoverinfo="skip",
            )
        )
    ring = {"symbol": "circle-open", "size": 24 if flat else 18, "color": INK, "line": {"color": INK, "width": 2.5}}
    nowhere = {axis: [None] for axis in "xyz"[: len(axes)]}
    return [*traces, kind(**nowhere, mode="markers", marker=ring, name="pointer", **quiet)]


def _columns(points: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, list[float]]:
    # Lists, since plotly packs arrays as base64, which nobody can read or search in the page.
    return {axis: points[:, column].tolist() for column, axis in zip(range(points.shape[1]), "xyz", strict=False)}


def _table(front: FrontFile, results: Sequence[TrialResult]) -> str:
    chosen = {trial_id(result.number): result.searched for result in results}
    paths = list(dict.fromkeys(path for member in front.front for path in chosen.get(member.trial_id, {})))
    tested = any(member.test_accuracy is not None for member in front.front)
    head = [
        "trial",
        "accuracy",
        *(["test accuracy"] if tested else []),
        "FLOPs",
        "peak memory",
        *brief(paths).values(),
        "MLflow run",
    ]
    rows = []
    for member in front.front:
        values = chosen.get(member.trial_id, {})
        test = "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}"
        cells = [
            member.trial_id + (f" {BASELINES[member.baseline]}" if member.baseline else ""),
            f"{member.objectives['accuracy']:.4f}",
            *([test] if tested else []),
            human_flops(member.objectives["train_flops"]),
            human_bytes(member.objectives["peak_bytes"]),
            *(short(values.get(path, "-")) for path in paths),
        ]
        kind = ' class="knee" title="knee"' if member.trial_id == front.knee else ""
        rows.append(
            f'<tr data-trial="{html.escape(member.trial_id)}"{kind}>{_cells(cells, "td")}<td><code></code></td></tr>'
        )
    return f"<table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cells(values: Sequence[str], tag: str) -> str:
    # A path may break after a slash, or a table of ten settings is three screens wide.
    return "".join(f"<{tag}>{html.escape(value).replace('/', '/<wbr>')}</{tag}>" for value in values)
