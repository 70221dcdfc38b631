"""A worker that the network parts from the sweep: it works on, and writes on, while another has its trial."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
from mlflow.entities import Run

from alast_tune.config import SweepConfig
from alast_tune.results import FrontFile
from alast_tune.tune import study as study_module
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trainable import AlastTrainable, member_accuracy
from tests.integration.harness import PATIENCE, RAY, free_port, mlflow_server, terminate
from tests.integration.network import HERE, Machine, network
from tests.integration.test_sweep import trial_states

EPOCHS = 4
CUT_AT = 2
"""The epoch whose checkpoint is being written when the link is cut."""

CONFIG: dict[str, Any] = {
    "sampler": "grid",  # all are scored, on or off the front
    "keep": "all",
    "trial": {
        "data": {"dataset": "digits", "train_images": 64},
        "train": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 1e-3, "device": "cpu"},
    },
    "space": {"method/trainable_blocks": {"type": "categorical", "choices": [3, 9]}},
}

HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""The head takes a silent node for dead after some ten seconds."""

PERSEVERANCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
"""The node does not give up before it can ask the head: the worst case, a worker that lives on."""


class Slow(AlastTrainable):
    """Real training; the first worker that comes to save epoch :data:`CUT_AT` takes its time until it may go on."""

    def save(self, checkpoint_dir: str | None = None) -> Any:
        saved = super().save(checkpoint_dir)
        if self._scratch("go").exists():
            self._scratch("written").touch()  # it lies on the storage now
        return saved

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        if self._run.epoch == CUT_AT:
            here = {"number": self.config["number"], "address": ray.util.get_node_ip_address()}
            draft = self._scratch(f"draft-{os.getpid()}")
            draft.write_text(json.dumps(here))
            try:
                self._scratch("slow").hardlink_to(draft)  # whole, and only once
            except FileExistsError:
                return
            until(self._scratch("go").exists)

    def _scratch(self, name: str) -> Path:
        return Path(self._storage.experiment_fs_path, name)


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


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "".join(p.read_text() for p in Path(os.environ["RAY_TMPDIR"]).glob("*/log"))
        time.sleep(0.1)


@contextmanager
def cluster(machines: list[Machine]) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A head here that runs no trials, a node with room for one on each machine: the head's address, the nodes."""
    port, agent = free_port(HERE), free_port(HERE)
    start = [str(RAY), "start", "--block"]
    head = subprocess.Popen(
        [*start, "--head", "--node-ip-address", HERE, "--port", str(port), "--dashboard-agent-listen-port", str(agent),
         "--include-dashboard", "false", "--num-cpus", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | HEALTH, start_new_session=True,
    )  # fmt: skip
    nodes = []
    try:
        until(lambda: listens(HERE, port))
        for machine in machines:
            own = Path(os.environ["RAY_TMPDIR"], machine.name[-1])
            own.mkdir()
            options = ["--address", f"{HERE}:{port}", "--node-ip-address", machine.address, "--num-cpus", "1"]
            command = [*start, *options, "--temp-dir", str(own)]  # else all take the head's, and one another's sockets
            nodes.append(machine.start(command, PERSEVERANCE, own / "log"))
        yield f"{HERE}:{port}", nodes
    finally:
        for process in (*nodes, head):
            terminate(process)


def listens(address: str, port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@pytest.mark.nightly
def test_a_parted_worker_that_writes_on_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is cut while a checkpoint is written; that comes to its end when another worker has ended the trial."""
    folder = tmp_path / "sweep"
    scratch = folder / "tune" / "driver-00"
    monkeypatch.setattr(study_module, "AlastTrainable", Slow)
    database, artifacts = f"sqlite:///{tmp_path / 'm.db'}", str(tmp_path / "artifacts")
    with (
        network(2) as machines,
        mlflow_server("--backend-store-uri", database, "--artifacts-destination", artifacts) as store,
        cluster(machines) as (address, nodes),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        ask = f"import urllib.request; urllib.request.urlopen('{store}/health', timeout=5)"
        assert (
            machines[0].start([sys.executable, "-c", ask], {}, tmp_path / "ask").wait(60) == 1
        )  # only the driver writes there
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        until(lambda: len(alive()) == 3)

        def where() -> dict[str, Any]:
            until((scratch / "slow").exists)
            return json.loads((scratch / "slow").read_text())

        def cut() -> None:
            parted[where()["address"]][0].cut()

        def meddle(*arguments: Any) -> None:
            """All trials have ended; the parted worker has not."""
            machine, node = parted[where()["address"]]
            assert machine.address not in alive() and node.poll() is None
            (scratch / "go").touch()
            until((scratch / "written").exists)
            machine.mend()
            until(lambda: node.poll() is not None)  # told that it is dead, it dies
            score(*arguments)

        parted = {machine.address: (machine, node) for machine, node in zip(machines, nodes, strict=True)}
        score = study_module.score
        monkeypatch.setattr(study_module, "score", meddle)
        cutter = threading.Thread(target=cut, daemon=True)
        cutter.start()
        try:
            ended = run_sweep(SweepConfig.model_validate(CONFIG | {"storage": tmp_path}))
        finally:
            ray.shutdown()
        runs = trial_runs(store)
        epochs = {number: logged_epochs(store, run) for number, run in runs.items()}

    number = where()["number"]
    assert [(result.number, result.state, result.epochs) for result in ended] == [
        (0, "complete", EPOCHS),
        (1, "complete", EPOCHS),
    ]
    assert trial_states(folder) == ["COMPLETE"] * 2
    assert FrontFile.read(folder / "front.json").trials.total == 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert epochs == {0: dict.fromkeys(range(1, EPOCHS + 1), 1), 1: dict.fromkeys(range(1, EPOCHS + 1), 1)}
    late, last = (
        folder / "tune" / "driver-00" / f"{number:04d}" / f"checkpoint_{epoch - 1:06d}" for epoch in (CUT_AT, EPOCHS)
    )
    assert (late / "state.pt").stat().st_mtime > (last / "state.pt").stat().st_mtime
    assert checkpoints(folder, number)[0] == str(last)
    for result in ended:
        config, newest = result.config.model_dump(mode="json"), checkpoints(folder, result.number)[:1]
        assert result.test_accuracy == member_accuracy(config, newest, 1)


def alive() -> set[str]:
    """Addresses of the nodes that the head takes for alive."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
