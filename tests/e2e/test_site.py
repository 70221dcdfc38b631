"""The site that `just docs` has built, in a browser: the four kinds, their pages, what is loaded and what is drawn.

ALAST_SCREENSHOTS: where the picture of the start page goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.documents import ROOT
from tests.e2e.test_mlflow_ui import CHROMIUM, FLAGS
from tests.unit.test_site import NAV, pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

HTML = ROOT / ".site/html"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (HTML / "index.html").exists(), reason="`just docs` has not been run in this checkout"),
]


@pytest.fixture
def page() -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium.new_page(viewport={"width": 1400, "height": 1000})
        chromium.close()


def test_the_start_page_is_the_readme_with_its_picture_and_the_four_kinds(page: Page, tmp_path: Path) -> None:
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if request.url.startswith("http") else None)
    page.goto((HTML / "index.html").as_uri())
    kinds = [name for entry in NAV for name in entry]
    assert [" ".join(tab.split()) for tab in page.locator(".md-tabs__link").all_inner_texts()] == kinds
    assert page.locator("h1").inner_text().strip("¶ ") == "alast-tune"
    assert page.locator("article img").first.evaluate("image => image.complete && image.naturalWidth") > 500
    assert page.locator("article table").count() == 1, "a table that was not read as one"
    page.screenshot(path=Path(os.environ.get("ALAST_SCREENSHOTS", tmp_path)) / "site.png")
    assert not elsewhere, "the site has to work without a network"


def test_every_page_has_its_title_and_no_markdown_is_left_in_it(page: Page) -> None:
    for name in pages(NAV):
        folder = Path(name).with_suffix("")
        folder = folder.parent if folder.name == "README" else folder
        page.goto((HTML / folder / "index.html").as_uri())
        assert page.locator("article h1").count() == 1, name
        text = page.locator("article").evaluate(
            "article => [...article.querySelectorAll('p')].map(p => p.innerText).join('\\n')"
        )
        for mark in ("](", "**", ":::", "| ---", "\n- ", "\n1. "):
            assert mark not in text, f"{name}: {mark!r} in {text[max(0, text.index(mark) - 80) :][:160]!r}"
