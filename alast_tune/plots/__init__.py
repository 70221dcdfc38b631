"""Every figure: the front as an interactive page and as a picture, and quantities as people read them.

``units`` writes numbers, ``cloud`` makes points of a sweep's trials, ``page`` draws them with plotly and
``picture`` with matplotlib. Both libraries are imported by the functions that need them, so that a command
that only writes "2.13 PFLOP" starts without them.
"""

from alast_tune.plots.page import front_html
from alast_tune.plots.picture import front_png
from alast_tune.plots.units import human_bytes, human_flops, short

__all__ = ["front_html", "front_png", "human_bytes", "human_flops", "short"]
