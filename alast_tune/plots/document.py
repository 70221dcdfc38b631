"""A page that needs nothing else: plotly's JavaScript is inside it, once, however many figures it has."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from alast_tune.plots.cloud import GREY, INK

TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
AXIS = {"gridcolor": "#E6E8EB", "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY}
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
}


@dataclass(frozen=True)
class Section:
    """A part of a page: what is said, then HTML, then a figure, then more HTML."""

    name: str
    """Id of the figure's element in the page."""
    figure: Any = None
    """Of plotly's, if the section has one."""
    heading: str = ""
    text: str = ""
    before: str = ""
    after: str = ""


def document(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Put sections one below the other, on a page of about 5 MB; title, lead, headings and texts are escaped here.

    ``before`` and ``after`` of a section are HTML already.
    """
    # plotly 7 has a button that uploads the figure to its makers' cloud unless told otherwise.
    config = {"responsive": True, "displaylogo": False, "showSendToCloud": False}
    parts, drawn = [], 0
    for section in sections:
        parts += [f"<h2>{html.escape(section.heading)}</h2>"] if section.heading else []
        parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
        parts.append(section.before)
        if section.figure is not None:
            figure = section.figure.to_html(
                full_html=False, include_plotlyjs=drawn == 0, div_id=section.name, config=config
            )
            parts.append(f'<div class="figure">{figure}</div>')
            drawn += 1
        parts.append(section.after)
    return TEMPLATE.substitute(title=html.escape(title), lead=html.escape(lead), body="\n".join(parts))
