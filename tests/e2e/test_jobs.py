"""A sweep submitted to a real Ray head with token authentication: refused, run, stopped, resubmitted."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from ray.job_submission import JobSubmissionClient

from tests.integration.harness import PATIENCE, RAY, ROOT, Pareto, ray_head
from tests.integration.test_sweep import trial_states

ENVIRONMENT = json.dumps(
    {
        "excludes": ["/.git", "/.venv", "/runs", "/data", "/tests", "/docs"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"},
    }
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A head of our own: its dashboard's address. Jobs find this interpreter and this package as a cluster's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        with ray_head() as address:
            yield address


def submit(
    address: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Submit a sweep; what is empty in the environment is not there."""
    variables = {name: value for name, value in (os.environ | (environment or {})).items() if value}
    entry = [sys.executable, "sweeps/pareto.py", *arguments]
    return subprocess.run(
        [str(RAY), "job", "submit", "--address", address, "--working-dir", str(ROOT), "--runtime-env-json", ENVIRONMENT,
         "--no-wait", "--", *entry],
        capture_output=True, text=True, timeout=PATIENCE, env=variables,
    )  # fmt: skip


def job_id(submitted: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"raysubmit_\w+", submitted.stdout + submitted.stderr)
    assert found, submitted.stdout + submitted.stderr
    return found.group()


def wait(jobs: JobSubmissionClient, job: str) -> str:
    """Wait until a job has ended; how it has."""
    end = time.monotonic() + PATIENCE
    while not (status := jobs.get_job_status(job)).is_terminal():
        assert time.monotonic() < end, f"{status} {jobs.get_job_logs(job)}"
        time.sleep(0.3)
    return str(status)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Forbidden: Invalid authentication token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}, "Unauthorized: Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": ""}, "Unauthorized: Missing authentication token"),
    ],
    ids=["another token", "none, mode disabled", "none, mode unset"],
)
def test_a_job_without_the_token_is_refused(head: str, environment: dict[str, str], words: str, tmp_path: Path) -> None:
    refused = submit(head, "--preset", "demo", environment=environment | {"HOME": str(tmp_path)})
    assert refused.returncode != 0
    assert words in refused.stderr + refused.stdout
    assert "raysubmit_" not in refused.stdout


def test_the_job_server_itself_refuses_whoever_sends_no_token(head: str) -> None:
    body = json.dumps({"entrypoint": "true"}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{head}/api/jobs/", body), timeout=30)
    refused.value.close()
    assert refused.value.code == 401


def test_a_job_is_stopped_and_resubmitted_and_no_log_has_the_token(head: str, pareto: Pareto) -> None:
    jobs = JobSubmissionClient(head)
    storage = ["--storage", str(pareto.storage)]
    first = job_id(submit(head, "--preset", pareto.preset(trials=3, epochs=2), "--name", "job", *storage))
    end = time.monotonic() + PATIENCE
    while "COMPLETE" not in trial_states(pareto.storage / "job"):
        assert not jobs.get_job_status(first).is_terminal() and time.monotonic() < end, jobs.get_job_logs(first)
        time.sleep(0.1)
    jobs.stop_job(first)
    assert wait(jobs, first) == "STOPPED"
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses["KILLED"] >= 1 and statuses["RUNNING"] == 0

    second = job_id(submit(head, "--resume", "job", *storage))
    assert wait(jobs, second) == "SUCCEEDED", jobs.get_job_logs(second)
    assert trial_states(pareto.storage / "job") == ["COMPLETE"] * 3
    assert "3 of 3 trials done" in jobs.get_job_logs(second)
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses == {"FINISHED": 4}

    failing = job_id(submit(head, "--preset", "nope", *storage))
    assert wait(jobs, failing) == "FAILED"
    assert "error: preset = nope" in jobs.get_job_logs(failing)

    token = os.environ["RAY_AUTH_TOKEN"]
    assert not any(token in jobs.get_job_logs(one) for one in (first, second, failing))
    files = [file for file in Path(os.environ["RAY_TMPDIR"]).glob("ray/*/logs/**/*") if file.is_file()]
    assert any(file.name.startswith("job-driver-") for file in files)
    assert [file for file in files if token.encode() in file.read_bytes()] == []


def test_a_sweep_is_submitted_from_anywhere_and_its_exit_code_is_the_command_s(head: str, pareto: Pareto) -> None:
    """By `alast-tune submit`, in a folder that is no checkout; the cluster has alast-tune."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alast_tune.cli", "submit", "--address", head, *arguments],
            capture_output=True, text=True, timeout=PATIENCE, cwd=pareto.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": ""},
        )  # fmt: skip

    preset = Path(pareto.preset(trials=3, epochs=1)).name
    done = run("--preset", preset, "--name", "sent", "--storage", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(rf"job: raysubmit_\w+ at {head}; ray job stop --address {head} raysubmit_", done.stdout)
    assert "3 of 3 trials done" in done.stdout and "sent: " in done.stdout
    assert trial_states(pareto.storage / "sent") == ["COMPLETE"] * 3  # a relative path means the submitter's folder
    again = run("--preset", preset, "--name", "sent", "--storage", "runs")
    assert again.returncode == 2, again.stdout + again.stderr  # Ray's own command would say 1
    assert "error: name = sent: already exists" in again.stdout
    refused = subprocess.run(
        [sys.executable, "-m", "alast_tune.cli", "submit", "--address", head, "--preset", "demo", "--storage", "/s"],
        capture_output=True, text=True, timeout=PATIENCE, cwd=pareto.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "0" * 64},
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: address = {head}: ") and refused.stderr.count("\n") == 1, refused.stderr
