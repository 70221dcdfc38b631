"""Everything MLflow: one parent run a sweep, one child a trial, the front where people look.

The sweep's driver is the only writer. All calls go through a client, with run ids: no global
active run, few requests.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from getpass import getuser
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

_VALUE = 6000  # MLflow's limit of a parameter's length; the client cuts batches to theirs itself

_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # else the pages are those for language models


def default_uri(storage: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else a SQLite file next to the sweeps."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def is_file_based(uri: str) -> bool:
    """Whether a store is a file, which only processes on its own machine can share."""
    return urlparse(uri).scheme in {"", "file", "sqlite"} and uri not in {"databricks", "databricks-uc", "uc"}


def ui_command(uri: str) -> str:
    """Command that opens a store's pages, or the address of the server that already does."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


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
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, into the progress
        self.uri = uri
        location = (storage.absolute() / "mlartifacts").as_uri() if is_file_based(uri) else None
        try:
            storage.mkdir(parents=True, exist_ok=True)
            # A silent server is asked for minutes by default, which is right during a sweep, not before it.
            with _patience(retries=1, seconds=4):
                self._client = MlflowClient(uri)
                found = self._client.get_experiment_by_name(experiment)
                if found is None:
                    found = self._client.get_experiment(
                        self._client.create_experiment(experiment, artifact_location=location, tags=_EXPERIMENT)
                    )
        except Exception as error:
            remedy = "start the server" if uri.startswith("http") else "give sqlite:///FILE or a server's address"
            raise ConfigError(
                "MLFLOW_TRACKING_URI", uri, f"cannot be used ({_reason(error)}); {remedy}, or unset it"
            ) from None
        if found.lifecycle_stage == "deleted":
            restore = f"mlflow experiments restore -x {found.experiment_id}"
            raise ConfigError("MLFLOW_TRACKING_URI", uri, f"experiment {experiment} was deleted there; {restore}")
        self._experiment = str(found.experiment_id)
        self._parent = ""
        self._open: set[str] = set()

    def start_sweep(self, sweep: SweepConfig, run_id: str | None = None) -> str:
        """Open the parent run, or reopen it; returns its id.

        Raises:
            ConfigError: the store does not have that run, or has it in its bin.
        """
        if run_id is None:
            tags = {"mlflow.runName": sweep.name, "mlflow.user": _user(), "mlflow.source.name": "alast-tune"}
            tags |= {"alast.kind": "sweep", "alast.version": __version__}
            tags |= {"mlflow.note.content": f"Sweep `{sweep.name}`, {sweep.trials} trials: running."}
            run_id = str(self._client.create_run(self._experiment, tags=tags).info.run_id)
            self._log_params(run_id, flatten(sweep))
        else:
            try:
                self._client.update_run(run_id, "RUNNING")
            except MlflowException as error:
                remedy = f"cannot reopen run {run_id} ({_reason(error)}); resume with the store the sweep began in"
                raise ConfigError("MLFLOW_TRACKING_URI", self.uri, remedy) from None
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
        self._client.log_batch(run_id, metrics=finite)

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
        metrics = {"hypervolume": front.hypervolume, "hypervolume_share": front.hypervolume_share}
        self.log_progress(
            metrics | {"best_accuracy": front.best_accuracy, "front_size": len(front.front)}, front.trials.finished
        )
        tags = {
            f"alast.reference.{o.name}": str(v) for o, v in zip(front.objectives, front.reference_point, strict=True)
        }
        tags["mlflow.note.content"] = describe_front(front)
        # The client's log_table appends to the table of an earlier ending; this replaces it, and says so as that does.
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": "front_table.json", "type": "table"}])
        self._client.log_batch(self._parent, tags=[RunTag(*tag) for tag in tags.items()])
        with tempfile.TemporaryDirectory() as scratch:
            front.write(Path(scratch, "front.json"))
            Path(scratch, "front_table.json").write_text(json.dumps(_table(front, results)), encoding="utf-8")
            Path(scratch, "front.html").write_text(front_html(front, results), encoding="utf-8")
            Path(scratch, "front.png").write_bytes(front_png(front, results))
            self._client.log_artifacts(self._parent, scratch)

    def end_sweep(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the parent run."""
        self._client.set_terminated(self._parent, status)

    def kill(self) -> None:
        """End the parent and the children still running as KILLED.

        Little time may be left (Ray follows SIGTERM with SIGKILL after 3 s), and whatever made the sweep end
        matters more: a store that does not answer is left alone. Not for a signal's handler: the store may be in
        the middle of a transaction there; let the handler raise, and call this on the way out.
        """
        with _patience(retries=0, seconds=2):
            for run_id in filter(None, (self._parent, *self._open)):
                try:
                    self._client.set_terminated(run_id, "KILLED")
                except MlflowException as error:
                    logging.getLogger(__name__).warning("run %s stays RUNNING in MLflow: %s", run_id, _reason(error))
                    if not is_file_based(self.uri):
                        break  # a server that is gone would be asked once a run
        self._open.clear()

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        self._client.log_batch(run_id, params=[Param(name, str(value)[:_VALUE]) for name, value in values.items()])


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


def _table(front: FrontFile, results: Sequence[TrialResult]) -> dict[str, list[Any]]:
    """Lay the front out as MLflow reads tables: columns and rows, the settings that were searched included."""
    chosen = {result.mlflow_run_id: result.params for result in results}
    searched = list(dict.fromkeys(path for m in front.front for path in chosen.get(m.mlflow_run_id, {})))
    names = [objective.name for objective in front.objectives]
    rows = [
        [
            m.trial_id,
            *(m.objectives[name] for name in names),
            m.test_accuracy,
            *(chosen.get(m.mlflow_run_id, {}).get(path) for path in searched),
            m.mlflow_run_id,
        ]
        for m in front.front
    ]
    return {"columns": ["trial", *names, "test_accuracy", *searched, "run"], "data": rows}


@contextmanager
def _patience(retries: int, seconds: int) -> Iterator[None]:
    """Limit how long MLflow tries to reach a server, unless the person has set that."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "Max retries exceeded" in text or "timed out" in text:
        return "no answer"
    return (text.partition(" failed with ")[2] or text)[:160]


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container under a user id that has no name
        return "unknown"
