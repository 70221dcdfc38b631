"""The study, wherever it is, and its trials as records."""

from __future__ import annotations

import math
import sqlite3
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import DIRECTIONS, OBJECTIVES, TrialResult
from alast_tune.scores import Score
from alast_tune.storage import STUDY, STUDY_JOURNAL, address_of, atomic_write, is_copy
from alast_tune.tune.attributes import BASELINE, DUPLICATE_OF
from alast_tune.tune.space import baseline_params, begins_with, trial_config
from alast_tune.tune.study_file import StudyJournal
from alast_tune.tune.write_through import WriteThroughStorage

_ID = "study.id"
"""Part of the name of a sweep's study in a database."""

_LOST = "its study is gone ({}), and with it what was finished; put it back, or start anew under another --name"

_SUPERSEDED = "superseded"

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


def open_study(
    sweep: SweepConfig, folder: Path, *, new: bool = False, must_exist: bool = False, alone: bool = False
) -> optuna.Study:
    """Create or reopen the sweep's study, in its folder or in the database that the sweep names.

    Args:
        sweep: says where the study is, in ``study``.
        folder: of the sweep.
        new: give a study in a database a name of its own, kept in the sweep's folder wherever that is mounted.
        must_exist: refuse to begin an empty one.
        alone: no other process writes it while this one does, so that it is read once.

    Raises:
        ConfigError: a database that cannot be used, no study where one should be, or SQLite in object storage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = sweep.study if sweep.study and "://" in sweep.study else None
    files = [folder / STUDY, folder / STUDY_JOURNAL]
    if must_exist and url is None and not any(file.exists() for file in files):
        raise ConfigError("resume", sweep.name, _LOST.format(files[0]))
    try:
        storage = _file(sweep.study, folder) if url is None else _database(url)
        name = _own_name(sweep, storage) if url is None else _shared_name(sweep, folder, storage, new)
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:  # making one that is there would write, too
            if must_exist:
                where = f"{name} in the database" if url else next(file for file in files if file.exists())
                raise ConfigError("resume", sweep.name, _LOST.format(where)) from None
            study = optuna.create_study(storage=storage, study_name=name, directions=list(DIRECTIONS))
        return optuna.load_study(study_name=name, storage=WriteThroughStorage(storage, name)) if alone else study
    except ImportError:
        if url is None:
            raise
        remedy = "PostgreSQL takes psycopg, which cannot be imported here; pip install 'psycopg[binary]'"
        raise ConfigError("study", url, remedy) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        if url is None:
            raise  # what is wrong with a file is said elsewhere
        raise ConfigError("study", url, f"cannot be used ({database_said(error)})") from None


def name_metrics(study: optuna.Study, score: Score) -> None:
    """Let a study say what its objectives are called, as ``optuna-dashboard`` shows them; older ones do not yet."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([score, *(objective.name for objective in OBJECTIVES[1:])])


def database_said(error: BaseException) -> str:
    """Put a database's error into one line, without SQLAlchemy's words around it."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    text = str(getattr(cause, "orig", None) or cause or error).strip() or type(error).__name__
    return text.splitlines()[0]


def _own_name(sweep: SweepConfig, storage: optuna.storages.BaseStorage) -> str:
    """Name the one study of a file: as the sweep was called when it began, which its folder may no longer be."""
    names = optuna.get_all_study_names(storage)
    return sweep.name if sweep.name in names or not names else names[0]


def _shared_name(sweep: SweepConfig, folder: Path, storage: optuna.storages.BaseStorage, new: bool) -> str:
    """Name a study among those of other sweeps; sweeps of version 0.1 have no id, and go by their address."""
    file = folder / _ID
    if new:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as scratch:
            scratch.write_text(uuid4().hex + "\n")
    if not file.exists():
        return f"{address_of(folder.parent)}/{sweep.name}"
    own = f"-{file.read_text().strip()}"  # behind the name that the folder had when the sweep began
    names = [] if new else optuna.get_all_study_names(storage)
    return next((name for name in names if name.endswith(own)), f"{sweep.name}{own}")


def _file(kind: str | None, folder: Path) -> optuna.storages.BaseStorage:
    """Open a file of SQLite, or one that only grows, which network drives and object storage are up to.

    The one that is there, whatever was asked for; else by default SQLite's, but in object storage, where that would be
    uploaded whole for each trial, the other.

    SQLite is in WAL mode: a commit then waits for no disk. A process killed at any moment loses nothing, a machine
    that loses power at worst the last commits, whose trials are then gone on with from their checkpoints.
    """
    grows, database = folder / STUDY_JOURNAL, folder / STUDY
    if not database.exists() and (grows.exists() or kind == "journal" or (kind is None and is_copy(folder))):
        try:
            return StudyJournal(grows)
        except (ValueError, LookupError, TypeError, AssertionError) as error:  # what no line of it can bring about
            raise optuna.exceptions.StorageInternalError(f"{STUDY_JOURNAL} is damaged: {error}") from None
    if is_copy(folder) and not database.exists():
        remedy = (
            "a database in object storage is uploaded whole for each trial; leave --study out for a file that grows"
        )
        raise ConfigError("study", "sqlite", remedy)
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _connected(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connections that made the tables were others
    return storage


def _database(url: str) -> optuna.storages.BaseStorage:
    """Open a PostgreSQL database; a connection that it has dropped in the meantime is made anew."""
    psycopg = url.replace("postgresql://", "postgresql+psycopg://", 1)  # else the driver is SQLAlchemy's choice
    return optuna.storages.RDBStorage(
        psycopg, engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
    )


def enqueue_first(study: optuna.Study, sweep: SweepConfig) -> None:
    """Let a study begin with the baselines that it does not have yet, and then with what the sweep begins with."""
    there = {trial.user_attrs.get(BASELINE) for trial in study.get_trials(deepcopy=False)}
    for baseline in begins_with(sweep):
        if baseline not in there:
            params = baseline_params(sweep.trial, sweep.space, baseline)
            study.enqueue_trial(params, user_attrs={BASELINE: baseline})
    assert not isinstance(sweep.begin_with, Path)  # made out when the sweep was prepared
    for given in sweep.begin_with or ():
        study.enqueue_trial(given, skip_if_exists=True)


def baselines(study: optuna.Study) -> list[FrozenTrial]:
    """List the trials that a sweep runs beside those that were asked for, waiting ones too."""
    old = superseded(study)
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if BASELINE in trial.user_attrs and "origin" not in trial.user_attrs and trial.number not in old
    ]


def enqueue_failed(study: optuna.Study) -> int:
    """Let failed trials be run again, as new ones of the same parameters; the old ones count no more. Returns how many.

    A driver that is killed in the midst of it leaves proposals that repeat others, which are not run.
    """
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    asked = {trial.user_attrs.get(BASELINE) for trial in waiting}
    again = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if trial.number not in superseded(study)
    ]
    for trial in again:
        baseline = trial.user_attrs.get(BASELINE)
        if baseline is None or baseline not in asked:  # nobody looks whether a baseline repeats another
            study.enqueue_trial(trial.params, user_attrs={BASELINE: baseline} if baseline else None)
    study.set_user_attr(_SUPERSEDED, sorted(superseded(study) | {trial.number for trial in again}))
    return len(again)


def superseded(study: optuna.Study) -> set[int]:
    """Numbers of failed trials that were run again."""
    return set(study.user_attrs.get(_SUPERSEDED, ()))


def is_own(trial: FrozenTrial) -> bool:
    """Whether a trial counts as one of those that were asked for."""
    return not trial.user_attrs.keys() & {BASELINE, "origin", DUPLICATE_OF} and trial.user_attrs.get("launched", True)


class StudyResult(TrialResult):
    """A trial of a study; its configuration, six times the rest of it, is made when somebody asks for it."""

    @property
    def config(self) -> TrialConfig:
        """The base trial's for one that was told FAIL because its parameters contradict each other."""
        if isinstance(self.__dict__["config"], partial):
            self.__dict__["config"] = self.__dict__["config"]()
        made: TrialConfig = self.__dict__["config"]
        return made

    @config.setter
    def config(self, made: TrialConfig | partial[TrialConfig]) -> None:
        self.__dict__["config"] = made


