"""Everything MLflow: one parent run a sweep, one child a trial, the front where people look.

The sweep's driver is the only writer. All calls go through a client, with run ids: no global
active run, few requests.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from getpass import getuser
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from alast_tune import __version__
from alast_tune.config import SweepConfig, TrialConfig, flatten
from alast_tune.errors import ConfigError
from alast_tune.plots import front_html, front_png, human_bytes, human_flops
from alast_tune.results import FrontFile, TrialResult

_METRICS, _PARAMS, _VALUE = 1000, 100, 6000  # MLflow's limits of one log_batch, and of a parameter's length

_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # else the pages are those for language models


def default_uri(storage: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else a SQLite file next to the sweeps."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def is_file_based(uri: str) -> bool:
    """Whether a store is a file, which only processes on its own machine can share."""
    return urlparse(uri).scheme in {"", "file", "sqlite"}


def ui_command(uri: str) -> str:
    """Command that opens a store's pages, or the address of the server that already does."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class Tracker:
    """Writes a sweep to MLflow.

    Args:
        uri: of the store or server.
        storage: folder of the sweeps; artifacts of a SQLite store lie in its ``mlartifacts``.
        experiment: MLflow's grouping of runs.

    Raises:
        ConfigError: no such store, or a server that does not answer.
    """

    def __init__(self, uri: str, storage: Path, experiment: str = "alast-tune") -> None:
        for name in ("alembic", "mlflow.store.db.utils"):  # the schema's migration, step by step
            logging.getLogger(name).setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default: minutes of silence
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, into the progress
        self.uri = uri
        location = None
        if is_file_based(uri):
            storage.mkdir(parents=True, exist_ok=True)
            location = (storage.absolute() / "mlartifacts").as_uri()
        try:
            self._client = MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(experiment, artifact_location=location, tags=_EXPERIMENT)
            )
        except Exception as error:
            what = str(error).splitlines()[0] if isinstance(error, MlflowException) else type(error).__name__
            raise ConfigError(
                "MLFLOW_TRACKING_URI", uri, f"cannot be used ({what[:160]}); start it or unset it"
            ) from None
        self._sweep: SweepConfig | None = None
        self._parent = ""
        self._open: set[str] = set()

    def start_sweep(self, sweep: SweepConfig, run_id: str | None = None) -> str:
        """Open the parent run, or reopen it; returns its id."""
        self._sweep = sweep
        if run_id is None:
            tags = {"mlflow.runName": sweep.name, "mlflow.user": getuser(), "mlflow.source.name": "alast-tune"}
            tags |= {"alast.kind": "sweep", "alast.version": __version__}
            run_id = str(self._client.create_run(self._experiment, tags=tags).info.run_id)
            self._log_params(run_id, flatten(sweep))
            self._client.set_tag(
                run_id, "mlflow.note.content", f"Sweep `{sweep.name}`, {sweep.trials} trials: running."
            )
        else:
            self._client.update_run(run_id, "RUNNING")
        self._parent = run_id
        return run_id

    def start_trial(
        self, number: int, config: TrialConfig, params: Mapping[str, object], run_id: str | None = None
    ) -> str:
        """Open a trial's run under the parent, or reopen it; returns its id."""
        if run_id is None:
            tags = {
                "mlflow.runName": f"trial-{number:04d}",
                "mlflow.parentRunId": self._parent,
                "alast.kind": "trial",
                "alast.trial": f"{number:04d}",
                "alast.searched": ", ".join(params),
            }
            run_id = str(self._client.create_run(self._experiment, tags=tags).info.run_id)
            self._log_params(run_id, flatten(config))
        else:
            self._client.update_run(run_id, "RUNNING")
        self._open.add(run_id)
        return run_id

    def log_epoch(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Log an epoch's metrics; those that are not finite numbers, which ruin MLflow's charts, are left out."""
        now = int(time.time() * 1000)
        finite = [Metric(name, value, now, step) for name, value in metrics.items() if math.isfinite(value)]
        for batch in _batches(finite, _METRICS):
            self._client.log_batch(run_id, metrics=batch)

    def end_trial(
        self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str] | None = None
    ) -> None:
        """End a trial's run."""
        if tags:
            self._client.log_batch(run_id, tags=[RunTag(name, value[:_VALUE]) for name, value in tags.items()])
        self._client.set_terminated(run_id, status)
        self._open.discard(run_id)

    def settle(self, results: Sequence[TrialResult]) -> None:
        """End the runs of trials that the study has as ended: a driver may have died between the two."""
        for result in results:
            if result.state == "running" or not result.mlflow_run_id:
                continue
            status = end_status(result)
            if self._client.get_run(result.mlflow_run_id).info.status != status:
                self._client.set_terminated(result.mlflow_run_id, status)

    def log_progress(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of the parent against the number of finished trials."""
        self.log_epoch(self._parent, metrics, step)

    def log_front(self, front: FrontFile, results: Sequence[TrialResult]) -> None:
        """Tag the members, and put the front on the parent: metrics, table, JSON, picture, interactive page."""
        members = {member.mlflow_run_id for member in front.front}
        knee = next((m.mlflow_run_id for m in front.front if m.trial_id == front.knee), None)
        for result in results:
            if result.state == "complete" and result.mlflow_run_id:
                tags = {
                    "pareto": str(result.mlflow_run_id in members).lower(),
                    "knee": str(result.mlflow_run_id == knee).lower(),
                }
                self._client.log_batch(result.mlflow_run_id, tags=[RunTag(*tag) for tag in tags.items()])
        finished = front.trials.complete + front.trials.pruned + front.trials.failed
        best = max((member.objectives["accuracy"] for member in front.front), default=0.0)
        metrics = {"hypervolume": front.hypervolume, "hypervolume_share": front.hypervolume_share}
        self.log_progress(metrics | {"best_accuracy": best, "front_size": len(front.front)}, finished)
        tags = {
            f"alast.reference.{o.name}": str(v) for o, v in zip(front.objectives, front.reference_point, strict=True)
        }
        tags["mlflow.note.content"] = describe_front(front)
        self._client.log_batch(self._parent, tags=[RunTag(*tag) for tag in tags.items()])
        rows = [
            {"trial": m.trial_id, **m.objectives, "test_accuracy": m.test_accuracy, "run": m.mlflow_run_id}
            for m in front.front
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {"trial": []}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's use of pandas
            self._client.log_table(self._parent, columns, "front_table.json")
        with tempfile.TemporaryDirectory() as scratch:
            front.write(Path(scratch, "front.json"))
            Path(scratch, "front.html").write_text(front_html(front, results))
            Path(scratch, "front.png").write_bytes(front_png(front, results))
            self._client.log_artifacts(self._parent, scratch)

    def end_sweep(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the parent run."""
        self._client.set_terminated(self._parent, status)

    def kill(self) -> None:
        """End the parent and the children still running as KILLED; little time may be left."""
        for run_id in (*self._open, self._parent):
            self._client.set_terminated(run_id, "KILLED")
        self._open.clear()

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        for batch in _batches([Param(name, str(value)[:_VALUE]) for name, value in values.items()], _PARAMS):
            self._client.log_batch(run_id, params=batch)


def end_status(result: TrialResult) -> Literal["FINISHED", "FAILED"]:
    """MLflow's word for how a trial ended; a pruned one did what it was told."""
    return "FAILED" if result.state == "failed" else "FINISHED"


def describe_front(front: FrontFile) -> str:
    """Write the front as Markdown, for the parent's description."""
    lead = (
        f"**{front.sweep}**: {len(front.front)} of {front.trials.complete} complete trials are on the front "
        f"({front.trials.pruned} pruned, {front.trials.failed} failed); "
        f"hypervolume {front.hypervolume_share:.4f} of the box between full fine-tuning's cost and the ideal."
    )
    lines = [
        lead,
        "",
        "| trial | accuracy | test | training | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for m in front.front:
        test = "-" if m.test_accuracy is None else f"{m.test_accuracy:.4f}"
        name = f"**{m.trial_id}** (knee)" if m.trial_id == front.knee else m.trial_id
        flops, peak = human_flops(m.objectives["train_flops"]), human_bytes(m.objectives["peak_bytes"])
        lines.append(f"| {name} | {m.objectives['accuracy']:.4f} | {test} | {flops} | {peak} |")
    return "\n".join(lines)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
