"""Every figure, on one interactive page and as pictures, and quantities as people read them.

``units`` writes numbers; ``cloud`` makes points of a sweep's trials, ``search`` numbers of its search; ``*_figure(s)``
draws with plotly for ``page``, which is ``report.html``, and ``*picture`` with matplotlib; ``overlay`` sets the fronts
of several sweeps over one another, ``report`` draws what compares methods; ``document`` and ``canvas`` are what pages
and pictures are drawn on. Both libraries are imported by the functions that need them, so that a command that only
writes "2.13 PFLOP" starts without them.
"""

from alast_tune.plots.blocks_figures import block_title
from alast_tune.plots.blocks_picture import blocks_png
from alast_tune.plots.cloud import drawn
from alast_tune.plots.confusion_picture import confusion_png
from alast_tune.plots.overlay import fronts_html, fronts_png
from alast_tune.plots.page import report_html
from alast_tune.plots.picture import front_png
from alast_tune.plots.report import Mark, ablation_png, ratios_png
from alast_tune.plots.search import SearchReport
from alast_tune.plots.search_picture import convergence_png, importances_png, space_png
from alast_tune.plots.units import byte_unit, flop_unit, human_bytes, human_flops, short

__all__ = [
    "Mark",
    "SearchReport",
    "ablation_png",
    "block_title",
    "blocks_png",
    "byte_unit",
    "confusion_png",
    "convergence_png",
    "drawn",
    "flop_unit",
    "front_png",
    "fronts_html",
    "fronts_png",
    "human_bytes",
    "human_flops",
    "importances_png",
    "ratios_png",
    "report_html",
    "short",
    "space_png",
]