def _config(sweep: SweepConfig, params: Mapping[str, Any], baseline: str | None) -> TrialConfig:
    try:
        return trial_config(sweep, params, baseline)
    except ConfigError:
        return sweep.trial


def to_result(
    trial: FrozenTrial, sweep: SweepConfig, run_id: str | None = None, test_accuracy: float | None = None
) -> TrialResult:
    """Read one trial of the study."""
    params, attributes, excess = trial.params, trial.user_attrs, trial.constraints
    baseline = attributes.get(BASELINE)
    state = _STATES[trial.state]
    if state in {"complete", "pruned"} and any(amount > 0 for amount in excess.values()):
        state = "infeasible"
    return StudyResult(
        number=trial.number,
        state=state,  # type: ignore[arg-type]
        config=partial(_config, sweep, params, baseline),  # type: ignore[arg-type]
        params=dict(params),
        values=tuple(trial.values) if trial.state == TrialState.COMPLETE else None,
        epochs=attributes.get("epochs", 0),
        mlflow_run_id=run_id or attributes.get("mlflow_run_id"),
        reason=attributes.get("reason"),
        baseline=baseline,
        origin=attributes.get("origin"),
        excess=max(excess.values(), default=0.0),
        launched=attributes.get("launched", "origin" not in attributes),
        metrics=attributes.get("metrics", {}),
        test_accuracy=test_accuracy,
        device=attributes.get("device") or None,
    )


def epoch_key(epoch: int) -> str:
    """Name the attribute in which a trial keeps an epoch, counted from 1: its objectives, then its seconds."""
    return f"epoch {epoch}"


def epochs_of(attributes: Mapping[str, Any]) -> list[list[float]]:
    """Read a trial's epochs from its attributes: objectives after each, and seconds spent in training by then.

    Older versions kept all epochs in two attributes, which later epochs of the same trial replace one by one. An
    attribute cannot be deleted: None ends the epochs.
    """
    curve = attributes.get("curve", [])
    seconds = attributes.get("seconds", [math.nan] * len(curve))
    rows = ([*values, spent] for values, spent in zip(curve, seconds, strict=True))
    kept_at = {epoch_key(epoch): row for epoch, row in enumerate(rows, start=1)} | dict(attributes)
    found: list[list[float]] = []
    while (kept := kept_at.get(epoch_key(len(found) + 1))) is not None:
        found.append(kept)
    return found


def curve_of(attributes: Mapping[str, Any]) -> list[list[float]]:
    """Read a trial's objectives after each epoch from its attributes."""
    return [kept[:-1] for kept in epochs_of(attributes)]


def results(study: optuna.Study, sweep: SweepConfig, run_ids: Mapping[int, str] | None = None) -> list[TrialResult]:
    """Read every trial that was proposed, by number, without those that repeat another or were run again.

    Args:
        study: of the sweep.
        sweep: its settings.
        run_ids: MLflow's, by number; where there is none, what the study of an older version has.
    """
    tested, old, runs = study.user_attrs.get("test_accuracy", {}), superseded(study), run_ids or {}
    return [
        to_result(trial, sweep, runs.get(trial.number), tested.get(str(trial.number)))
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and DUPLICATE_OF not in trial.user_attrs and trial.number not in old
    ]
