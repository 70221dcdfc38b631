"""report.html of a real sweep in a real browser, opened from its file, without a network.

ALAST_SWEEP_STORAGE: look at the sweep of that folder instead of running a small one; ALAST_SCREENSHOTS: where the
picture goes (docs/ of the repository for the documents').
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alast_tune.results import FrontFile, FrontMember
from tests.e2e.test_mlflow_ui import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shown: Path) -> Path:
    """The folder of a finished sweep, copied away from all that belongs to it."""
    sweep = next(file.parent for file in sorted(shown.glob("*/report.html")))
    alone = tmp_path_factory.mktemp("shared")
    for name in ("report.html", "front.json"):
        shutil.copy(sweep / name, alone)
    return alone


@pytest.fixture
def page(folder: Path) -> Iterator[Page]:
    """The page on a laptop's screen, offline; any error in its scripts and any request fails the test."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, offline=True)
        page = context.new_page()
        errors: list[object] = []
        page.on("pageerror", lambda error: errors.append(error))  # playwright cannot hold a built-in
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / "report.html").as_uri())
        yield page
        chromium.close()
    assert not errors
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [(folder / "report.html").as_uri()]


def centre(points: Locator, index: int) -> tuple[float, float]:
    box = points.nth(index).bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def command(member: FrontMember) -> re.Pattern[str]:
    return re.compile(rf"alast-tune promote .+ --pick {member.trial_id} -o best\.yaml")


def test_page_opens_offline_switches_axes_and_gives_the_command(folder: Path, page: Page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    front = FrontFile.read(folder / "front.json")
    assert front.full is not None
    knee = next(member for member in front.front if member.trial_id == front.knee)
    expect(page.get_by_role("heading", name=f"Sweep {front.sweep}")).to_be_visible()
    for heading in ("Health", "The front", "Hypervolume", "Search space", "Convergence", "How far trials went"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
    expect(page.locator(".card")).to_have_count(3)

    # Every complete trial is a point, the front apart from the rest, the baselines framed, the region shaded.
    points = page.locator("#front .scatterlayer .point")
    expect(points).to_have_count(front.trials.complete + 2)
    stars = page.locator("#front .scatterlayer path.point[style*='rgb(213, 94, 0)']")
    expect(stars).to_have_count(1)
    expect(page.locator("#front .shapelayer path")).to_have_count(1)
    expect(page.locator("#front .annotation-text", has_text="within 5 points of full fine-tuning")).to_be_visible()

    # Each axis puts the knee where its value is.
    title = page.locator("#front .xtitle")
    for name, words in (("peak memory", "Peak memory"), ("time", "Training time"), ("FLOPs", "Training FLOPs")):
        button = page.get_by_role("button", name=name, exact=True)
        button.click()
        expect(title).to_contain_text(words)
        expect(button).to_have_attribute("aria-pressed", "true")
        at = page.evaluate("() => document.getElementById('front').data.find(trace => trace.name === 'knee').x[0]")
        shown = {"FLOPs": knee.objectives["train_flops"], "peak memory": knee.objectives["peak_bytes"]}
        if name in shown:
            size = next(unit for unit in (1e9, 1e12, 1e15, 2.0**20, 2.0**30) if 0.5 < shown[name] / unit / at < 2)
            assert at == pytest.approx(shown[name] / size)
    expect(points).to_have_count(front.trials.complete + 2)

    # A click on the knee shows its command, and a ring around it; a row of the table does the same.
    stars.scroll_into_view_if_needed()
    x, y = centre(stars, 0)
    page.mouse.move(x, y)
    expect(page.locator(".hovertext", has_text=f"trial {knee.trial_id}")).to_be_visible()
    picked = page.locator("#picked")
    for patience in (5_000, 10_000, 60_000):  # on a busy machine plotly may miss a click, as a person does not
        page.mouse.down()
        page.mouse.up()
        with suppress(AssertionError if patience < 60_000 else ()):
            expect(picked).to_contain_text(command(knee), timeout=patience)
            break
    expect(picked).to_contain_text(re.compile("copied|Ctrl"))
    expect(points).to_have_count(front.trials.complete + 3)
    expect(page.locator("tr.picked td").first).to_contain_text(knee.trial_id)
    first = front.front[0]
    page.locator(f"tr[data-trial='{first.trial_id}']").click()
    expect(picked).to_contain_text(command(first))

    # Near full fine-tuning only: the range follows, and comes back.
    def low() -> float:
        return float(page.evaluate("() => document.getElementById('front').layout.yaxis.range[0]"))

    whole = low()
    page.get_by_role("button", name="region of interest").click()
    assert low() == pytest.approx(front.full["accuracy"] - 0.075)
    page.get_by_role("button", name="all trials").click()
    assert low() == whole

    expect(page.locator("#history .scatterlayer .trace")).to_have_count(2)
    lines = page.evaluate("() => document.getElementById('space').data[0].line.color.length")
    assert lines == front.trials.complete - 2  # without the baselines
    expect(page.locator("#memory .scatterlayer .point")).to_have_count(front.trials.complete)
    expect(page.locator(f"#blocks-{int(knee.trial_id)} .barlayer .point")).to_have_count(2 * 12)

    # So does an answer, unless full fine-tuning is the only one.
    for answer in page.locator(".card[data-trial]").all()[:1]:
        answer.click()
        expect(picked).to_contain_text(f"--pick {answer.get_attribute('data-trial')} -o best.yaml")
        expect(answer.locator(".command")).to_contain_text(re.compile("copied|Ctrl"))

    page.mouse.move(0, 0)
    page.evaluate("() => scrollTo(0, 0)")
    pictures = Path(os.environ.get("ALAST_SCREENSHOTS", tmp_path))
    page.set_viewport_size({"width": 1280, "height": 1500})
    page.wait_for_timeout(3000)  # until figures have their new size, and no colour says that something was copied
    page.screenshot(path=pictures / "report.png")


def test_nothing_on_the_page_overlaps_or_is_cut_off(page: Page) -> None:
    """On a laptop and on a small window: no part lies beyond the page's edge, no two labels on one another."""
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(1000)
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
        boxes = page.evaluate(
            """() => ["xtitle", "ytitle", "legendtext", "annotation-text", "xtick", "ytick"].flatMap(kind =>
                [...document.querySelectorAll("#front ." + kind + ", #history ." + kind + ", #memory ." + kind)])
                .map(node => ({text: node.textContent, box: node.getBoundingClientRect()}))
                .map(({text, box}) => [text, box.left, box.top, box.right, box.bottom])"""
        )
        assert len(boxes) > 10
        for n, (text, left, top, right, bottom) in enumerate(boxes):
            for other, l2, t2, r2, b2 in boxes[:n]:
                across, down = min(right, r2) - max(left, l2), min(bottom, b2) - max(top, t2)
                assert min(across, down) <= 2, f"{text} lies on {other} at a width of {width}"
