"""What a Ray job gets of the environment that it was submitted from."""

from pathlib import Path

import pytest

from alast_tune.tune.jobs import EXCLUDES, runtime_env


def test_a_job_learns_where_it_was_submitted_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = {
        "MLFLOW_TRACKING_URI": "http://tracking:5000",
        "HF_HOME": "",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "RAY_AUTH_TOKEN": "secret",
        "PGPASSWORD": "secret",
    }
    sent = {"MLFLOW_TRACKING_URI": "http://tracking:5000", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    sent["ALAST_TUNE_SUBMITTED_FROM"] = str(tmp_path)
    assert runtime_env(None, here) == {"env_vars": sent}
    assert runtime_env(tmp_path, here) == {
        "env_vars": sent,
        "working_dir": str(tmp_path),
        "excludes": list(EXCLUDES),
    }
