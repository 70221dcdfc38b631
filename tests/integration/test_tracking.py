"""The tracker on a real store and a real server: runs, limits, resumption, kills, refusals."""

import json
import math
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker, default_uri, is_file_based, run_ids, tracker
from alast_tune.tracking.kept import FILE
from alast_tune.tracking.store import open_store
from tests.integration.harness import mlflow_server

SWEEP = SweepConfig.model_validate(
    {"name": "s", "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0, "log": True}}}
)
REFERENCE = (0.0, 4e12, 8e8)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, what is written when a sweep is stopped is written."""
    monkeypatch.setattr(tracker, "LAST_MOMENT", 60.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[str]:
    """A tracking server over HTTP."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow, folder / "m.db")
    options = ("--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts"))
    with mlflow_server(*options) as address:
        yield address


def write_sweep(tracker: Tracker) -> tuple[str, list[TrialResult]]:
    parent = tracker.start_sweep(SWEEP)
    results = []
    for number, values in enumerate([(0.9, 2e12, 4e8), (0.8, 1e12, 2e8), (0.7, 3e12, 3e8)]):
        tracker.start_trial(number, TrialConfig(), {"method/alpha": 0.1})
        for epoch in (1, 2):
            metrics = dict(zip(("accuracy", "train_flops", "peak_bytes"), values, strict=True)) | {"lost": math.inf}
            tracker.log_epoch(number, metrics, epoch)
        tracker.end_trial(number, "FINISHED", tags={"alast.state": "complete"})
        results.append(TrialResult(number, "complete", TrialConfig(), {"method/alpha": 0.1}, values, 2))
    front = summarise("s", results, REFERENCE)
    tracker.log_front(front, results)
    tracker.end_sweep("FINISHED")
    return parent, results


