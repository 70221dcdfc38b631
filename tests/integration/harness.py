"""A sweep small enough for a test: real fine-tuning of the embedded backbone on a few digits."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

TINY = """\
trials: {trials}
trial:
  data: {{dataset: digits, train_images: 64}}
  method: {{name: alast, reading: fast}}
  train: {{epochs: {epochs}, batch_size: 32, learning_rate: 1.0e-3, device: cpu}}
space:
  method/alpha: {{type: float, low: 1.0e-3, high: 1.0, log: true}}
  method/trainable_blocks: {{type: int, low: 1, high: 12}}
  method/target_budget: {{type: float, low: 0.2, high: 1.0}}
"""


class Pareto:
    """Runs `python sweeps/pareto.py` on the tiny preset, as a person would."""

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "runs"
        self._folder = folder

    def preset(self, trials: int = 4, epochs: int = 2) -> str:
        """Write the preset; returns its path."""
        file = self._folder / "tiny.yaml"
        file.write_text(TINY.format(trials=trials, epochs=epochs))
        return str(file)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it in the background, in a process group of its own."""
        command = [sys.executable, str(ROOT / "sweeps" / "pareto.py"), "--storage", str(self.storage), *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Run it to its end; returns what it printed."""
        process = self.start(*arguments)
        try:
            out, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            kill(process)
            raise
        assert process.returncode == expect, out
        return out


@contextmanager
def mlflow_server(*options: str) -> Iterator[str]:
    """Run an MLflow server on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                break
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert process.poll() is None and time.monotonic() < end, "no server"
            time.sleep(0.3)
    yield address
    process.terminate()
    process.wait(timeout=60)


def wait_for(condition: Callable[[], bool], seconds: float, process: subprocess.Popen[str]) -> None:
    """Wait until something is true; fails if the process ends or time is up first."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver, and nothing but the driver."""
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    if process.stdout:
        process.stdout.close()
