"""What runs did with their blocks, as figures of plotly's."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from alast_tune.plots.cloud import BLUE, GREY, VERMILLION
from alast_tune.plots.document import AXIS, LAYOUT, Section
from alast_tune.results import BASELINES, FrontFile, TrialResult
from alast_tune.summary import trial_id

if TYPE_CHECKING:
    from alast_tune.blocks import BlockReport


def block_title(front: FrontFile, results: Sequence[TrialResult], number: int) -> str:
    """Name a trial whose blocks are shown, and say what is special about it."""
    baseline = next((result.baseline for result in results if result.number == number), None)
    said = (["the knee"] if trial_id(number) == front.knee else []) + ([BASELINES[baseline]] if baseline else [])
    return ": ".join([f"Trial {trial_id(number)} of {front.sweep}", *([", ".join(said)] if said else [])])


def block_sections(
    front: FrontFile, results: Sequence[TrialResult], reports: Mapping[int, BlockReport]
) -> list[Section]:
    """Draw budgets, training frequency, tokens, relative magnitude and attention, block by block, of some trials.

    Args:
        front: names the knee.
        results: name the baselines.
        reports: by trial number.
    """
    sections = []
    for number, report in reports.items():
        text = (
            "How often each block trained and how many tokens it got; how much of what leaves a block is its own "
            "contribution, |f(x)| / |f(x) + x| of the image's summary (its class token, or a mean of its tokens), over "
            "validation images, all tokens flowing"
        )
        text += "; and each block's compute budget, step by step." if report.budgets_SL.size else "."
        title = block_title(front, results, number)
        sections.append(Section(f"blocks-{number}", _training(report), f"Block by block · {title}", text))
        text = (
            "Attention that patches of validation images get after fine-tuning, mean over the heads: from the class "
            "token, all tokens or the pool, whichever the model classifies by; each map has its own scale, from dark "
            "to bright."
        )
        sections.append(Section(f"attention-{number}", _attention(report), "", text))
    return sections


def _training(report: BlockReport) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = 2 if report.budgets_SL.size else 1
    specs: list[list[Any]] = [[{}, {}, {}], *([[{"colspan": 3}, None, None]] if rows == 2 else [])]
    titles = ["Steps in which it trained", "Mean tokens", "Relative magnitude", "Compute budget"][: rows + 2]
    figure = make_subplots(rows=rows, cols=3, specs=specs, subplot_titles=titles, vertical_spacing=0.16)
    blocks = list(range(len(report.trained_L)))
    hover = "block %{x}: %{y:.3g}<extra></extra>"
    bars = {"marker": {"color": BLUE}, "showlegend": False}
    figure.add_trace(
        go.Bar(
            x=blocks,
            y=report.trained_L.tolist(),
            name="trained",
            hovertemplate="block %{x}: %{y:.1%}<extra></extra>",
            **bars,
        ),
        row=1,
        col=1,
    )
    figure.add_trace(
        go.Bar(x=blocks, y=report.tokens_L.tolist(), name="tokens", hovertemplate=hover, **bars), row=1, col=2
    )
    figure.add_hline(y=report.all_tokens, line={"color": GREY, "dash": "dot"}, annotation_text="all", row=1, col=2)
    for name, values, colour, dash in (
        ("before fine-tuning", report.before_L, GREY, "dash"),
        ("after", report.after_L, VERMILLION, "solid"),
    ):
        line = go.Scatter(
            x=blocks,
            y=values.tolist(),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2.5},
            hovertemplate=hover,
        )
        figure.add_trace(line, row=1, col=3)
    figure.update_xaxes(**AXIS, title_text="block", tickmode="linear", dtick=max(1, len(blocks) // 6), tickangle=0)
    figure.update_yaxes(**AXIS, rangemode="tozero")
    figure.update_yaxes(tickformat=".0%", row=1, col=1)
    if rows == 2:
        budgets = go.Heatmap(
            x=report.steps_S.tolist(),
            y=blocks,
            z=report.budgets_SL.T.tolist(),
            zmin=0,
            zmax=1,
            colorscale="Cividis",
            name="budgets",
            colorbar={"title": {"text": "budget"}, "len": 0.42, "y": 0.2},
            hovertemplate="step %{x:.0f}, block %{y}: %{z:.3f}<extra></extra>",
        )
        figure.add_trace(budgets, row=2, col=1)
        figure.update_xaxes(title_text="step", tickmode="auto", dtick=None, row=2, col=1)
        figure.update_yaxes(title_text="block", autorange="reversed", dtick=1, row=2, col=1)
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06, "yanchor": "bottom"}
    figure.update_layout(**LAYOUT, height=330 * rows + 60, margin={"l": 60, "r": 20, "t": 70, "b": 50}, legend=legend)
    return figure


def _attention(report: BlockReport) -> Any:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    count, columns = len(report.images_IHWC), 1 + len(report.attended)
    titles = ["image", *(f"block {block}" for block in report.attended)]
    figure = make_subplots(rows=columns, cols=count, row_titles=titles, horizontal_spacing=0.01, vertical_spacing=0.015)
    for image in range(count):
        figure.add_trace(go.Image(source=_source(report, image), hoverinfo="skip"), row=1, col=image + 1)
        for row, maps_Ihw in enumerate(report.attention_AIhw, start=2):
            heat = go.Heatmap(
                z=maps_Ihw[image].tolist(),
                colorscale="Cividis",
                showscale=False,
                zmin=0,
                name=f"attention of block {report.attended[row - 2]}",
                hovertemplate="%{z:.2%}<extra></extra>",
            )
            figure.add_trace(heat, row=row, col=image + 1)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    for index in range(1, count * columns + 1):
        figure.update_layout({f"yaxis{index if index > 1 else ''}": {"scaleanchor": f"x{index if index > 1 else ''}"}})
    figure.update_layout(
        **LAYOUT, width=190 * count + 60, height=180 * columns + 20, margin={"l": 10, "r": 40, "t": 10, "b": 10}
    )
    return figure


def _source(report: BlockReport, image: int) -> str:
    """Put an image into the page; enlarged without smoothing where it is small, as browsers would smooth it."""
    picture = Image.fromarray(report.images_IHWC[image])
    factor = max(1, 128 // picture.width)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
