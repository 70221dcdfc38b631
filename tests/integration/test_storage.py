"""A sweep whose state outlives its machines: on object storage, with everything else killed and gone."""

import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import psutil
import psycopg
import pytest

from alast_tune.config import stored_sweep
from alast_tune.results import FrontFile
from alast_tune.storage import CHECKPOINTS, copy_of, listing
from alast_tune.tune.trials import open_study
from tests.integration.harness import PATIENCE, Pareto, free_port, kill, mlflow_server, wait_for
from tests.integration.postgres import PASSWORD, postgres_server
from tests.integration.test_sweep import trial_states


@contextmanager
def object_storage(bucket: str) -> Iterator[dict[str, str]]:
    """Run an S3 server with an empty bucket; the environment variables that lead to it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def made() -> bool:
        try:
            request = urllib.request.Request(f"{address}/{bucket}", method="PUT")
            return bool(urllib.request.urlopen(request, timeout=5).status == 200)
        except OSError:
            return False

    try:
        wait_for(made, process)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.terminate()
        process.communicate(timeout=30)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL a driver and its whole cluster: every process that descends from it."""
    cluster = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    for one in cluster:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(cluster, timeout=30)


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_cluster_and_its_disk_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Pareto(tmp_path)
    script.storage = Path("s3://bucket/sweeps")  # as pathlib writes it, with one slash less
    command = ("--preset", script.preset(trials=4, epochs=3), "--name", "moved", "--go-on")
    store = ("--backend-store-uri", f"sqlite:///{tmp_path / 'm.db'}", "--artifacts-destination", str(tmp_path / "a"))
    with object_storage("bucket") as variables, mlflow_server(*store) as server:
        for name, value in (variables | {"MLFLOW_TRACKING_URI": server}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        first = copy_of("s3://bucket/sweeps/moved")
        process = script.start(*command)
        # One trial has ended, and the next has left a checkpoint.
        wait_for(lambda: Counter(trial_states(first)) >= Counter(["COMPLETE", "RUNNING"]), process)
        (driver,) = [entry.base_name for entry in listing(first / CHECKPOINTS)]
        running = first / CHECKPOINTS / driver / f"{trial_states(first).index('RUNNING'):04d}"
        wait_for(lambda: any(entry.base_name.startswith("checkpoint_") for entry in listing(running)), process)
        kill_all(process)
        shutil.rmtree(tmp_path / "first")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        out = script.run(*command)
        second = copy_of("s3://bucket/sweeps/moved")
        assert (
            "its last driver" in out and "4/4 finished" in out and "front: s3://bucket/sweeps/moved/front.json" in out
        )
        assert trial_states(second) == ["COMPLETE"] * 4
        assert FrontFile.read(second / "front.json").trials.complete == 4
        assert len(listing(second / CHECKPOINTS)) == 2  # what had ended was not run again; what ran went on
        client = mlflow.MlflowClient(server)
        (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
        runs = client.search_runs([experiment.experiment_id])
        assert Counter(run.info.status for run in runs) == {"FINISHED": 5}
        trials = [run for run in runs if run.data.tags.get("alast.kind") == "trial"]
        epochs = [len(client.get_metric_history(run.info.run_id, "accuracy")) for run in trials]
        assert epochs == [3] * 4  # each epoch once: the interrupted trial went on from its checkpoint

        shown = subprocess.run(
            [sys.executable, "-m", "alast_tune.cli", "promote", "s3://bucket/sweeps/moved", "-o", "best.yaml"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "registered: models:/moved@champion" in shown.stdout


@pytest.mark.slow
def test_object_storage_that_goes_away_ends_the_sweep_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Pareto(tmp_path)
    script.storage = Path("s3://bucket/sweeps")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    copy = copy_of("s3://bucket/sweeps/away")
    store = ("--backend-store-uri", f"sqlite:///{tmp_path / 'm.db'}", "--artifacts-destination", str(tmp_path / "a"))
    with mlflow_server(*store) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        with object_storage("bucket") as variables:
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            process = script.start("--preset", script.preset(trials=8, epochs=3), "--name", "away")
            wait_for(lambda: "RUNNING" in trial_states(copy), process)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4, out
    line = out.strip().splitlines()[-1]
    assert line.startswith("error: storage s3://bucket/sweeps/away: "), line
    assert line.endswith("nothing finished is lost: once it is back, then go on with --resume away"), line
    assert "FAIL" not in trial_states(copy)


@pytest.mark.slow
def test_a_database_that_goes_away_ends_the_sweep_in_one_line(pareto: Pareto, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres_server("studies") as url:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        command = ("--preset", pareto.preset(trials=8, epochs=3), "--name", "gone")
        process = pareto.start(*command, "--study", url)
        wait_for(lambda: any(pareto.storage.glob("gone/tune/*/*/checkpoint_*")), process)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4, out
    line = out.strip().splitlines()[-1]
    assert line.startswith(f"error: storage {pareto.storage / 'gone'}: the study's database fails ("), line


@pytest.mark.slow
@pytest.mark.parametrize("study", ["journal", "postgresql"])
def test_a_killed_sweep_goes_on_wherever_its_study_is(
    study: str, pareto: Pareto, monkeypatch: pytest.MonkeyPatch
) -> None:
    if study == "postgresql":
        with postgres_server("studies") as url:
            monkeypatch.setenv("PGPASSWORD", PASSWORD)
            _killed_and_resumed(url, pareto)
            return
    _killed_and_resumed("journal", pareto)
    assert not (pareto.storage / "elsewhere" / "study.db").exists()


def _killed_and_resumed(study: str, pareto: Pareto) -> None:
    folder = pareto.storage / "elsewhere"

    def states() -> list[str]:
        if not (folder / "sweep.json").exists():
            return []
        if study == "journal":
            return [trial.state.name for trial in open_study(stored_sweep(folder), folder).get_trials(deepcopy=False)]
        with psycopg.connect(study, password=PASSWORD) as connection:
            return [state for (state,) in connection.execute("select state from trials order by number")]

    command = ("--preset", pareto.preset(trials=4), "--name", "elsewhere", "--study", study)
    process = pareto.start(*command)
    wait_for(lambda: "COMPLETE" in states(), process)
    kill(process)
    ended = states().count("COMPLETE")
    out = pareto.run("--resume", "elsewhere")
    assert states() == ["COMPLETE"] * 4
    assert out.count(" complete | ") == 4 - ended, out  # nothing that had ended ran again
    assert FrontFile.read(folder / "front.json").trials.complete == 4
    again = pareto.run(*command, expect=2)
    assert "error: name = elsewhere: already exists; go on with --resume elsewhere" in again
    if study != "journal":  # another storage, whose sweep of this name would have the same study
        (folder / "sweep.json").unlink()
        taken = pareto.run(*command, expect=2)
        assert "error: name = elsewhere: the database has a study" in taken
