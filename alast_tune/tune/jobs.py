"""A command as a Ray job: sent to a cluster, its log shown here, its exit code this program's."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from alast_tune.errors import ConfigError
from alast_tune.storage import SUBMITTED_FROM
from alast_tune.text import one_line

EXCLUDES = ("/.git", "/.venv", "/runs", "/data")
"""What of a checkout does not travel; Ray takes 100 MiB at most."""

_PASSED_ON = (
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_DISABLE_TELEMETRY",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
)
"""Environment variables that a job gets from here; it has the head's else, and no shell's."""


def runtime_env(folder: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Say to Ray what a job needs beside its command.

    Args:
        folder: that the job runs in a copy of; None if it needs none.
        environment: of this process.
    """
    variables = {name: environment[name] for name in _PASSED_ON if environment.get(name)}
    variables[SUBMITTED_FROM] = str(Path.cwd())  # what a relative path means
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = "30"  # a stopped driver closes its runs; Ray would give it 3 s
    found: dict[str, Any] = {"env_vars": variables}
    return found | ({"working_dir": str(folder), "excludes": list(EXCLUDES)} if folder else {})


class Job:
    """A command that runs on a cluster.

    Args:
        address: of the cluster's job server (``http://HOST:8265``).
        words: the command.
        folder: that it runs in a copy of; None if it needs none.

    Raises:
        ConfigError: nobody there, or the job is refused.
    """

    def __init__(self, address: str, words: Sequence[str], folder: Path | None) -> None:
        logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)  # the log that is shown is the sweep's
        try:
            self._client = JobSubmissionClient(address)
            self.id: str = self._client.submit_job(
                entrypoint=shlex.join(words), runtime_env=runtime_env(folder, os.environ)
            )
        except AuthenticationError as error:
            why = one_line(error).removesuffix(".")
            raise ConfigError("address", address, f"{why}; RAY_AUTH_TOKEN or ~/.ray/auth_token has the token") from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            remedy = f"takes no job ({one_line(error)}); give the http address of a head's dashboard, port 8265"
            raise ConfigError("address", address, remedy) from None

    def follow(self, show: Callable[[str], None]) -> int:
        """Show the log until the job has ended; returns the command's exit code, 1 where Ray does not know it."""
        asyncio.run(self._tail(show))
        while not (status := self._client.get_job_status(self.id)).is_terminal():
            time.sleep(1)  # whatever is between here and the head has cut the log off
        code = self._client.get_job_info(self.id).driver_exit_code
        if status == JobStatus.SUCCEEDED:
            return 0
        return 1 if not code else code if code > 0 else 128 - code

    async def _tail(self, show: Callable[[str], None]) -> None:
        async for lines in self._client.tail_job_logs(self.id):
            show(lines)
