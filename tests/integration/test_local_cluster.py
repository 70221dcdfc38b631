"""`just cluster-up` and `cluster-down`: a real head, two workers and MLflow, beside a Ray of somebody else."""

import json
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
from typing import Any

import pytest

from clusters.local.sessions import Leader, members
from tests.integration.harness import PATIENCE, RAY, ROOT, free_port, terminate

JOB = "import json, os, ray; ray.init(log_to_driver=False); print('NODES', json.dumps(ray.nodes()))"
CAREFUL = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(r'{mark}').write_text('in order')))
pathlib.Path(r'{mark}').write_text('running')
time.sleep(1000)
"""


class Local:
    """The script, run as a person does, who has no token yet."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.environment = os.environ | {"HOME": str(storage.parent), "PYTHONPATH": str(ROOT)}
        del self.environment["RAY_AUTH_TOKEN"]

    def __call__(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clusters.local.cluster", *arguments, "--storage", str(self.storage)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=self.environment)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def job(self, address: str, *entry: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(RAY), "job", "submit", "--address", address, *entry],
            capture_output=True, text=True, timeout=PATIENCE, env=self.environment,
        )  # fmt: skip

    @property
    def written(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads((self.storage / ".cluster" / "cluster.json").read_text())
        return stored


def status(address: str, token: str | None = None, **body: str) -> int:
    """What is answered to GET, or to POST with a body."""
    request = urllib.request.Request(address, data=json.dumps(body).encode() if body else None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@contextmanager
def another_ray() -> Iterator[str]:
    """Somebody else's head, on the ports that Ray likes best; its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [str(RAY), "start", "--head", "--block", "--num-cpus", "0", "--node-ip-address", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", address.rpartition(":")[2], "--include-dashboard", "false"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: listens(address))
        yield address
        assert process.poll() is None
    finally:
        terminate(process)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_cluster_comes_up_takes_only_jobs_with_the_token_and_goes_down_alone(storage: Path, tmp_path: Path) -> None:
    local = Local(storage)
    with another_ray() as other:
        try:
            address = local("up", "2").stdout.strip()
            token = tmp_path / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o777 == 0o600

            ran = local.job(address, "--", "python", "-c", JOB)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            (line,) = [line for line in ran.stdout.splitlines() if line.startswith("NODES ")]
            cpus = sorted(node["Resources"].get("CPU", 0) for node in json.loads(line.removeprefix("NODES ")))
            assert cpus[0] == 0 and len(cpus) == 3 and all(cpus[1:])

            jobs = f"{address}/api/jobs/"
            assert [status(jobs), status(jobs, "0" * 64), status(jobs, token.read_text())] == [401, 403, 200]
            assert [status(jobs, wrong, entrypoint="true") for wrong in (None, "0" * 64)] == [401, 403]
            assert status(f"{local.written['mlflow']}/health") == 200

            assert local("up").stdout.strip() == address, "the one that runs is used"
            assert "error: workers = 3" in local("up", "3", expect=2).stderr
            mark = tmp_path / "mark"
            (tmp_path / "careful.py").write_text(CAREFUL.format(mark=mark))
            assert status(jobs, token.read_text(), entrypoint=f"python {tmp_path / 'careful.py'}") == 200
            until(mark.exists)
            leaders = [Leader(**leader) for leader in local.written["leaders"]]
            os.kill(leaders[-1].pid, signal.SIGKILL)  # its raylet may stay behind
            for pid in members(leaders[-2]):
                os.kill(pid, signal.SIGKILL)
            until(lambda: not members(leaders[-2]))
            assert "worker-1 = has ended" in local("up", expect=2).stderr
            written = local.written
        finally:
            local("down")
        assert mark.read_text() == "in order"
        assert [members(leader) for leader in leaders] == [[]] * 4
        assert not listens(address) and not listens(written["mlflow"])
        assert not Path(written["ray_files"]).exists()
        assert listens(other)
        local("down")  # nothing left to do, and no complaint
