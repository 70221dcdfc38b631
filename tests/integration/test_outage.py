"""Outages: the MLflow server away for a while and for good, its disk full, the sweep's own disk full."""

import json
import math
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker, default_uri, pending, run_ids, sync, tracker
from alast_tune.tracking.journal import ASKED, DONE, Journal, Operation
from tests.integration.harness import PATIENCE, ROOT, MlflowServer, Pareto, kill, wait_for
from tests.integration.test_sweep import trial_states

SWEEP = SweepConfig.model_validate(
    {"name": "s", "trials": 6, "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0, "log": True}}}
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A tracking server of the test's own, to be stopped and started."""
    one = server_in(tmp_path / "server")
    one.start()
    yield one
    one.stop()


def server_in(folder: Path) -> MlflowServer:
    folder.mkdir()
    return MlflowServer(
        "--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")
    )


def trials(tracker: Tracker, numbers: range) -> list[TrialResult]:
    """Run trials that do nothing but report."""
    results = []
    for number in numbers:
        values = (0.5 + number / 20, (1 + number % 3) * 1e12, (1 + number % 2) * 1e8)
        tracker.start_trial(number, TrialConfig(), {"method/alpha": 0.1})
        for epoch in (1, 2, 3):
            metrics = dict(zip(("accuracy", "train_flops", "peak_bytes"), values, strict=True))
            tracker.log_epoch(number, metrics | {"epoch": float(epoch), "lost": math.nan}, epoch)
        tracker.end_trial(number, "FINISHED", {"alast.state": "complete"})
        tracker.log_progress({"hypervolume": number / 10}, number + 1)
        results.append(TrialResult(number, "complete", TrialConfig(), {"method/alpha": 0.1}, values, 3))
    return results


def finish(tracker: Tracker, results: list[TrialResult]) -> None:
    front = summarise("s", results, (0.0, 4e12, 8e8))
    front.write(tracker._journal.folder / "front.json")
    tracker.log_front(front, results)
    tracker.end_sweep("FINISHED")


def contents(uri: str, scratch: Path) -> dict[str, Any]:
    """Read all that a store holds, run by run, without ids and times, which differ from sweep to sweep."""
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: str(run.info.run_name) for run in runs}
    assert len(set(names.values())) == len(runs), "a run was made twice"

    def plain(text: str) -> str:
        for run_id, name in names.items():
            text = text.replace(run_id, name)
        return text

    def tags(run: Run) -> dict[str, str]:
        return {name: plain(value) for name, value in run.data.tags.items() if name != "alast.sweep_id"}

    def artifacts(run: Run) -> dict[str, str]:
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        folder = scratch / run.info.run_id
        folder.mkdir(parents=True, exist_ok=True)
        paths = {name: Path(client.download_artifacts(run.info.run_id, name, str(folder))) for name in files}
        return {name: plain(path.read_text()) if path.suffix == ".json" else "" for name, path in paths.items()}

    return {
        names[run.info.run_id]: {
            "status": run.info.status,
            "params": {name: value for name, value in run.data.params.items() if name != "storage"},
            "tags": tags(run),
            "metrics": {
                name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            "artifacts": artifacts(run),
        }
        for run in runs
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a sweep to which nothing happens leaves."""
    storage = tmp_path_factory.mktemp("undisturbed")
    tracker = Tracker(default_uri(storage), storage)
    tracker.start_sweep(SWEEP)
    finish(tracker, trials(tracker, range(6)))
    return contents(tracker.uri, storage / "scratch")


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PATIENCE", 1.0)


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_gets_everything_once(
    server: MlflowServer, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    lines: list[str] = []
    tracker = Tracker(server.address, tmp_path, lines.append)
    tracker.start_sweep(SWEEP)
    results = trials(tracker, range(2))
    server.stop()  # in the middle of the two trials' writes
    started = time.monotonic()
    results += trials(tracker, range(2, 6))
    assert time.monotonic() - started < 20, "the sweep waits for the server"
    while not lines:
        time.sleep(0.1)
    server.start()
    finish(tracker, results)
    assert pending(tmp_path / "s") == 0
    assert [line.split(server.address)[1][:5] for line in lines] == [" cann", " is b"]
    assert contents(server.address, tmp_path / "scratch") == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("short_patience")
def test_a_server_that_is_gone_for_good_gets_everything_by_sync(
    server: MlflowServer, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    tracker = Tracker(server.address, tmp_path / "runs", lines.append)
    tracker.start_sweep(SWEEP)
    server.stop()
    finish(tracker, trials(tracker, range(6)))
    folder = tmp_path / "runs" / "s"
    left = pending(folder)
    assert left > 30
    assert lines[-1].startswith(f"MLflow at {server.address} lacks {left} writes (no answer), which are kept in ")
    assert lines[-1].endswith(f"once it is back: alast-tune sync {folder}")
    assert {member.mlflow_run_id for member in FrontFile.read(folder / "front.json").front} == {None}

    command = [sys.executable, "-m", "alast_tune.cli", "sync", "s", "--storage", str(tmp_path / "runs")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.address}
    away = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert away.returncode == 2 and "start the server" in away.stderr
    server.start()
    other = subprocess.run(command, capture_output=True, text=True, check=False)  # the variable forgotten
    assert other.returncode == 2 and "use the store the sweep began in" in other.stderr
    for made_up in (left, 0):  # a second time there is nothing to do
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"MLflow at {server.address} has all of s ({made_up} writes)\n"
    assert contents(server.address, tmp_path / "scratch") == undisturbed
    members = FrontFile.read(folder / "front.json").front
    runs = run_ids(folder)
    assert {member.mlflow_run_id for member in members} == {runs[int(member.trial_id)] for member in members}


class Lossy:
    """A client whose every answer is lost the first time."""

    def __init__(self, client: mlflow.MlflowClient) -> None:
        self._client = client
        self._heard: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            answer = getattr(self._client, name)(*arguments, **options)
            key = f"{name} {arguments} {options}"
            if key in self._heard or name == "search_runs":
                return answer
            self._heard.add(key)
            raise ConnectionError("connection reset by peer")

        return call


def test_answers_that_are_lost_make_nothing_twice(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    tracker = Tracker(default_uri(tmp_path), tmp_path, lambda line: None)
    tracker.start_sweep(SWEEP)
    tracker._writer._client = Lossy(tracker._client)  # type: ignore[assignment]
    finish(tracker, trials(tracker, range(6)))
    assert contents(tracker.uri, tmp_path / "scratch") == undisturbed


def test_what_is_carried_out_again_after_a_kill_leaves_what_it_left_once(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """A process killed between a write and the note of it, at every operation: all are carried out twice."""
    tracker = Tracker(default_uri(tmp_path), tmp_path)
    tracker.start_sweep(SWEEP)
    finish(tracker, trials(tracker, range(6)))
    first_run = (tmp_path / "s" / DONE).read_text().splitlines()[0]
    (tmp_path / "s" / DONE).write_text(f'{first_run}\n{{"run":"00')
    assert sync(tmp_path / "s", tracker.uri, lambda line: None) == 0
    assert contents(tracker.uri, tmp_path / "scratch") == undisturbed


def test_a_run_that_somebody_deletes_costs_only_its_own_writes(tmp_path: Path) -> None:
    lines: list[str] = []
    tracker = Tracker(default_uri(tmp_path), tmp_path, lines.append)
    tracker.start_sweep(SWEEP)
    results = trials(tracker, range(2))
    assert tracker._writer.flush(patience=0)
    tracker._client.delete_run(run_ids(tmp_path / "s")[0])
    finish(tracker, results)
    assert pending(tmp_path / "s") == 0
    assert len(lines) == 1 and lines[0].startswith("MLflow refuses to log run 0000: ")


def test_a_kill_in_an_outage_is_quick_and_loses_nothing(server_gone: Tracker, tmp_path: Path) -> None:
    started = time.monotonic()
    trials(server_gone, range(2))
    server_gone.start_trial(2, TrialConfig(), {})
    server_gone.kill()
    assert time.monotonic() - started < 3
    status = Journal(tmp_path / "s").status
    assert status == {"sweep": "KILLED", "0000": "FINISHED", "0001": "FINISHED", "0002": "KILLED"}


@pytest.fixture
def server_gone(tmp_path: Path) -> Tracker:
    tracker = Tracker(default_uri(tmp_path), tmp_path, lambda line: None)
    tracker.start_sweep(SWEEP)
    tracker._writer._client = mlflow.MlflowClient("http://127.0.0.1:9")
    return tracker


def test_a_journal_survives_half_a_line_and_a_full_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    operations = [Operation(f"{number:04d}", "open", 1, tags={"t": "x" * 50}) for number in range(20)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal.ask(operations[0])
    journal.done("id-0")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # files end there, as they do on a full disk
        for operation in operations[1:15]:
            journal.ask(operation)
        assert (tmp_path / ASKED).stat().st_size < 1000
        assert (tmp_path / ASKED).read_bytes().endswith(b"\n")
        with pytest.raises(OSError, match="No space left"):  # no more may be noted as done than is kept as asked for
            journal.done(None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for operation in operations[15:]:
        journal.ask(operation)
    with (tmp_path / ASKED).open("a") as file:
        file.write('{"run":"0020","do"')
    again = Journal(tmp_path)
    assert list(again.waiting) == operations[1:]
    assert again.runs == {"0000": "id-0"}
    assert pending(tmp_path) == 19


def test_an_mlflow_disk_that_is_full_for_a_while_is_an_outage(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    lines: list[str] = []
    tracker = Tracker(f"sqlite:///{tmp_path}/m.db", tmp_path, lines.append)
    tracker.start_sweep(SWEEP)
    assert tracker._writer.flush(patience=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "m.db").stat().st_size, hard))
        results = trials(tracker, range(6))
        while not lines:
            time.sleep(0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finish(tracker, results)
    assert "cannot be written to (disk I/O error); all else goes on" in lines[0]
    assert "is back" in lines[1] and len(lines) == 2
    assert contents(tracker.uri, tmp_path / "scratch") == undisturbed


@pytest.mark.usefixtures("short_patience")
def test_artifacts_that_cannot_be_written_are_kept_for_sync(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    lines: list[str] = []
    tracker = Tracker(default_uri(tmp_path), tmp_path, lines.append)
    tracker.start_sweep(SWEEP)
    finish(tracker, trials(tracker, range(6)))
    assert pending(tmp_path / "s") == 2  # the upload, and the end of the sweep behind it
    assert "mlartifacts" in lines[-1]
    (tmp_path / "mlartifacts").unlink()
    assert sync(tmp_path / "s", tracker.uri, lines.append) == 0
    assert contents(tracker.uri, tmp_path / "scratch") == undisturbed


@pytest.mark.slow
def test_a_driver_killed_in_an_outage_is_resumed_and_its_sweep_ends_whole_without_a_server(
    server: MlflowServer, pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    folder = pareto.storage / "away"
    process = pareto.start("--preset", pareto.preset(trials=6, epochs=2), "--name", "away")
    wait_for(lambda: "COMPLETE" in trial_states(folder), process)
    server.stop()
    done = trial_states(folder).count("COMPLETE")
    wait_for(lambda: trial_states(folder).count("COMPLETE") > done, process)
    kill(process)
    assert pending(folder) > 0

    server.start()
    process = pareto.start("--resume", "away")
    done = trial_states(folder).count("COMPLETE")
    wait_for(lambda: trial_states(folder).count("COMPLETE") > done or pending(folder) == 0, process)
    server.stop()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3, out
    assert f"once it is back: alast-tune sync {folder}" in out
    assert set(trial_states(folder)) <= {"COMPLETE", "PRUNED"} and "front: " in out

    server.start()
    synced = subprocess.run(
        [sys.executable, "-m", "alast_tune.cli", "sync", str(folder)], capture_output=True, text=True, check=False
    )
    assert synced.returncode == 0, synced.stdout + synced.stderr
    stored = contents(server.address, tmp_path / "scratch")
    front = FrontFile.read(folder / "front.json")
    assert len(stored) == 1 + front.trials.total
    assert {run["status"] for run in stored.values()} == {"FINISHED"}
    for name, run in stored.items():
        if run["tags"]["alast.kind"] == "trial" and run["tags"]["alast.state"] == "complete":
            assert {step for step, _ in run["metrics"]["accuracy"]} == {1, 2}, name
    on_front = {name.removeprefix("trial-") for name, run in stored.items() if run["tags"].get("pareto") == "true"}
    assert on_front == {member.trial_id for member in front.front}
    parent = next(run for run in stored.values() if run["tags"]["alast.kind"] == "sweep")
    assert json.loads(parent["artifacts"]["front.json"])["knee"] == front.knee


def can_mount() -> bool:
    """Whether a user may have file systems of their own, of a size of their own."""
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="small disks need user namespaces with mounts")


def fill_up(pareto: Pareto, disk: Path, then: str) -> tuple[str, list[int]]:
    """Run a sweep whose small disk is full once the first trial has ended; make room, and do what comes then.

    Returns:
        What was printed, and the exit codes of the two.
    """
    script = f"""
        mkdir -p {disk} && mount -t tmpfs -o size=200m tmpfs {disk}
        {sys.executable} {ROOT}/sweeps/pareto.py --preset {pareto.preset(trials=4)} --name full > log 2>&1 & sweep=$!
        until grep -q " 1/4 finished" log; do kill -0 $sweep || exit 99; sleep 0.1; done
        head -c 1G /dev/zero > {disk}/filler 2> /dev/null
        wait $sweep; echo "exit $?" >> log; rm {disk}/filler
        {then} >> log 2>&1; echo "exit $?" >> log
        mkdir saved && cp -r runs/full/*.* saved && cp {disk}/mlflow.db saved
    """
    folder = pareto.storage.parent
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    out = (folder / "log").read_text()
    assert done.returncode == 0, done.stderr + out
    return out, [int(line.split()[1]) for line in out.splitlines() if line.startswith("exit ")]


@needs_mount
@pytest.mark.slow
def test_an_mlflow_disk_that_is_full_for_good_leaves_the_sweep_whole(
    pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/small/mlflow.db")
    out, codes = fill_up(pareto, tmp_path / "small", f"{sys.executable} -m alast_tune.cli sync full")
    assert codes == [3, 0], out
    assert out.count("cannot be written to (database or disk is full); all else goes on without it") == 1
    assert "lacks" in out and "Traceback" not in out
    saved = tmp_path / "saved"
    front = FrontFile.read(saved / "front.json")
    assert front.trials.complete + front.trials.pruned == front.trials.total
    client = mlflow.MlflowClient(f"sqlite:///{saved}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + front.trials.total
    assert {run.info.status for run in runs} == {"FINISHED"}


@needs_mount
@pytest.mark.slow
def test_a_sweep_whose_own_disk_is_full_ends_in_one_line_and_is_resumed(pareto: Pareto, tmp_path: Path) -> None:
    out, codes = fill_up(pareto, pareto.storage, f"{sys.executable} {ROOT}/sweeps/pareto.py --resume full")
    assert codes == [4, 0], out
    before = out.partition("exit 4")[0]
    (line,) = [line for line in before.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: storage {pareto.storage}/full: ")
    assert line.endswith("nothing finished is lost: make room, then go on with --resume full")
    assert "Traceback" not in out
    assert "failed (" not in out, "a full disk was taken for a trial's failure"
    saved = tmp_path / "saved"
    with sqlite3.connect(saved / "study.db") as connection:
        states = [state for (state,) in connection.execute("select state from trials")]
    front = FrontFile.read(saved / "front.json")
    assert front.trials.failed == 0 and set(states) <= {"COMPLETE", "PRUNED"}
    assert front.trials.complete + front.trials.pruned == front.trials.total
    client = mlflow.MlflowClient(f"sqlite:///{saved}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + front.trials.total
    assert {run.info.status for run in runs} == {"FINISHED"}
