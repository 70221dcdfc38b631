"""MLflow's own pages on a real sweep, in a real browser: run list, filter, charts, comparison, and our pages in them.

ALAST_SWEEP_STORAGE: look at the sweeps of this folder instead of running a small one; ALAST_SCREENSHOTS:
where the pictures go (docs/ of the repository for the README's).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import mlflow
import pytest
from mlflow.entities import Run

from alast_tune.results import BASELINES, FrontFile
from alast_tune.tracking import prepare_view
from tests.integration.harness import mlflow_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TRIAL = re.compile(r"^\d{4} \w")
"""Names of trials' runs: number, method, settings."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@dataclass(frozen=True)
class Sweep:
    """The sweep that ended last, as MLflow and its front.json have it."""

    address: str
    experiment: str
    parent: Run
    children: list[Run]
    front: FrontFile

    @property
    def name(self) -> str:
        return str(self.parent.info.run_name)

    @property
    def members(self) -> set[str]:
        """Names of the members' runs."""
        ids = {member.mlflow_run_id for member in self.front.front}
        return {str(run.info.run_name) for run in self.children if run.info.run_id in ids}

    @property
    def filter(self) -> str:
        """What is typed to see the front alone."""
        return f"tags.pareto = 'true' and tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'"

    def url(self, page: str) -> str:
        return f"{self.address}/#/experiments/{self.experiment}/{page}"

    def artifact(self, name: str) -> str:
        return self.url(f"runs/{self.parent.info.run_id}/artifacts/{name}")


