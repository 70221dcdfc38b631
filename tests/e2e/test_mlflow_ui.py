"""MLflow's own pages on a real sweep, in a real browser: the run list, its filter, the front's interactive page.

ALAST_SWEEP_STORAGE: look at the sweeps of this folder instead of running a small one; ALAST_SCREENSHOTS:
where the pictures go (docs/ of the repository for the README's).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from alast_tune.results import FrontFile
from tests.integration.harness import Pareto, mlflow_server

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

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def storage(pareto: Pareto) -> Path:
    """A folder with at least one finished sweep."""
    given = os.environ.get("ALAST_SWEEP_STORAGE")
    if given:
        return Path(given).absolute()
    pareto.run("--preset", pareto.preset(trials=4), "--name", "demo")
    return pareto.storage


@pytest.fixture
def server(storage: Path) -> Iterator[str]:
    """An MLflow server on it: its address."""
    with mlflow_server("--backend-store-uri", f"sqlite:///{storage / 'mlflow.db'}") as address:
        yield address


def newest_sweep(address: str) -> tuple[str, Run, list[Run]]:
    """Experiment id, parent and children of the sweep that ended last."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("alast-tune")
    assert experiment
    parents = client.search_runs([experiment.experiment_id], "tags.`alast.kind` = 'sweep'", max_results=1)
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    return experiment.experiment_id, parents[0], list(children)


@pytest.mark.timeout(400)
def test_people_find_the_sweep_its_trials_and_its_front(storage: Path, server: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    pictures = Path(os.environ.get("ALAST_SCREENSHOTS", tmp_path))
    experiment, parent, children = newest_sweep(server)
    name = parent.info.run_name
    front = FrontFile.read(storage / str(name) / "front.json")
    names = {run.info.run_id: str(run.info.run_name) for run in children}
    members = {names[str(member.mlflow_run_id)] for member in front.front}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)

        # The run list: one line a sweep, its trials under it.
        page.goto(f"{server}/#/experiments/{experiment}/runs")
        line = page.get_by_role("link", name=str(name), exact=True).first
        line.wait_for()
        close = page.get_by_role("button", name="Close")  # MLflow's assistant, where it opens by itself
        if close.count():
            close.first.click()
        line.locator("xpath=../..").get_by_role("button").click()
        for child in sorted(names.values())[-3:]:
            expect(page.get_by_role("link", name=child, exact=True)).to_be_visible()
        page.screenshot(path=pictures / "mlflow.png")

        # Its own filter leaves the front alone.
        search = page.get_by_placeholder("metrics.rmse < 1")
        search.fill(f"tags.pareto = 'true' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        search.press("Enter")
        trials = page.get_by_role("link", name="trial-")
        expect(trials).to_have_count(len(members))
        assert set(trials.all_inner_texts()) == members
        page.screenshot(path=pictures / "mlflow-front-runs.png")

        # The interactive page is drawn inside MLflow, every trial a point in each projection.
        page.goto(f"{server}/#/experiments/{experiment}/runs/{parent.info.run_id}/artifacts/front.html")
        plot = page.frame_locator("iframe")
        expect(plot.get_by_text(f"Pareto front of {name}").first).to_be_visible()
        expect(plot.locator(".scatterlayer").first).to_be_visible()
        points = plot.locator(".scatterlayer .point")
        expect(points.nth(3 * front.trials.complete - 1)).to_be_attached()
        page.locator("iframe").screenshot(path=pictures / "mlflow-front.png")

        # The parent describes the sweep.
        page.goto(f"{server}/#/experiments/{experiment}/runs/{parent.info.run_id}")
        expect(page.get_by_text("complete trials are on the front")).to_be_visible()
        expect(page.get_by_role("cell", name=front.front[0].trial_id).first).to_be_visible()
        page.screenshot(path=pictures / "mlflow-parent.png")
        browser.close()
    assert (pictures / "mlflow.png").stat().st_size > 10_000
