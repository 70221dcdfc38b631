"""Eight sweeps at once on one MLflow server that keeps what it is told in PostgreSQL."""

import multiprocessing
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mlflow
import pytest

from alast_tune.tracking import Tracker, pending
from tests.integration.harness import mlflow_server
from tests.integration.postgres import PASSWORD, postgres_server
from tests.integration.test_outage import SWEEP, finish, trials

SWEEPS, TRIALS = 8, 6


def drive(uri: str, storage: Path, name: str, together: Barrier) -> None:
    """Be a driver whose trials take no time: what it writes, by the real tracker, is all that it does."""
    together.wait(120)
    tracker = Tracker(uri, storage)
    tracker.start_sweep(SWEEP.model_copy(update={"name": name}))
    finish(tracker, trials(tracker, range(TRIALS)))


@pytest.mark.slow
def test_eight_drivers_at_once_lose_no_run_and_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, which begin together, with the store still empty; none trains anything."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    names = [f"sweep-{i}" for i in range(SWEEPS)]
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(SWEEPS)
    with (
        postgres_server("mlflow") as database,
        mlflow_server(
            "--backend-store-uri", database, "--artifacts-destination", str(tmp_path / "a"), "--workers", "2"
        ) as uri,
    ):
        drivers = [spawn.Process(target=drive, args=(uri, tmp_path / "runs", name, together)) for name in names]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        assert [driver.exitcode for driver in drivers] == [0] * SWEEPS
        assert [pending(tmp_path / "runs" / name) for name in names] == [0] * SWEEPS

        client = mlflow.MlflowClient(uri)
        (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        parents = {run.info.run_id: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
        assert sorted(str(run.info.run_name) for run in parents.values()) == names
        children = [run for run in runs if run.info.run_id not in parents]
        assert Counter(run.data.tags["mlflow.parentRunId"] for run in children) == dict.fromkeys(parents, TRIALS)
        points = 0
        for run in children:
            number = int(run.data.tags["alast.trial"])
            assert run.data.tags["alast.sweep_id"] == parents[run.data.tags["mlflow.parentRunId"]].data.tags["alast.sweep_id"]  # fmt: skip  # noqa: E501
            epochs = {1: 1.0, 2: 2.0, 3: 3.0}
            for metric, values in {"accuracy": dict.fromkeys(epochs, 0.5 + number / 20), "epoch": epochs}.items():
                history = client.get_metric_history(run.info.run_id, metric)
                assert sorted((point.step, point.value) for point in history) == sorted(values.items())
                points += len(history)
        print(f"\n{len(parents)} sweeps, {len(children)} trials, {points} points of 2 metrics read back")