@pytest.fixture(scope="module")
def sweep(shown: Path) -> Iterator[Sweep]:
    """A finished sweep behind an MLflow server."""
    with mlflow_server("--backend-store-uri", f"sqlite:///{shown / 'mlflow.db'}") as address:
        client = mlflow.MlflowClient(address)
        experiment = client.get_experiment_by_name("alast-tune")
        assert experiment
        number = experiment.experiment_id
        (parent,) = client.search_runs([number], "tags.`alast.kind` = 'sweep'", max_results=1)
        children = client.search_runs([number], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        front = FrontFile.read(shown / str(parent.info.run_name) / "front.json")
        yield Sweep(address, number, parent, list(children), front)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def browser(sweep: Sweep, chromium: Browser) -> Iterator[Page]:
    """A person's first visit: a page, wide as on a desk, with MLflow's assistant put away."""
    page = chromium.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(60_000)
    page.goto(sweep.url("runs"))
    page.get_by_role("link", name=sweep.name, exact=True).first.wait_for()
    close = page.get_by_role("button", name="Close")  # the assistant, where it opens by itself
    if close.count():
        close.first.click()
    page.goto("about:blank")  # MLflow's pages do not follow all of a changed address
    yield page
    page.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go."""
    return Path(os.environ.get("ALAST_SCREENSHOTS", tmp_path))


def unfold(page: Page, name: str) -> None:
    """Show a sweep's trials in the run list."""
    line = page.get_by_role("link", name=name, exact=True).first
    line.wait_for()
    line.locator("xpath=../..").get_by_role("button").last.click()


def test_run_list_shows_the_trials_and_its_filter_the_front(sweep: Sweep, browser: Page, pictures: Path) -> None:
    from playwright.sync_api import expect

    browser.goto(sweep.url("runs"))
    unfold(browser, sweep.name)
    for child in sorted(str(run.info.run_name) for run in sweep.children)[-3:]:
        expect(browser.get_by_role("link", name=child, exact=True)).to_be_visible()
    search = browser.get_by_placeholder("metrics.rmse < 1")
    search.fill(sweep.filter)
    search.press("Enter")
    trials = browser.get_by_role("link", name=TRIAL)
    expect(trials).to_have_count(len(sweep.members))
    assert set(trials.all_inner_texts()) == sweep.members
    browser.screenshot(path=pictures / "mlflow-front-runs.png")


def test_of_more_trials_than_mlflow_draws_ui_shows_the_front(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alast_tune.tracking.view._CHARTED", len(sweep.children) - 1)
    client = mlflow.MlflowClient(sweep.address)
    prepare_view(client, sweep.parent.info.run_id)
    tags = client.get_experiment(sweep.experiment).tags
    packed = tags[f"mlflow.sharedViewState.front-{sweep.parent.info.run_id[:8]}"].removeprefix("deflate;")
    view = json.loads(zlib.decompress(base64.b64decode(packed)))
    shown = client.search_runs([sweep.experiment], view["searchFilter"])
    assert {run.info.run_name for run in shown} == sweep.members
    assert view["compareRunSections"][0]["name"].startswith("Pareto front alone: more than ")


def test_ui_leads_to_the_sweeps_charts_and_table(sweep: Sweep, browser: Page, pictures: Path) -> None:
    from playwright.sync_api import expect

    client = mlflow.MlflowClient(sweep.address)
    page = prepare_view(client, sweep.parent.info.run_id)
    assert prepare_view(client) == page  # the one that began last
    browser.goto(sweep.address + page)
    expect(browser.get_by_text("Pareto front", exact=True)).to_be_visible()
    complete = {run.info.run_name: run for run in sweep.children if run.data.tags["alast.state"] == "complete"}
    points = browser.locator(".scatterlayer .point")
    expect(points).to_have_count(2 * len(complete))  # accuracy against FLOPs, and against memory
    for axis in ("flops_percent_of_full", "memory_percent_of_full"):
        expect(browser.locator(".xtitle", has_text=axis)).to_be_visible()
    expect(browser.locator("canvas").first).to_be_visible()  # parallel coordinates
    browser.screenshot(path=pictures / "mlflow-view.png")
    browser.goto("about:blank")
    browser.set_viewport_size({"width": 2000, "height": 950})  # columns beyond its edge are not there
    browser.goto(sweep.address + page.replace("&compareRunsMode=CHART", ""))
    trials = browser.get_by_role("link", name=TRIAL)
    expect(trials).to_have_count(len(complete))
    assert set(trials.all_inner_texts()) == set(complete)
    full = browser.get_by_role("link", name="0000 full", exact=True)
    expect(full).to_be_visible()
    columns = ["method/name", "accuracy", "test_accuracy", "flops_percent_of_full", "memory_percent_of_full", "pareto"]
    places = []
    for column in columns:
        header = browser.locator(f"[role=columnheader][col-id*='`{column}`']")
        expect(header).to_be_visible()
        places.append((header.bounding_box() or {"x": -1.0})["x"])
    assert places == sorted(places)

    def cell(run: str, column: str) -> Locator:
        link = browser.get_by_role("link", name=run, exact=True)
        row = browser.locator("[role=row]", has=link).get_attribute("row-index")
        return browser.locator(f"[row-index='{row}'] [col-id*='`{column}`']")

    (dataset,) = (one.dataset for one in sweep.parent.inputs.dataset_inputs)
    seen = {"method/name": "full", "flops_percent_of_full": "100", "memory_percent_of_full": "100"}
    for column, text in (seen | {"Dataset": dataset.name}).items():
        expect(cell("0000 full", column)).to_contain_text(text)
    member = min(sweep.members)
    expect(cell(member, "Models")).to_contain_text(f"{sweep.name} {member[:4]}")
    digits = [text for text in browser.locator("[role=gridcell]").all_inner_texts() if re.search(r"\d[\d.]{9}", text)]
    assert not digits, "numbers that nobody reads"
    browser.screenshot(path=pictures / "mlflow-table.png")


def test_report_is_drawn_inside_mlflow(sweep: Sweep, browser: Page) -> None:
    """In its sandboxed frame; what the page does is checked in test_report.py."""
    from playwright.sync_api import expect

    browser.set_viewport_size({"width": 1500, "height": 1350})
    browser.goto(sweep.artifact("report.html"))
    frame = browser.frame_locator("iframe")
    expect(frame.get_by_role("heading", name=f"Sweep {sweep.name}")).to_be_visible()
    expect(frame.locator("#front .scatterlayer .point")).to_have_count(sweep.front.trials.complete + len(BASELINES))
    parameters = len(sweep.children[0].data.tags["alast.searched"].split(", "))
    expect(frame.locator("#space .y-axis")).to_have_count(parameters + 4)  # objectives, rank
    expect(frame.locator("#importances .barlayer .point")).to_have_count(3 * parameters)
    ways = len({member.trial_id for member in sweep.front.front} | {"0000", "0001"})
    expect(frame.locator("#convergence .scatterlayer .trace")).to_have_count(3 * ways)
    expect(frame.locator("#blocks-1 .heatmaplayer image")).to_have_count(1)  # budgets
    expect(frame.locator("#attention-1 .heatmaplayer image")).to_have_count(3 * 4)
    first = sweep.front.front[0]
    frame.locator(f"tr[data-trial='{first.trial_id}']").click()
    expect(frame.locator("#picked")).to_contain_text(f"--pick {first.trial_id} -o best.yaml")
    expect(frame.locator("#picked")).to_contain_text(re.compile("copied|Ctrl"))


def test_chart_and_compare_views_work_on_the_front_alone(sweep: Sweep, browser: Page, pictures: Path) -> None:
    from playwright.sync_api import expect

    browser.set_viewport_size({"width": 1500, "height": 950})
    browser.goto(sweep.url(f"runs?searchFilter={quote(sweep.filter)}&compareRunsMode=CHART"))
    unfold(browser, sweep.name)
    trials = browser.get_by_role("link", name=TRIAL)
    expect(trials).to_have_count(len(sweep.members))
    assert set(trials.all_inner_texts()) == sweep.members
    browser.get_by_placeholder("Search metric charts").fill("^(accuracy|train_flops|peak_bytes)$")
    charts = browser.locator(".js-plotly-plot")
    expect(charts).to_have_count(3)
    drawn = "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data ?? [])"
    browser.wait_for_function(f"count => ({drawn})().length >= count", arg=3 * len(sweep.members))
    lines = browser.evaluate(f"({drawn})().map(line => line.name ?? '')")  # legends have room for some alone
    names = {str(run.info.run_name) for run in sweep.children}
    assert {name for name in names if any(line.startswith(name) for line in lines)} == sweep.members
    browser.screenshot(path=pictures / "mlflow-charts.png")

    runs = [member.mlflow_run_id for member in sweep.front.front]
    compare = f"compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([sweep.experiment]))}"
    browser.goto(f"{sweep.address}/#/{compare}")
    expect(browser.get_by_text(f"Comparing {len(runs)} Runs")).to_be_visible()
    browser.get_by_role("tab", name="Scatter Plot").click()
    browser.locator("#x-axis-selector").click()
    browser.get_by_role("option", name="train_flops", exact=True).click()
    plot = browser.locator(".js-plotly-plot", has=browser.locator(".xtitle", has_text="train_flops"))
    expect(plot).to_be_attached()  # MLflow gives it no height of its own
    points = plot.evaluate("plot => plot.data.flatMap(trace => [...trace.x])")  # on a canvas: nothing to count there
    assert sorted(map(float, points)) == [member.objectives["train_flops"] for member in sweep.front.front]
    browser.screenshot(path=pictures / "mlflow-compare.png")


def test_parent_describes_the_sweep(sweep: Sweep, browser: Page, pictures: Path) -> None:
    from playwright.sync_api import expect

    browser.set_viewport_size({"width": 1500, "height": 1000})
    browser.goto(sweep.url(f"runs/{sweep.parent.info.run_id}"))
    expect(browser.get_by_text("complete trials are on the front")).to_be_visible()
    expect(browser.get_by_role("cell", name=sweep.front.front[0].trial_id).first).to_be_visible()
    command = browser.get_by_text(f"alast-tune promote {sweep.name} --pick knee -o config.yaml")
    expect(command).to_be_visible()
    browser.get_by_text("Show more", exact=True).click()
    browser.screenshot(path=pictures / "mlflow-parent.png")
