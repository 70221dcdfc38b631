"""Outages: the MLflow server away for a while and for good, its disk full, the sweep's own disk full."""

import json
import math
import os
import queue
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import pytest
from mlflow.entities import Run

from alast_tune.cli import main
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker, default_uri, pending, run_ids, sync, writer
from alast_tune.tracking import finish as finish_module
from alast_tune.tracking.kept import REFUSED, refused_operations
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.queue import Queue
from tests.integration.harness import PATIENCE, ROOT, MlflowServer, Pareto, free_port

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SWEEP = SweepConfig.model_validate(
    {"name": "s", "trials": 6, "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0, "log": True}}}
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[MlflowServer]:
    """A tracking server, to be stopped and started."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow, folder / "m.db")
    one = MlflowServer(
        "--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")
    )
    one.start()
    yield one
    one.stop()


class Gate:
    """A port in front of a server; while it is shut nobody answers there.

    Args:
        server: its address.
    """

    def __init__(self, server: str) -> None:
        self._server = int(server.rpartition(":")[2])
        self._port = free_port()
        self._listener: socket.socket | None = None
        self._passing: list[socket.socket] = []
        self._ends_left = -1
        self.address = f"http://127.0.0.1:{self._port}"

    def open(self, ends: int = -1) -> None:
        """Open it; it shuts by itself before it passes on how so many runs have ended or were reopened."""
        self._ends_left = ends
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._admit, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse whoever comes, and cut off whoever is in."""
        listener, self._listener = self._listener, None
        for one in [listener, *self._passing] if listener else []:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._passing.clear()

    def _admit(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was shut
            while True:
                visitor = listener.accept()[0]
                inside = socket.create_connection(("127.0.0.1", self._server))
                self._passing += [visitor, inside]
                for source, target in ((visitor, inside), (inside, visitor)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if b"mlflow/runs/update" in data:
                    if not self._ends_left:
                        self.shut()
                    self._ends_left -= 1
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate(server: MlflowServer) -> Iterator[Gate]:
    """An open gate to the server."""
    one = Gate(server.address)
    one.open()
    yield one
    one.shut()


def trials(tracker: Tracker, numbers: range) -> list[TrialResult]:
    """Run trials that do nothing but report."""
    results = []
    for number in numbers:
        values = (0.5 + number / 20, (1 + number % 3) * 1e12, (1 + number % 2) * 1e8)
        baseline: Literal["full"] | None = "full" if number == 0 else None
        tracker.start_trial(number, TrialConfig(), {"method/alpha": 0.1}, baseline)
        for epoch in (1, 2, 3):
            metrics = dict(zip(("accuracy", "train_flops", "peak_bytes"), values, strict=True))
            tracker.log_epoch(number, metrics | {"epoch": float(epoch), "lost": math.nan}, epoch)
        params, test = {"method/alpha": 0.1}, number / 10
        result = TrialResult(
            number, "complete", TrialConfig(), params, values, 3, baseline=baseline, test_accuracy=test
        )
        tracker.end_result(result)
        tracker.log_progress({"hypervolume": number / 10}, number + 1)
        results.append(result)
    return results


def finish(tracker: Tracker, results: list[TrialResult]) -> None:
    front = summarise("s", results, (0.0, 4e12, 8e8))
    front.write(tracker._queue.folder / "front.json")
    tracker.log_front(front, results, weights={member.trial_id: "checkpoint" for member in front.front})
    tracker.end_sweep("FINISHED")


def contents(uri: str, folder: Path, scratch: Path) -> dict[str, Any]:
    """Read all that a store holds of a sweep, run by run, without ids and times, which differ from sweep to sweep."""
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    with closing(Queue(folder)) as queue:
        of_it = f"tags.`alast.sweep_id` = '{queue.sweep_id}'"
    runs = client.search_runs([experiment.experiment_id], of_it)
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

    def models(run: Run) -> list[tuple[str, str, bool]]:
        found = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
        outputs = client.get_run(run.info.run_id).outputs
        shown = [output.model_id for output in (outputs.model_outputs if outputs else ())]
        return [(str(one.name), one.status.value, shown == [one.model_id]) for one in found]

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
            "datasets": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
            "models": models(run),
        }
        for run in runs
    }


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon; what is given up is given up late, however slow the machine."""
    monkeypatch.setattr(writer, "_FIRST_WAIT", 0.002)
    monkeypatch.setattr(writer, "_LONGEST_WAIT", 0.1)
    monkeypatch.setattr(finish_module, "PATIENCE", float(PATIENCE))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> dict[str, Any]:
    """What a sweep to which nothing happens leaves."""
    storage = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_mlflow, storage)
    tracker = Tracker(default_uri(storage), storage)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    finish(tracker, trials(tracker, range(6)))
    return contents(tracker.uri, storage / "s", storage / "scratch")


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish_module, "PATIENCE", 1.0)


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_gets_everything_once(
    server: MlflowServer, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    lines: queue.Queue[str] = queue.Queue()
    tracker = Tracker(server.address, tmp_path, lines.put)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    results = trials(tracker, range(2))
    server.stop()  # in the middle of the two trials' writes
    try:
        results += trials(tracker, range(2, 6))  # which do not wait for it
        assert lines.get(timeout=PATIENCE).startswith(f"MLflow at {server.address} cannot be written to (")
    finally:
        server.start()
    finish(tracker, results)
    assert pending(tmp_path / "s") == 0
    assert lines.get_nowait().startswith(f"MLflow at {server.address} is back") and lines.empty()
    assert contents(server.address, tmp_path / "s", tmp_path / "scratch") == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("short_patience")
def test_a_server_that_is_gone_for_good_gets_everything_by_sync(
    gate: Gate,
    storage: Path,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines: list[str] = []
    tracker = Tracker(gate.address, storage, lines.append)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    gate.shut()
    finish(tracker, trials(tracker, range(6)))
    folder = storage / "s"
    left = pending(folder)
    assert left > 30
    assert lines[-1].startswith(f"MLflow at {gate.address} lacks {left} writes (no answer), which are kept in ")
    assert lines[-1].endswith(f"once it is back: alast-tune sync {folder}")
    assert {member.mlflow_run_id for member in FrontFile.read(folder / "front.json").front} == {None}

    command = ["sync", "s", "--storage", str(storage)]
    for uri, remedy in ((gate.address, "start the server"), ("", "use the store the sweep began in")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2 and remedy in capsys.readouterr().err
    gate.open()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.address)
    main(command)
    assert capsys.readouterr() == (f"MLflow at {gate.address} has all of s ({left} writes)\n", "")
    program = [sys.executable, "-m", "alast_tune.cli", *command]  # a second time there is nothing to do
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"MLflow at {gate.address} has all of s (0 writes)\n"), done.stderr
    assert contents(gate.address, folder, tmp_path / "scratch") == undisturbed
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


def test_answers_that_are_lost_make_nothing_twice(storage: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    tracker = Tracker(default_uri(storage), storage, lambda line: None)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    tracker._writer._client = Lossy(tracker._client)  # type: ignore[assignment]
    finish(tracker, trials(tracker, range(6)))
    assert contents(tracker.uri, storage / "s", tmp_path / "scratch") == undisturbed


def test_what_is_carried_out_again_after_a_kill_leaves_what_it_left_once(
    storage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """A process killed between a write and the note of it, at every operation: all are carried out twice."""
    asked: list[Operation] = []
    tracker = Tracker(default_uri(storage), storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Operation, "body", lambda self, body=Operation.body: asked.append(self) or body(self))
        tracker.start_sweep(SWEEP, "0123456789abcdef")
        finish(tracker, trials(tracker, range(6)))
    with closing(Queue(storage / "s")) as queue:
        for operation in asked:
            queue.ask(operation)
        with queue._database:
            queue._database.execute("update runs set run_id = null where run != 'sweep'")
    assert sync(storage / "s", tracker.uri, lambda line: None) == 0
    assert contents(tracker.uri, storage / "s", tmp_path / "scratch") == undisturbed


def test_a_run_that_somebody_deletes_costs_only_its_own_writes(storage: Path) -> None:
    lines: list[str] = []
    tracker = Tracker(default_uri(storage), storage, lines.append)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    results = trials(tracker, range(2))
    assert tracker._writer.flush(patience=0)
    tracker._client.delete_run(run_ids(storage / "s")[0])
    finish(tracker, results)
    assert pending(storage / "s") == 0
    refused = [line.partition(": ")[0].removeprefix("MLflow refuses to ") for line in lines]
    assert refused == ["log run 0000", "log run 0000", "give a model to run 0000"]  # its place, test accuracy, model


def test_another_store_that_answers_in_its_place_is_an_outage(
    storage: Path, tmp_path: Path, undisturbed: dict[str, Any], with_store: Callable[[Path], Path]
) -> None:
    """It has none of the runs, and says so; that is no refusal, after which a write is passed over."""
    lines: queue.Queue[str] = queue.Queue()
    tracker = Tracker(default_uri(storage), storage, lines.put)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    tracker._writer._client = mlflow.MlflowClient(default_uri(with_store(tmp_path / "other")))
    results = trials(tracker, range(6))
    assert "cannot be written to (" in lines.get(timeout=PATIENCE)
    tracker._writer._client = tracker._client
    finish(tracker, results)
    assert "is back" in lines.get_nowait() and lines.empty()
    assert contents(tracker.uri, storage / "s", tmp_path / "scratch") == undisturbed


def test_a_kill_in_an_outage_does_not_wait_and_loses_nothing(server_gone: Tracker, storage: Path) -> None:
    trials(server_gone, range(2))
    server_gone.start_trial(2, TrialConfig(), {})
    server_gone.kill()
    with closing(Queue(storage / "s")) as queue:
        status = {run: queue.run(run).status for run in ("sweep", "0000", "0001", "0002")}
        assert status == {"sweep": "KILLED", "0000": "FINISHED", "0001": "FINISHED", "0002": "KILLED"}
        # The sweep's end goes before all that waits; a trial's cannot, whose run is still to be made.
        assert [(operation.run, operation.do) for _, operation in queue.batch()] == [("sweep", "end")]


def test_runs_end_as_killed_before_a_backlog_is_written(storage: Path) -> None:
    tracker = Tracker(default_uri(storage), storage, lambda line: None)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    for number in range(20):
        tracker.start_trial(number, TrialConfig(), {})
    assert tracker._writer.flush(patience=0)
    client, tracker._writer._client = tracker._client, mlflow.MlflowClient("http://127.0.0.1:9")
    for number in range(20):
        for epoch in range(1, 4):
            tracker.log_epoch(number, {"accuracy": 0.5}, epoch)
    tracker.kill()
    ends = {f"{number:04d}" for number in range(20)} | {"sweep"}
    with closing(Queue(storage / "s")) as queue:
        assert queue.waiting == 20 * 3 + 21
        for _ in range(3):  # several at a time
            batch = queue.batch()
            assert {operation.status for _, operation in batch} == {"KILLED"}
            ends -= {operation.run for _, operation in batch}
            queue.done(batch)
    assert ends == set()
    assert client.get_run(run_ids(storage / "s")[0]).info.status == "RUNNING"  # what was taken off was never written


@pytest.fixture
def server_gone(storage: Path) -> Tracker:
    tracker = Tracker(default_uri(storage), storage, lambda line: None)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    tracker._writer._client = mlflow.MlflowClient("http://127.0.0.1:9")
    return tracker


def test_a_store_that_goes_away_before_a_sweep_has_begun_is_refused(storage: Path) -> None:
    lines: list[str] = []
    tracker = Tracker(default_uri(storage), storage, lines.append)
    tracker._client = mlflow.MlflowClient("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI = .*: cannot be written to \(no answer\)"):
        tracker.start_sweep(SWEEP, "0123456789abcdef")
    assert lines == []


def test_an_mlflow_disk_that_is_full_for_a_while_is_an_outage(
    storage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    lines: queue.Queue[str] = queue.Queue()
    tracker = Tracker(default_uri(storage), storage, lines.put)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    assert tracker._writer.flush(patience=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((storage / "mlflow.db").stat().st_size, hard))
        results = trials(tracker, range(6))
        said = lines.get(timeout=PATIENCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finish(tracker, results)
    assert "cannot be written to (disk I/O error); all else goes on" in said
    assert "is back" in lines.get_nowait() and lines.empty()
    assert contents(tracker.uri, storage / "s", tmp_path / "scratch") == undisturbed


def test_a_write_that_the_store_cannot_take_is_set_aside_and_all_behind_it_goes_on(
    storage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """SQLite has no integers of 80 bits: MLflow has an error of its own for them, each time."""
    lines: list[str] = []
    tracker = Tracker(default_uri(storage), storage, lines.append)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    results = trials(tracker, range(3))
    tracker.start_trial(3, TrialConfig(), {"method/alpha": 0.1})
    tracker._writer.ask(Operation("0003", "log", time=2**80, metrics={"poison": 1.0}))
    results += trials(tracker, range(3, 6))
    finish(tracker, results)
    folder = storage / "s"
    assert lines[0].startswith("MLflow refuses to log run 0003: ")
    assert lines[0].endswith(f"; it is kept in {REFUSED}, all else goes on")
    assert lines[1].endswith(f"with the reasons; once it takes them: alast-tune sync {folder}") and len(lines) == 2
    assert pending(folder) == 1
    (kept,) = refused_operations(folder)
    assert (kept["run"], kept["metrics"], kept["time"]) == ("0003", {"poison": 1.0}, 2**80)
    assert contents(tracker.uri, folder, tmp_path / "scratch") == undisturbed
    assert sync(folder, tracker.uri, lines.append) == 1  # it tries again, and says so again
    assert pending(folder) == 1 and len(lines) == 4


@pytest.mark.usefixtures("short_patience")
def test_artifacts_that_cannot_be_written_are_kept_for_sync(
    storage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    (storage / "mlartifacts").write_text("a file where a folder should be")
    lines: list[str] = []
    tracker = Tracker(default_uri(storage), storage, lines.append)
    tracker.start_sweep(SWEEP, "0123456789abcdef")
    finish(tracker, trials(tracker, range(6)))
    assert pending(storage / "s") == 1  # the upload; the end of the sweep behind it was written
    assert "MLflow refuses to upload run sweep: " in lines[0] and "mlartifacts" in lines[0]
    assert f"has refused 1 writes, which are kept in {storage}/s/{REFUSED} with the reasons" in lines[1]
    (storage / "mlartifacts").unlink()
    assert sync(storage / "s", tracker.uri, lines.append) == 0
    assert contents(tracker.uri, storage / "s", tmp_path / "scratch") == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("short_patience")
def test_a_driver_killed_in_an_outage_is_resumed_and_its_sweep_ends_whole_without_a_server(
    gate: Gate, ray_here: "Cluster", pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.address)
    folder = pareto.storage / "away"
    gate.shut()
    gate.open(ends=0)  # until the first trial ends
    command = ("--preset", pareto.preset(trials=4, epochs=2), "--name", "away")
    out = pareto.run(*command, expect=-signal.SIGKILL, RAY_ADDRESS=ray_here.address, ALAST_FAILPOINT="after-tell:2")
    before = pending(folder)
    assert before > 0, out

    gate.open(ends=2)
    out = pareto.here("--resume", "away", expect=3)
    assert f"once it is back: alast-tune sync {folder}" in out and "front: " in out
    front = FrontFile.read(folder / "front.json")
    assert front.trials.complete + front.trials.pruned == front.trials.total == 4

    gate.open()
    main(["sync", str(folder)])
    stored = contents(gate.address, folder, tmp_path / "scratch")
    front = FrontFile.read(folder / "front.json")
    assert len(stored) == 1 + 4
    assert {run["status"] for run in stored.values()} == {"FINISHED"}
    for name, run in stored.items():
        if run["tags"]["alast.kind"] == "trial" and run["tags"]["alast.state"] == "complete":
            assert {step for step, _ in run["metrics"]["accuracy"]} == {1, 2}, name
    on_front = {run["tags"]["alast.trial"] for run in stored.values() if run["tags"].get("pareto") == "true"}
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


FULL = """
import shutil, sys
from contextlib import closing, suppress
from pathlib import Path
import ray
from alast_tune.tune.search import StudySearcher
from sweeps import pareto

storage, preset = Path(sys.argv[1]), sys.argv[2]
ended = StudySearcher.on_trial_complete

def end_and_fill(self, *arguments, **options):
    ended(self, *arguments, **options)
    with suppress(OSError), (storage / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))

def run(*arguments):
    sys.argv = ["pareto.py", "--storage", str(storage), *arguments]
    try:
        pareto.main()
    except SystemExit as end:
        print("exit", end.code, flush=True)
    else:
        print("exit 0", flush=True)

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
StudySearcher.on_trial_complete = end_and_fill
run("--preset", preset, "--name", "full")
(storage / "filler").unlink()
StudySearcher.on_trial_complete = ended
run("--resume", "full")
ray.shutdown()
shutil.copytree(storage, "saved", ignore=shutil.ignore_patterns("tune", "mlartifacts"))
"""
"""A sweep whose disk is full once its first trial has ended; then there is room again, and it is gone on with."""


@needs_mount
@pytest.mark.slow
def test_a_sweep_whose_own_disk_is_full_ends_in_one_line_and_is_resumed(pareto: Pareto, tmp_path: Path) -> None:
    mount = f"cp {pareto.storage}/mlflow.db empty && mount -t tmpfs -o size=200m tmpfs {pareto.storage}"
    script = f'{mount} && cp empty {pareto.storage}/mlflow.db && exec "$@"'
    program = [sys.executable, "-c", FULL, str(pareto.storage), pareto.preset(trials=3)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *program], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    out = done.stdout
    assert done.returncode == 0, out
    before, _, after = out.partition("exit 4\n")
    assert after.endswith("exit 0\n"), out
    (line,) = [line for line in before.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: storage {pareto.storage}/full: ")
    assert line.endswith("nothing finished is lost: make room, then go on with --resume full")
    assert "Traceback" not in out
    assert "failed (" not in out, "a full disk was taken for a trial's failure"
    saved = tmp_path / "saved"
    with sqlite3.connect(saved / "full" / "study.db") as connection:
        states = [state for (state,) in connection.execute("select state from trials")]
    front = FrontFile.read(saved / "full" / "front.json")
    assert front.trials.failed == 0 and set(states) <= {"COMPLETE", "PRUNED"}
    assert front.trials.complete + front.trials.pruned == front.trials.total == 3
    client = mlflow.MlflowClient(f"sqlite:///{saved}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + 3
    assert {run.info.status for run in runs} == {"FINISHED"}
