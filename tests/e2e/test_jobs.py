"""A sweep submitted to a real Ray head with token authentication: refused, run, stopped, resubmitted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.integration.harness import ROOT, Pareto
from tests.integration.test_sweep import trial_states

RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = json.dumps({"excludes": ["/.git", "/.venv", "/runs", "/data", "/tests", "/docs"]})


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head of our own: its dashboard's address."""
    dashboard = 8300 + os.getpid() % 500  # below the range that Ray keeps for its workers
    command = [
        str(RAY), "start", "--head", "--block", "--num-cpus", "2", "--port", str(dashboard + 1000),
        "--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1", "--node-ip-address", "127.0.0.1",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    end = time.monotonic() + 90
    while subprocess.run([str(RAY), "job", "list", "--address", address], capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < end, "no head"
        time.sleep(1)
    yield address
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def submit(
    address: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    entry = [sys.executable, "sweeps/pareto.py", *arguments]
    return subprocess.run(
        [str(RAY), "job", "submit", "--address", address, "--working-dir", str(ROOT), "--runtime-env-json", ENVIRONMENT,
         "--no-wait", "--", *entry],
        capture_output=True, text=True, timeout=120, env=os.environ | (environment or {}),
    )  # fmt: skip


def job(address: str, *arguments: str) -> str:
    out = subprocess.run(
        [str(RAY), "job", *arguments, "--address", address], capture_output=True, text=True, timeout=120
    )
    return out.stdout + out.stderr


def job_id(submitted: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"raysubmit_\w+", submitted.stdout + submitted.stderr)
    assert found, submitted.stdout + submitted.stderr
    return found.group()


def wait(address: str, job_name: str, states: tuple[str, ...], seconds: float = 200) -> str:
    end = time.monotonic() + seconds
    while True:
        status = job(address, "status", job_name).lower()
        for state in states:
            if state in status:
                return state
        assert time.monotonic() < end, status + job(address, "logs", job_name)
        time.sleep(1)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_is_refused_without_the_token_then_stopped_and_resubmitted(head: str, pareto: Pareto) -> None:
    storage = ["--storage", str(pareto.storage)]
    refused = submit(head, "--preset", "demo", environment={"RAY_AUTH_TOKEN": "0" * 64})
    assert refused.returncode != 0
    assert "401" in refused.stderr + refused.stdout or "auth" in (refused.stderr + refused.stdout).lower()

    first = job_id(submit(head, "--preset", pareto.preset(trials=3, epochs=3), "--name", "job", *storage))
    end = time.monotonic() + 200
    while "COMPLETE" not in trial_states(pareto.storage / "job"):
        status = job(head, "status", first)
        assert "failed" not in status.lower() and time.monotonic() < end, job(head, "logs", first)
        time.sleep(0.5)
    job(head, "stop", first)
    assert wait(head, first, ("stopped", "failed", "succeeded")) == "stopped"
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses["KILLED"] >= 1 and statuses["RUNNING"] == 0

    second = job_id(submit(head, "--resume", "job", *storage))
    assert wait(head, second, ("succeeded", "failed", "stopped")) == "succeeded", job(head, "logs", second)
    assert trial_states(pareto.storage / "job") == ["COMPLETE"] * 3
    assert "3/3 finished" in job(head, "logs", second)
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses == {"FINISHED": 4}

    failing = job_id(submit(head, "--preset", "nope"))
    assert wait(head, failing, ("failed", "succeeded")) == "failed"
    assert "error: preset = nope" in job(head, "logs", failing)
