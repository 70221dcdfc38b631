"""The study, wherever it is, and its trials as records."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.results import DIRECTIONS, TrialResult
from alast_tune.storage import STUDY, address_of, whole
from alast_tune.tune.space import LANDMARKS, landmark_params, trial_config

_ID = "study.id"
"""Part of the name of a sweep's study in a database."""

_LOST = "its study is gone ({}), and with it what was finished; put it back, or start anew under another --name"

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def open_study(sweep: SweepConfig, folder: Path, *, new: bool = False, there: bool = False) -> optuna.Study:
    """Create or reopen the sweep's study, in its folder or in the database that the sweep names.

    Args:
        sweep: says where the study is, in ``study``.
        folder: of the sweep.
        new: give a study in a database a name of its own, kept in the sweep's folder wherever that is mounted.
        there: refuse to begin an empty one.

    Raises:
        ConfigError: a database that cannot be used, or no study where one should be.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shared = "://" in sweep.study
    name = _shared_name(sweep, folder, new) if shared else sweep.name  # others have a sweep of that name too
    if there and not shared and not _path(sweep.study, folder).exists():
        raise ConfigError("resume", sweep.name, _LOST.format(_path(sweep.study, folder)))
    try:
        storage = _database(sweep.study) if shared else _file(sweep.study, folder)
        if there:
            return optuna.load_study(storage=storage, study_name=name)
        return optuna.create_study(storage=storage, study_name=name, directions=list(DIRECTIONS), load_if_exists=True)
    except KeyError:
        where = f"{name} in the database" if shared else _path(sweep.study, folder)
        raise ConfigError("resume", sweep.name, _LOST.format(where)) from None
    except (ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        if not shared:
            raise  # what is wrong with a file is said elsewhere
        raise ConfigError("study", sweep.study, f"cannot be used ({database_said(error)})") from None


def database_said(error: BaseException) -> str:
    """Put a database's error into one line, without SQLAlchemy's words around it."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    text = str(getattr(cause, "orig", None) or cause or error).strip() or type(error).__name__
    return text.splitlines()[0]


def _path(kind: str, folder: Path) -> Path:
    return folder / ("study.jsonl" if kind == "journal" else STUDY)


def _shared_name(sweep: SweepConfig, folder: Path, new: bool) -> str:
    """Name a study among those of other sweeps; sweeps of version 0.1 have no id, and go by their address."""
    file = folder / _ID
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(file) as scratch:
            scratch.write_text(uuid4().hex + "\n")
    return f"{sweep.name}-{file.read_text().strip()}" if file.exists() else f"{address_of(folder.parent)}/{sweep.name}"


def _file(kind: str, folder: Path) -> optuna.storages.BaseStorage:
    """Open a file of SQLite, or one that only grows, which network drives are up to.

    SQLite is in WAL mode: a commit then waits for no disk. A process killed at any moment loses nothing, a machine
    that loses power at worst the last commits, whose trials are then gone on with from their checkpoints.
    """
    if kind == "journal":
        return optuna.storages.JournalStorage(JournalFileBackend(str(_path(kind, folder))))
    storage = optuna.storages.RDBStorage(f"sqlite:///{_path(kind, folder)}")

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _connected(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connections that made the tables were others
    return storage


def _database(url: str) -> optuna.storages.BaseStorage:
    """Open a PostgreSQL database; a connection that it has dropped in the meantime is made anew."""
    psycopg = url.replace("postgresql://", "postgresql+psycopg://", 1)  # else the driver is SQLAlchemy's choice
    return optuna.storages.RDBStorage(psycopg, engine_kwargs={"pool_pre_ping": True})


def enqueue_landmarks(study: optuna.Study, sweep: SweepConfig) -> None:
    """Let a study begin with the landmarks that it does not have yet; a grid has none."""
    if sweep.sampler == "grid":
        return
    there = {trial.user_attrs.get("landmark") for trial in study.get_trials(deepcopy=False)}
    for landmark in LANDMARKS:
        if landmark not in there:
            params = landmark_params(sweep.trial, sweep.space, landmark)
            study.enqueue_trial(params, user_attrs={"landmark": landmark})


def to_result(trial: FrozenTrial, sweep: SweepConfig) -> TrialResult:
    """Read one trial of the study."""
    landmark = trial.user_attrs.get("landmark")
    try:
        config = trial_config(sweep, trial.params, landmark)
    except ConfigError:  # told FAIL for this very reason
        config = sweep.trial
    state = _STATES[trial.state]
    if state in {"complete", "pruned"} and any(excess > 0 for excess in trial.constraints.values()):
        state = "infeasible"
    return TrialResult(
        number=trial.number,
        state=state,  # type: ignore[arg-type]
        config=config,
        params=dict(trial.params),
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else None,
        epochs=trial.user_attrs.get("epochs", 0),
        mlflow_run_id=trial.user_attrs.get("mlflow_run_id"),
        reason=trial.user_attrs.get("reason"),
        landmark=landmark,
        origin=trial.user_attrs.get("origin"),
        metrics=trial.user_attrs.get("metrics", {}),
    )


def results(study: optuna.Study, sweep: SweepConfig) -> list[TrialResult]:
    """Read every trial of the sweep's study that was proposed, by number, without those that repeat another."""
    tested = study.user_attrs.get("test_accuracy", {})
    return [
        replace(to_result(trial, sweep), test_accuracy=tested.get(str(trial.number)))
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and "twin" not in trial.user_attrs
    ]
