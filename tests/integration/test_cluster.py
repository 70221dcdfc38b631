"""A sweep on three real Ray nodes with pretended cards: on all of them, past one that is lost, not without a server."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from alast_tune.results import FrontFile
from alast_tune.tune.members import checkpoints
from tests.integration.harness import PATIENCE, Pareto, mlflow_server, wait_for
from tests.integration.test_sweep import trial_states

TRIALS, EPOCHS = 4, 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that runs no trials, and two nodes that have room for one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A tracking server: what several nodes need."""
    database, artifacts = f"sqlite:///{tmp_path / 'm.db'}", str(tmp_path / "artifacts")
    with mlflow_server("--backend-store-uri", database, "--artifacts-destination", artifacts) as address:
        yield address


def trial_runs(address: str) -> dict[int, Run]:
    """The runs of a sweep's trials that a store has, by number; each trial has one."""
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("alast-tune")
    if experiment is None:
        return {}
    runs = client.search_runs([experiment.experiment_id], "tags.`alast.kind` = 'trial'")
    numbers = [int(run.data.tags["alast.trial"]) for run in runs]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, runs, strict=True))


def logged_epochs(address: str, run: Run) -> Counter[int]:
    """How often each epoch of a trial was logged."""
    history = mlflow.MlflowClient(address).get_metric_history(run.info.run_id, "accuracy")
    return Counter(point.step for point in history)


@pytest.mark.slow
def test_a_store_in_a_file_is_refused_before_any_trial(
    cluster: Cluster, pareto: Pareto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    out = pareto.run("--preset", pareto.preset(), "--name", "refused", expect=2)
    assert "error: MLFLOW_TRACKING_URI = sqlite:///" in out and "several nodes need a tracking server" in out
    assert not (pareto.storage / "refused" / "study.db").exists()


@pytest.mark.slow
def test_a_sweep_uses_all_nodes_and_a_lost_one_costs_at_most_an_epoch(
    cluster: Cluster, store: str, pareto: Pareto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints lie on storage that the other node shares."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    folder = pareto.storage / "nodes"
    options = ["--scheduler", "none", "--gpus-per-trial", "1", "--trial.data.train-images", "192"]
    driver = pareto.start("--preset", pareto.preset(TRIALS, EPOCHS), "--name", "nodes", *options)

    def whereabouts() -> dict[str, int]:
        """Which trial each node is on."""
        runs = trial_runs(store).items()
        return {
            run.data.tags["alast.node"].split()[1]: number
            for number, run in runs
            if run.info.status == "RUNNING" and "alast.node" in run.data.tags
        }

    wait_for(lambda: len(whereabouts()) == 2, driver)
    node, number = next(iter(whereabouts().items()))
    saved = folder / "tune" / "driver-00" / f"{number:04d}" / "checkpoint_000001"
    wait_for(lambda: saved.exists(), driver)
    time.sleep(0.5)  # into the third epoch
    (lost,) = [one for one in cluster.worker_nodes if one.node_id.startswith(node)]
    cluster.remove_node(lost, allow_graceful=False)
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, out

    assert trial_states(folder) == ["COMPLETE"] * TRIALS
    counts = FrontFile.read(folder / "front.json").trials
    assert (counts.total, counts.complete) == (TRIALS, TRIALS)
    runs = trial_runs(store)
    assert sorted(runs) == list(range(TRIALS))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    (left,) = cluster.worker_nodes
    assert runs[number].data.tags["alast.node"].split()[1] == left.node_id[:8]
    for trial, run in runs.items():
        assert logged_epochs(store, run) == dict.fromkeys(range(1, EPOCHS + 1), 1)
        # Tune counts them on past a restart: one an epoch, so that none was trained again.
        assert Path(checkpoints(folder, trial)[0]).name == f"checkpoint_{EPOCHS - 1:06d}"


@pytest.mark.slow
def test_a_sweep_grows_with_its_cluster(store: str, pareto: Pareto, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an autoscaler does it: no worker at first, then one, and one with less memory because a trial waits."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    lacking = "cpus_per_trial = 1: the largest node has 0 CPUs"
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        assert f"error: {lacking}" in pareto.run("--preset", pareto.preset(), "--name", "static", expect=2)
        options = ["--concurrent", "2", "--scheduler", "none", "--trial.data.train-images", "768"]
        driver = pareto.start("--preset", pareto.preset(TRIALS, 6), "--name", "grown", *options)
        folder = pareto.storage / "grown"
        assert driver.stdout
        line = next(line for line in driver.stdout if "waiting" in line)
        assert line == f"{lacking}; waiting for one that has more, 30 minutes at most\n"
        cluster.add_node(num_cpus=1, memory=8 << 30)
        wait_for(lambda: trial_states(folder).count("RUNNING") == 2, driver)
        cluster.add_node(num_cpus=1, memory=7 << 30)
        out, _ = driver.communicate(timeout=PATIENCE)
        assert driver.returncode == 0, out
        assert trial_states(folder) == ["COMPLETE"] * TRIALS
        assert len({run.data.tags["alast.node"] for run in trial_runs(store).values()}) == 2
    finally:
        cluster.shutdown()
