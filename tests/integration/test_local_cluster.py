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
from pathlib import Path
from typing import Any

import pytest

from clusters.local.sessions import Leader, members
from tests.integration.harness import PATIENCE, RAY, ROOT, ray_head

JOB = "import json, os, ray; ray.init(log_to_driver=False); print('NODES', json.dumps(ray.nodes()))"
CAREFUL = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path(r'{mark}').write_text('in order')))
pathlib.Path(r'{mark}').write_text('running')
time.sleep(1000)
"""


class Local:
    """The script, run as a person does, who has no token yet."""

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "runs"
        self.environment = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}
        del self.environment["RAY_AUTH_TOKEN"]

    def __call__(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clusters.local.cluster", *arguments, "--storage", str(self.storage)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=self.environment)
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    def job(self, address: str, *entry: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(RAY), "job", "submit", "--address", address, *entry],
            capture_output=True, text=True, timeout=PATIENCE, env=self.environment | environment,
        )  # fmt: skip

    @property
    def written(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads((self.storage / ".cluster" / "cluster.json").read_text())
        return stored


def status(address: str, token: str | None = None) -> int:
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def listens(address: str) -> bool:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.mark.slow
def test_cluster_comes_up_takes_only_jobs_with_the_token_and_goes_down_alone(tmp_path: Path) -> None:
    local = Local(tmp_path)
    with ray_head() as other:  # on the usual agent's port, or not: in nobody's way
        try:
            address = local("up", "2").stdout.strip()
            token = tmp_path / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o777 == 0o600

            ran = local.job(address, "--", "python", "-c", JOB)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            (line,) = [line for line in ran.stdout.splitlines() if line.startswith("NODES ")]
            cpus = sorted(node["Resources"].get("CPU", 0) for node in json.loads(line.removeprefix("NODES ")))
            assert cpus[0] == 0 and len(cpus) == 3 and all(cpus[1:])

            before = local.job(address, "--no-wait", "--", "true")  # counts as one
            assert before.returncode == 0
            for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
                refused = local.job(address, "--no-wait", "--", "true", **wrong)
                assert refused.returncode != 0
                assert any(word in refused.stdout + refused.stderr for word in ("401", "403", "Authentication"))
            jobs = f"{address}/api/jobs/"
            assert [status(jobs), status(jobs, "0" * 64), status(jobs, token.read_text())] == [401, 403, 200]
            assert status(f"{local.written['mlflow']}/health") == 200

            assert local("up").stdout.strip() == address, "the one that runs is used"
            assert "error: workers = 3" in local("up", "3", expect=2).stderr
            mark = tmp_path / "mark"
            (tmp_path / "careful.py").write_text(CAREFUL.format(mark=mark))
            assert local.job(address, "--no-wait", "--", "python", str(tmp_path / "careful.py")).returncode == 0
            while not mark.exists():
                time.sleep(0.2)
            leaders = [Leader(**leader) for leader in local.written["leaders"]]
            os.kill(leaders[-1].pid, signal.SIGKILL)  # its raylet stays behind
            assert "worker-2 = has ended" in local("up", expect=2).stderr or members(leaders[-1])
            written = local.written
        finally:
            local("down")
        assert mark.read_text() == "in order"
        assert [members(leader) for leader in leaders] == [[]] * 4
        assert not listens(address) and not listens(written["mlflow"])
        assert not Path(written["ray_files"]).exists()
        assert listens(other) and local.job(other, "--no-wait", "--", "true", **os.environ).returncode == 0
        local("down")  # nothing left to do, and no complaint
