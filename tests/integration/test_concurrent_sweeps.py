"""Several sweeps at once on one MLflow server: two on SQLite, and eight on PostgreSQL."""

import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import mlflow
import pytest

from alast_tune.tracking import Tracker, pending
from tests.integration.harness import PATIENCE, mlflow_server
from tests.integration.postgres import PASSWORD, postgres_server
from tests.integration.test_outage import SWEEP, finish, trials

TRIALS = 4


class Barrier(Protocol):
    """Of threads or of processes."""

    def wait(self, timeout: float | None = None) -> int: ...


def drive(uri: str, storage: Path, name: str, together: Barrier) -> None:
    """Be a driver whose trials take no time: what it writes, by the real tracker, is all that it does."""
    together.wait(PATIENCE)
    tracker = Tracker(uri, storage)
    tracker.start_sweep(SWEEP.model_copy(update={"name": name}))
    finish(tracker, trials(tracker, range(TRIALS)))


def assert_all_there(uri: str, storage: Path, names: Sequence[str]) -> None:
    """No run and no metric is lost or mixed up with another sweep's."""
    assert [pending(storage / name) for name in names] == [0] * len(names)
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = {run.info.run_id: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(str(run.info.run_name) for run in parents.values()) == names
    children = [run for run in runs if run.info.run_id not in parents]
    assert Counter(run.data.tags["mlflow.parentRunId"] for run in children) == dict.fromkeys(parents, TRIALS)
    for run in children:
        number = int(run.data.tags["alast.trial"])
        parent = parents[run.data.tags["mlflow.parentRunId"]]
        assert run.data.tags["alast.sweep_id"] == parent.data.tags["alast.sweep_id"]
        epochs = {1: 1.0, 2: 2.0, 3: 3.0}
        for metric, values in {"accuracy": dict.fromkeys(epochs, 0.5 + number / 20), "epoch": epochs}.items():
            history = client.get_metric_history(run.info.run_id, metric)
            assert sorted((point.step, point.value) for point in history) == sorted(values.items())


@pytest.mark.slow
def test_two_drivers_at_once_lose_no_run_and_no_metric(tmp_path: Path, empty_mlflow: Path) -> None:
    """Threads of this process, which begin together, before the store has their experiment."""
    database, storage, names = shutil.copy(empty_mlflow, tmp_path / "m.db"), tmp_path / "runs", ["sweep-0", "sweep-1"]
    together = threading.Barrier(len(names))
    with (
        mlflow_server(
            "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(tmp_path / "a")
        ) as uri,
        ThreadPoolExecutor() as pool,
    ):
        for driver in [pool.submit(drive, uri, storage, name, together) for name in names]:
            driver.result()
        assert_all_there(uri, storage, names)


@pytest.mark.nightly
def test_eight_drivers_at_once_lose_no_run_and_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, which begin together, with the store still empty; none trains anything."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    storage, names = tmp_path / "runs", [f"sweep-{i}" for i in range(8)]
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(len(names))
    with (
        postgres_server("mlflow") as database,
        mlflow_server(
            "--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "a"), "--workers", "2"
        ) as uri,
    ):
        drivers = [spawn.Process(target=drive, args=(uri, storage, name, together)) for name in names]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        assert [driver.exitcode for driver in drivers] == [0] * len(names)
        assert_all_there(uri, storage, names)
