"""What all pages have in common."""

import re

import pytest

from alast_tune.plots import (
    blocks_html,
    front_html,
    search_html,
)
from tests.unit.plots.figures import COMPLETE, REPORT, blocks, sweep


@pytest.mark.parametrize("figures", ["front", "search", "blocks"])
def test_pages_need_no_network_and_hold_plotly_once(figures):
    front, results = sweep(COMPLETE)
    page = {
        "front": lambda: front_html(front, results),
        "search": lambda: search_html(front, results, REPORT),
        "blocks": lambda: blocks_html(front, results, {0: blocks(), 1: blocks()}),
    }[figures]()
    assert not re.search(r"<script[^>]*\bsrc=|<link\b", page)
    assert '"showSendToCloud": false' in page
    assert 4_000_000 < len(page) < 6_000_000  # plotly itself is inside
