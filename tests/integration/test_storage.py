"""A sweep whose state outlives its machines: on object storage, with everything else killed and gone."""

import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import optuna
import psutil
import psycopg
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from alast_tune.cli import main
from alast_tune.config import stored_sweep
from alast_tune.errors import StorageError
from alast_tune.results import FrontFile
from alast_tune.storage import CHECKPOINTS, copy_of, listing
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.storage_errors import as_storage_error
from alast_tune.tune.study_file import StudyJournal
from alast_tune.tune.trials import _database, open_study
from tests.integration.harness import PATIENCE, Pareto, free_port, kill, mlflow_server, wait_for
from tests.integration.postgres import PASSWORD, postgres_server

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[str]:
    """A tracking server: what a sweep in object storage needs."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow, folder / "m.db")
    options = ("--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts"))
    with mlflow_server(*options) as address:
        yield address


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


def trial_states(folder: Path) -> list[str]:
    """Read every trial's state from the study's file, as another program would."""
    file = folder / "study.jsonl"
    if file.exists():
        with suppress(KeyError):  # being created
            study = optuna.load_study(study_name=folder.name, storage=StudyJournal(file))
            return [trial.state.name for trial in study.get_trials(deepcopy=False)]
    return []


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_cluster_and_its_disk_are_gone(
    server: str, pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pareto.storage = Path("s3://bucket/sweeps")  # as pathlib writes it, with one slash less
    command = ("--preset", pareto.preset(trials=3, epochs=3), "--name", "moved", "--go-on")
    with object_storage("bucket") as variables:
        for name, value in (variables | {"MLFLOW_TRACKING_URI": server}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
        first = copy_of("s3://bucket/sweeps/moved")
        process = pareto.start(*command)
        # One trial has ended, and the next has left a checkpoint.
        wait_for(lambda: Counter(trial_states(first)) >= Counter(["COMPLETE", "RUNNING"]), process)
        (driver,) = [entry.base_name for entry in listing(first / CHECKPOINTS)]
        running = first / CHECKPOINTS / driver / f"{trial_states(first).index('RUNNING'):04d}"
        wait_for(lambda: any(entry.base_name.startswith("checkpoint_") for entry in listing(running)), process)
        kill_all(process)
        shutil.rmtree(tmp_path / "first")

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        out = pareto.run(*command)
        second = copy_of("s3://bucket/sweeps/moved")
        assert (
            "its last driver" in out
            and "3 of 3 trials done" in out
            and "front: s3://bucket/sweeps/moved/front.json" in out
        )
        assert trial_states(second) == ["COMPLETE"] * 3
        assert FrontFile.read(second / "front.json").trials.complete == 3
        assert len(listing(second / CHECKPOINTS)) == 2  # what had ended was not run again; what ran went on
        client = mlflow.MlflowClient(server)
        (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
        runs = client.search_runs([experiment.experiment_id])
        assert Counter(run.info.status for run in runs) == {"FINISHED": 4}
        trials = [run for run in runs if run.data.tags.get("alast.kind") == "trial"]
        for run in trials:  # an epoch whose checkpoint was lost is trained and logged again, to the same end
            points = client.get_metric_history(run.info.run_id, "accuracy")
            assert len({(point.step, point.value) for point in points}) == 3
            assert {point.step for point in points} == {1, 2, 3}

        main(["promote", "s3://bucket/sweeps/moved", "-o", str(tmp_path / "best.yaml")])
        assert "registered: models:/moved@champion" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "words", "mend"),
    [
        (OSError(28, "No space left on device"), "No space left on device", "make room"),
        # As a worker's error comes from Tune: in another's text.
        (RuntimeError("task failed: RuntimeError: PytorchStreamWriter failed writing"), None, "make room"),
        (RuntimeError("x AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7"),
         "AWS Error NETWORK_CONNECTION during PutObject", "once it is back"),
    ],
)  # fmt: skip
def test_storage_that_cannot_be_written_to_is_told_from_a_failing_trial(
    error: Exception, words: str | None, mend: str, tmp_path: Path
) -> None:
    with pytest.raises(StorageError) as told, as_storage_error(tmp_path / "pets"):
        raise error
    assert str(told.value) == (
        f"storage {tmp_path}/pets: {words or 'PytorchStreamWriter failed'}; nothing finished is lost: {mend}, "
        "then go on with --resume pets"
    )
    with pytest.raises(RuntimeError, match="its own"), as_storage_error(tmp_path):
        raise RuntimeError("its own")


@pytest.mark.nightly  # by day: the words (above), the driver's own writes (test_lease.py), a database (below)
def test_object_storage_that_goes_away_ends_the_sweep_in_one_line(
    server: str, pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pareto.storage = Path("s3://bucket/sweeps")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    copy = copy_of("s3://bucket/sweeps/away")
    with object_storage("bucket") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        process = pareto.start("--preset", pareto.preset(trials=8, epochs=3), "--name", "away")
        wait_for(lambda: "RUNNING" in trial_states(copy), process)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 4, out
    line = out.strip().splitlines()[-1]
    assert line.startswith("error: storage s3://bucket/sweeps/away: "), line
    assert line.endswith("nothing finished is lost: once it is back, then go on with --resume away"), line
    assert "FAIL" not in trial_states(copy)


@pytest.fixture
def database_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process's sweeps into the database, and close what Optuna would leave to the collector."""
    opened: list[RDBStorage] = []

    def open_and_note(url: str) -> RDBStorage:
        storage = _database(url)
        assert isinstance(storage, RDBStorage)
        opened.append(storage)
        return storage

    monkeypatch.setattr("alast_tune.tune.trials._database", open_and_note)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    yield
    for storage in opened:
        with suppress(SQLAlchemyError):
            storage.remove_session()
        storage.engine.dispose()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here", "database_here")