@pytest.mark.parametrize("kind", ["file", pytest.param("http", marks=pytest.mark.slow)])
def test_a_sweep_is_a_parent_its_trials_children_and_its_front_findable(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    """The store in a file is made here, as by a person's first sweep; other tests find one."""
    uri = request.getfixturevalue("server") if kind == "http" else default_uri(tmp_path)
    capfd.readouterr()  # of the fixtures
    parent, _ = write_sweep(Tracker(uri, tmp_path))
    assert capfd.readouterr() == ("", "")  # the terminal is left to the sweep
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("alast-tune")
    assert experiment

    def found(condition: str) -> set[str]:
        query = f"{condition} and tags.`mlflow.parentRunId` = '{parent}'"
        return {run.info.run_id for run in client.search_runs([experiment.experiment_id], query)}

    runs = run_ids(tmp_path / "s")
    assert found("tags.pareto = 'true'") == {runs[0], runs[1]}
    assert len(found("tags.knee = 'true'")) == 1
    assert found("tags.pareto = 'false'") == set()  # the third was never on the front
    child = client.get_run(runs[0])
    assert child.data.params["method/floors/early"] == "0.1"
    assert "lost" not in child.data.metrics
    assert [metric.step for metric in client.get_metric_history(runs[0], "accuracy")] == [1, 2]
    whole = client.get_run(parent)
    assert whole.data.metrics["best_accuracy"] == 0.9
    assert whole.data.metrics["front_size"] == 2
    assert whole.data.metrics["hypervolume"] > 0
    assert "| 0001 | 0.8000 |" in whole.data.tags["mlflow.note.content"]
    assert whole.data.params["space/method/alpha"]
    uploaded = FrontFile.read(Path(client.download_artifacts(parent, "front.json", str(tmp_path))))
    assert {member.mlflow_run_id for member in uploaded.front} == {runs[0], runs[1]}
    files = {file.path for file in client.list_artifacts(parent)}
    assert files == {"front.json", "report.html", "front.png", "front_table.json"}
    page = Path(client.download_artifacts(parent, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    assert f"alast-tune promote s --storage {tmp_path} --pick" in page
    table = json.loads(Path(client.download_artifacts(parent, "front_table.json", str(tmp_path))).read_text())
    assert "accuracy" in table["columns"] and len(table["data"]) == 2


def test_resuming_reopens_the_same_runs_and_changes_no_parameter(storage: Path) -> None:
    uri = default_uri(storage)
    first = Tracker(uri, storage)
    parent = first.start_sweep(SWEEP)
    first.start_trial(0, TrialConfig(), {})
    first.kill()
    client = mlflow.MlflowClient(uri)
    run = run_ids(storage / "s")[0]
    assert {client.get_run(one).info.status for one in (parent, run)} == {"KILLED"}

    second = Tracker(uri, storage)
    assert second.start_sweep(SWEEP.model_copy(update={"trials": 99})) == parent
    second.start_trial(0, TrialConfig(), {})
    assert second._writer.flush(patience=0)
    assert run_ids(storage / "s") == {0: run}
    assert {client.get_run(one).info.status for one in (parent, run)} == {"RUNNING"}
    second.end_trial(0, "FAILED", {"alast.reason": "x" * 9000})
    second.end_sweep("FINISHED")
    assert client.get_run(run).info.status == "FAILED"
    assert client.get_run(parent).data.params["trials"] == str(SWEEP.trials)


def test_a_run_left_open_by_a_driver_that_died_after_telling_the_study_is_settled(storage: Path) -> None:
    uri = default_uri(storage)
    tracker = Tracker(uri, storage)
    tracker.start_sweep(SWEEP)
    for number in range(3):
        tracker.start_trial(number, TrialConfig(), {})
    states = ("complete", "failed", "running", "failed")  # the last never started
    results = [TrialResult(n, state, TrialConfig(), {}, None, 1) for n, state in enumerate(states)]  # type: ignore[arg-type]
    tracker.reconcile_runs(results)
    tracker.end_sweep("FINISHED")
    client = mlflow.MlflowClient(uri)
    runs = run_ids(storage / "s")
    assert {n: client.get_run(run).info.status for n, run in runs.items()} == {0: "FINISHED", 1: "FAILED", 2: "RUNNING"}


@pytest.mark.parametrize("uploaded", ["parent asked for", "trial not asked for"])
def test_a_driver_killed_before_its_queue_was_uploaded_leaves_no_second_run(storage: Path, uploaded: str) -> None:
    """What a later driver finds is what the folder was when it was last saved."""
    uri, folder, saved = default_uri(storage), storage / "s", storage / "saved.db"

    def save() -> None:
        with closing(sqlite3.connect(folder / FILE)) as database:
            database.execute("vacuum into ?", (str(saved),))

    first = Tracker(uri, storage)
    first.start_sweep(SWEEP, save=save)
    if uploaded == "trial not asked for":
        saved.unlink()
        save()
    first.start_trial(0, TrialConfig(), {})
    assert first._writer.flush(patience=0)
    first._writer.close()
    shutil.rmtree(folder)
    folder.mkdir()
    saved.rename(folder / FILE)

    second = Tracker(uri, storage)
    second.start_sweep(SWEEP)
    second.reconcile_runs([TrialResult(0, "running", TrialConfig(), {}, None, 0)])
    second.start_trial(0, TrialConfig(), {})
    second.end_trial(0, "FINISHED")
    second.end_sweep("FINISHED")
    runs = mlflow.MlflowClient(uri).search_runs(["1"])
    assert sorted(run.data.tags["alast.kind"] for run in runs) == ["sweep", "trial"]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_where_a_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_uri(tmp_path) == "http://host:5000"
    assert [is_file_based(uri) for uri in ("sqlite:///x", "file:/x", "runs", "http://h", "postgresql://h/d")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:////proc/nowhere/m.db"])
def test_a_store_that_cannot_be_used_is_refused_soon_in_one_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI = ") as error:
        Tracker(uri, tmp_path)
    assert "\n" not in str(error.value)


def test_a_front_logged_again_replaces_the_earlier_one(storage: Path, tmp_path: Path) -> None:
    _, results = write_sweep(Tracker(default_uri(storage), storage))
    tracker = Tracker(default_uri(storage), storage)
    parent = tracker.start_sweep(SWEEP)
    tracker.start_trial(3, TrialConfig(), {"method/alpha": 0.2})
    results.append(TrialResult(3, "complete", TrialConfig(), {"method/alpha": 0.2}, (0.95, 1e12, 2e8), 2))
    tracker.log_front(summarise("s", results, REFERENCE), results)
    tracker.end_sweep("FINISHED")
    runs = run_ids(storage / "s")
    client = mlflow.MlflowClient(tracker.uri)
    tags = [client.get_run(runs[number]).data.tags for number in range(4)]
    assert [(tag.get("pareto"), tag.get("knee")) for tag in tags] == [
        ("false", "false"),
        ("false", "false"),
        (None, None),
        ("true", "true"),
    ]
    assert json.loads(client.get_run(parent).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "front_table.json", "type": "table"}
    ]
    page = Path(client.download_artifacts(parent, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    assert f"alast-tune promote s --storage {storage} --pick 0003 -o best.yaml" in page
    table = json.loads(Path(client.download_artifacts(parent, "front_table.json", str(tmp_path))).read_text())
    assert table["columns"] == [
        "trial",
        "accuracy",
        "train_flops",
        "peak_bytes",
        "test_accuracy",
        "method/alpha",
        "run",
    ]
    assert table["data"] == [["0003", 0.95, 1e12, 2e8, None, 0.2, runs[3]]]


def test_limits_of_one_request_are_kept_by_the_client(storage: Path) -> None:
    tracker = Tracker(default_uri(storage), storage)
    parent = tracker.start_sweep(SWEEP)
    tracker.log_progress({f"m{index}": float(index) for index in range(2500)}, 1)
    tracker.log_progress({"lost": math.nan}, 1)
    tracker._ask("sweep", "log", params={f"p{index}": "x" * 6000 for index in range(150)})
    tracker.end_sweep("FINISHED")
    run = mlflow.MlflowClient(tracker.uri).get_run(parent)
    assert run.data.metrics == {f"m{index}": float(index) for index in range(2500)}
    assert {len(run.data.params[f"p{index}"]) for index in range(150)} == {6000}


def test_a_server_is_asked_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself MLflow would take minutes to give up on one that is silent."""
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError):
        open_store("nonsense://x", tmp_path)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_a_silent_server_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ConfigError, match="no answer"),
    ):
        Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)


def test_what_a_store_no_longer_has_is_said(storage: Path, tmp_path: Path, with_store: Callable[[Path], Path]) -> None:
    uri = default_uri(storage)
    other = with_store(tmp_path / "other")
    tracker = Tracker(uri, storage)
    parent = tracker.start_sweep(SWEEP)
    tracker.kill()
    with pytest.raises(ConfigError, match="use the store the sweep began in"):
        Tracker(default_uri(other), storage).start_sweep(SWEEP)
    client = mlflow.MlflowClient(uri)
    client.delete_run(parent)
    with pytest.raises(ConfigError, match=f"mlflow runs restore --run-id {parent}"):
        Tracker(uri, storage).start_sweep(SWEEP)
    experiment = client.get_experiment_by_name("alast-tune")
    assert experiment
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="mlflow experiments restore -x 1"):
        Tracker(uri, storage)


def test_a_folder_with_a_blank_and_a_user_without_a_name_work(
    tmp_path: Path, with_store: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("alast_tune.tracking.tracker.getuser", nobody)
    storage = with_store(tmp_path / "my runs")
    tracker = Tracker(default_uri(storage), storage)
    write_sweep(tracker)
    assert (storage / "mlflow.db").exists()
    assert list((storage / "mlartifacts").glob("*/artifacts/report.html"))
