"""Where the MLflow store is, whether it answers, and why not."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from alast_tune.errors import ConfigError

EXPERIMENT = "alast-tune"

_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # else the pages are those for language models

_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A silent server is asked for minutes by default; here it is asked anew, so that one knows soon that it is away."""
_PATIENCE |= {"PGCONNECT_TIMEOUT": "10"}  # of a database that MLflow is given itself

_REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
_REFUSALS |= {"ENDPOINT_NOT_FOUND"}  # a server that is older than what it is asked for

_OUTAGES = ("OperationalError", *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS)))
"""A database's errors that are not about what was to be written, in SQLAlchemy's words; and a disk's."""

_DENIED = "answers 401"

_DATABASES = {"postgresql", "mysql", "mssql"}
"""Schemes of databases on servers."""


def default_uri(storage: Path) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else a SQLite file next to the sweeps."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute() / 'mlflow.db'}"


def is_file_based(uri: str) -> bool:
    """Whether a store is a file, which only processes on its own machine can share."""
    return urlparse(uri).scheme in {"", "file", "sqlite"} and uri not in {"databricks", "databricks-uc", "uc"}


def connect(uri: str, storage: Path) -> MlflowClient:
    """Connect to a store, and ask it something to see that it answers.

    Args:
        uri: of the store or server.
        storage: folder of the sweeps; artifacts of a SQLite store lie in its ``mlartifacts``.

    Raises:
        ConfigError: no such store, or a server that does not answer.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the schema's migration, step by step
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # that, and a traceback an outage
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, into the progress
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    with _as_config_error(uri):
        storage.mkdir(parents=True, exist_ok=True)
        if urlparse(uri).scheme.partition("+")[0] in _DATABASES:
            from mlflow.store.db.utils import create_sqlalchemy_engine  # half a second, and few need it

            engine = create_sqlalchemy_engine(uri)  # type: ignore[no-untyped-call]
            engine.connect().close()  # else MLflow tries ten times, for two minutes, before it says what is wrong
            engine.dispose()
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def open_store(uri: str, storage: Path, experiment: str | None = None) -> tuple[MlflowClient, str]:
    """Connect to a store; returns its client and the id of the experiment, which is made if it is not there.

    Args:
        uri: of the store or server.
        storage: folder of the sweeps; artifacts of a SQLite store lie in its ``mlartifacts``.
        experiment: its name; unset: that of ``MLFLOW_EXPERIMENT_NAME``, else ``alast-tune``.

    Raises:
        ConfigError: no such store, a server that does not answer, or an experiment in the bin.
    """
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    client = connect(uri, storage)
    location = (storage.absolute() / "mlartifacts").as_uri() if is_file_based(uri) else None
    with _as_config_error(uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another sweep that begins just now
                    raise
            found = client.get_experiment_by_name(name)
            assert found
    if found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore -x {found.experiment_id}"
        raise ConfigError("MLFLOW_TRACKING_URI", uri, f"experiment {name} was deleted there; {restore}")
    return client, str(found.experiment_id)


@contextmanager
def _as_config_error(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = reason(error)
        if why == _DENIED:
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        elif uri.startswith("http"):
            remedy = "start the server"
        elif isinstance(error, ImportError) and uri.startswith("postgresql"):
            remedy = "pip install 'psycopg[binary]'"
        else:
            remedy = "give sqlite:///FILE or a server's address"
        raise ConfigError("MLFLOW_TRACKING_URI", uri, f"cannot be used ({why}); {remedy}, or unset it") from None


def experiment_of(client: MlflowClient, uri: str, run_id: str) -> str:
    """Find the experiment in which a sweep began, whatever the environment says now.

    Raises:
        ConfigError: it does not have the sweep's run, or has it in its bin.
    """
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        remedy = f"cannot reopen run {run_id} ({reason(error)}); use the store the sweep began in"
        raise ConfigError("MLFLOW_TRACKING_URI", uri, remedy) from None
    if info.lifecycle_stage == "deleted":
        raise ConfigError(
            "MLFLOW_TRACKING_URI", uri, f"the sweep was deleted there; mlflow runs restore --run-id {run_id}"
        )
    return str(info.experiment_id)


def reason(error: Exception) -> str:
    """Say in a few words why a store failed."""
    if database := re.search(r"^\(\w+\.\w*Error\) (.+)", str(error), re.MULTILINE):  # SQLAlchemy says much around it
        return database[1]
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "Max retries exceeded" in text or "timed out" in text:
        status = text.partition("too many ")[2].partition(" error responses")[0]  # urllib3's words
        return f"answers {status}" if status else "no answer"
    if "error code 401" in text:
        return _DENIED
    return (text.partition(" failed with ")[2] or text)[:160]


def is_refusal(error: Exception) -> bool:
    """Whether MLflow itself said no, and would say so again; anything else may pass: outages, full disks, proxies."""
    ours = isinstance(error, RestException) or "API request" not in str(error)
    return isinstance(error, MlflowException) and ours and error.error_code in _REFUSALS


def is_outage(error: Exception) -> bool:
    """Whether a store says that it is full or away: some small write may work all the same."""
    return any(words in str(error) for words in _OUTAGES)