def test_a_database_that_goes_away_ends_the_sweep_in_one_line(pareto: Pareto, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as server:
        url = server.enter_context(postgres_server("studies"))
        hear = StudySearcher.on_trial_result

        def end_and_hear(*arguments: Any, **options: Any) -> None:
            server.close()
            hear(*arguments, **options)

        monkeypatch.setattr(StudySearcher, "on_trial_result", end_and_hear)
        command = ("--preset", pareto.preset(trials=3, epochs=2), "--name", "gone")
        out = pareto.here(*command, "--study", url, expect=4)
    line = out.strip().splitlines()[-1]
    assert line.startswith(f"error: storage {pareto.storage / 'gone'}: the study's database fails ("), line


@pytest.mark.slow
@pytest.mark.usefixtures("database_here")
def test_a_killed_sweep_goes_on_with_its_study_in_a_database(ray_here: "Cluster", pareto: Pareto) -> None:
    folder = pareto.storage / "elsewhere"
    with postgres_server("studies") as url:
        command = ("--preset", pareto.preset(trials=3), "--name", "elsewhere", "--study", url)
        pareto.run(*command, expect=-signal.SIGKILL, RAY_ADDRESS=ray_here.address, ALAST_FAILPOINT="after-tell:2")
        with psycopg.connect(url, password=PASSWORD) as connection:
            states = [state for (state,) in connection.execute("select state from trials order by number")]
        assert states == ["COMPLETE"] * 2
        out = pareto.here("--resume", "elsewhere")
        assert out.count(" complete (") == 1, out  # nothing that had ended ran again
        assert FrontFile.read(folder / "front.json").trials.complete == 3
        again = pareto.here(*command, expect=2)
        assert "error: name = elsewhere: already exists; go on with --resume elsewhere" in again


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_study_in_a_file_that_only_grows(ray_here: "Cluster", pareto: Pareto) -> None:
    folder = pareto.storage / "grows"
    pareto.here("--preset", pareto.preset(trials=3, epochs=1), "--name", "grows", "--study", "journal")
    out = pareto.here("--resume", "grows", "--trials", "2")
    assert out.count(" complete (") == 1, out  # nothing that had ended ran again
    study = open_study(stored_sweep(folder), folder)
    assert [trial.state.name for trial in study.get_trials(deepcopy=False)] == ["COMPLETE"] * 4
    assert FrontFile.read(folder / "front.json").trials.complete == 4
    assert (folder / "study.jsonl").exists() and not (folder / "study.db").exists()
