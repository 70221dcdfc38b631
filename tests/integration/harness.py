"""A sweep small enough for a test: real fine-tuning of the embedded backbone on a few digits."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")

PATIENCE = 480
"""Seconds after which what has not come will not come, on a machine however slow."""

TINY = """\
trials: {trials}
concurrent: {concurrent}
sampler: random # for speed
trial:
  data: {{dataset: folder, root: {root}}}
  model: {{image_size: 16}}
  method: {{name: alast, reading: fast}}
  train: {{epochs: {epochs}, batch_size: 16, learning_rate: 1.0e-3, device: cpu}}
space:
  method/alpha: {{type: float, low: 1.0e-3, high: 1.0, log: true}}
  method/trainable_blocks: {{type: int, low: 1, high: 12}}
  method/target_budget: {{type: float, low: 0.2, high: 1.0}}
"""


class Pareto:
    """Runs a script of sweeps/ on the tiny preset, as a person would: in this process, or in one of its own.

    Args:
        folder: where it is called; its ``runs`` is the storage.
        pictures: image folder of the preset.
        script: name of the script.
    """

    def __init__(self, folder: Path, pictures: Path, script: str = "pareto.py") -> None:
        self.folder = folder
        self.storage = folder / "runs"
        self.pictures = pictures
        self._script = script

    def preset(self, trials: int = 3, epochs: int = 2, concurrent: int = 1) -> str:
        """Write the preset; returns its path. One trial at a time takes one worker, whose start is what costs.

        Args:
            trials: in all, the two baselines included.
            epochs: of each.
            concurrent: at a time.
        """
        file = self.folder / "tiny.yaml"
        file.write_text(TINY.format(trials=trials - 2, epochs=epochs, concurrent=concurrent, root=self.pictures))
        return str(file)

    def here(self, *arguments: str, expect: int = 0, draw: bool = False) -> str:
        """Run it to its end in this process, on the Ray that this process is connected to; returns what it printed.

        Without ``draw`` the pages about the search and the blocks are left out, and checkpoints are tested in this
        process: a sweep's end would take as long as its trials, for workers to start and for pictures.
        """
        script = import_module(f"sweeps.{self._script.removesuffix('.py')}")
        out, code = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            if not draw:
                short_end(patch)
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", [self._script, "--storage", str(self.storage), *arguments])
            try:
                script.main()
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        assert code == expect, out.getvalue()
        return out.getvalue()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start it in a process of its own, with a Ray of its own unless RAY_ADDRESS names one."""
        command = [sys.executable, str(ROOT / "sweeps" / self._script), "--storage", str(self.storage), *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            start_new_session=True,
        )

    def run(self, *arguments: str, expect: int = 0, **environment: str) -> str:
        """Run it to its end in a process of its own; returns what it printed."""
        process = self.start(*arguments, **environment)
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        except BaseException:  # pytest's own timeout too: the next test wants the cores
            kill(process)
            raise
        assert process.returncode == expect, out
        return out


def short_end(patch: pytest.MonkeyPatch) -> None:
    """Let sweeps end without the pages about search and blocks, and without Ray tasks that test checkpoints."""

    def remote(task: Callable[..., Any]) -> SimpleNamespace:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=task))

    patch.setattr("alast_tune.tune.conclude.report_search", lambda *arguments: None)
    patch.setattr("alast_tune.tune.study.block_reports", lambda *arguments: {})
    here = SimpleNamespace(remote=remote, wait=lambda asked, timeout: (asked, []), get=lambda asked: asked)
    patch.setattr("alast_tune.tune.members.ray", here)
    patch.setattr("torch.set_num_threads", lambda threads: None)  # this process keeps its own


class MlflowServer:
    """An MLflow server on a free port, which it keeps when it is stopped and started again."""

    def __init__(self, *options: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        where = ["--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
        self._command = [sys.executable, "-m", "mlflow", "server", *where, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # A server starts eight processes more, for jobs (evaluations, say) that nobody here gives it.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=2):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                assert self._process.poll() is None and time.monotonic() < end, "no server"
                time.sleep(0.3)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None


@contextmanager
def mlflow_server(*options: str) -> Iterator[str]:
    """Run an MLflow server on a free port; its address."""
    server = MlflowServer(*options)
    try:
        server.start()
        yield server.address
    finally:
        server.stop()


def free_port(address: str = "127.0.0.1") -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@contextmanager
def added(cluster: "Cluster", **resources: Any) -> Iterator[Any]:
    """Add a node to the shared Ray; takes it away again, unless it is lost already, and waits until that is known."""
    import ray

    node = cluster.add_node(**resources)
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)
        end = time.monotonic() + PATIENCE
        while any(other["NodeID"] == node.node_id and other["Alive"] for other in ray.nodes()):
            assert time.monotonic() < end, "a node that is gone counts as alive"
            time.sleep(0.1)


@contextmanager
def ray_head() -> Iterator[str]:
    """Run a Ray head of our own; its dashboard's address."""
    dashboard = 8300 + os.getpid() % 500  # below the range that Ray keeps for its workers
    command = [
        str(RAY), "start", "--head", "--block", "--num-cpus", "2", "--port", str(dashboard + 1000),
        "--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1",
        # Fixed by default: beside another Ray on the machine the agent then lives without it, and takes no jobs.
        "--dashboard-agent-listen-port", str(dashboard - 500),
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    # A new head takes jobs only once its agent is up: try with an empty one.
    empty = [str(RAY), "job", "submit", "--address", address, "--no-wait", "--", "true"]
    try:
        end = time.monotonic() + PATIENCE
        while subprocess.run(empty, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, "no head"
            time.sleep(1)
        yield address
    finally:
        terminate(process)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is true; fails if the process ends or time is up first."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"not within {PATIENCE} s"
        time.sleep(0.1)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Let a `ray start --block` end what it started; if it does not, kill its group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver, and nothing but the driver."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    if process.stdout:
        process.stdout.close()
