"""What happens to a sweep, as operations on MLflow."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from getpass import getuser
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from alast_tune import __version__
from alast_tune.blocks import BlockReport
from alast_tune.config import DataConfig, SweepConfig, TrialConfig, flatten, setting_of
from alast_tune.errors import ConfigError
from alast_tune.near_full import hypervolume_words
from alast_tune.plots import SearchReport
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import trial_id
from alast_tune.tracking.finish import finish
from alast_tune.tracking.kept import EXPERIMENT, SWEEP
from alast_tune.tracking.members import CostMetrics, models_of
from alast_tune.tracking.names import run_name
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.page import FOLDER, describe_front, with_run_ids, write_pages
from alast_tune.tracking.people import dataset_of, readable_metrics, readable_param, same_images
from alast_tune.tracking.queue import Queue
from alast_tune.tracking.store import experiment_of, open_store
from alast_tune.tracking.writer import Writer

LAST_MOMENT = 2.0
"""So many seconds a driver that is being stopped gives to what is not written yet: Ray kills it after 3."""

_VALUE = 6000  # MLflow's limit of a parameter's length; the client cuts batches to theirs itself


class Tracker:
    """Writes a sweep, or a training on its own, to MLflow, without ever waiting for it between start and end.

    Every call only puts operations into the queue in the sweep's folder. A thread carries them out; what it cannot
    write, because the store is away or full or the driver was killed, is written when the sweep is resumed or by
    :func:`sync`. The sweep's driver is the only writer.

    Args:
        uri: of the store or server.
        storage: folder of the sweeps; artifacts of a SQLite store lie in its ``mlartifacts``.
        say: prints a line about an outage; called from another thread.
        experiment: name of that of new runs; unset: that of ``MLFLOW_EXPERIMENT_NAME``, else ``alast-tune``.

    Raises:
        ConfigError: no such store, or a server that does not answer.
    """

    def __init__(
        self, uri: str, storage: Path, say: Callable[[str], None] | None = None, experiment: str | None = None
    ) -> None:
        self.uri = uri
        self._storage = storage
        self._say = say or logging.getLogger(__name__).warning
        self._wanted = experiment
        self._client, self._experiment = open_store(uri, storage, experiment)
        self._queue: Queue
        self._costs: CostMetrics
        self._writer: Writer
        self._started = False
        self._images: tuple[DataConfig, str | None] = DataConfig(), None

    def __enter__(self) -> Tracker:
        """A sweep that ends with an error has its runs ended as KILLED."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Leave no run open, whatever happened."""
        if kind is not None and self._started:
            self.kill()

    def ended(self, folder: Path) -> bool:
        """Whether a sweep was reported to its end."""
        with closing(Queue(folder)) as queue:
            return queue.run(SWEEP).status == "FINISHED"

    def start_sweep(
        self, sweep: SweepConfig, fingerprint: str | None = None, save: Callable[[], None] = lambda: None
    ) -> str:
        """Open the parent run, or reopen that of a sweep that is resumed; returns its id.

        Args:
            sweep: its settings.
            fingerprint: of its images, as new runs name their data set; None where no trial is to be run.
            save: is called before MLflow hears of it; what the folder has then, a later driver must find.

        Raises:
            ConfigError: the store cannot be written to, does not have that run, or has it in its bin.
        """
        note = f"Sweep `{sweep.name}`, {sweep.trials} trials: running."
        images = sweep.trial.data, fingerprint
        return self.start_run(
            self._storage / sweep.name, "sweep", {"mlflow.note.content": note}, flatten(sweep), images, save
        )

    def start_run(
        self,
        folder: Path,
        kind: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        images: tuple[DataConfig, str | None],
        save: Callable[[], None] = lambda: None,
    ) -> str:
        """Open the run that a folder stands for, or reopen it; returns its id.

        Args:
            folder: keeps the queue; the run is called after it.
            kind: ``sweep``, or ``training`` for one on its own.
            tags: besides those that every such run has.
            params: of a new run; those of one that is reopened never change.
            images: what it trains on, and their fingerprint, if that is known.
            save: see :meth:`start_sweep`.

        Raises:
            ConfigError: the store cannot be written to, does not have that run, or has it in its bin.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._queue = Queue(folder)
        self._costs = CostMetrics(self._queue, self._log_metrics)
        parent = self._queue.run(SWEEP).run_id
        if parent:
            self._experiment = experiment_of(self._client, self.uri, parent)
        sweep_id = self._queue.sweep_id or uuid4().hex
        common = {"mlflow.runName": folder.name, "mlflow.user": _user(), "mlflow.source.name": "alast-tune"}
        common |= {"alast.kind": kind, "alast.version": __version__, "alast.sweep_id": sweep_id}
        if self._wanted and not parent:
            self._queue.note(EXPERIMENT, self._wanted)
        dataset = {} if parent else dataset_of(*images)
        # A sweep's --trials may have changed.
        self._queue.ask(_opening(SWEEP, {**common, **tags}, {} if parent else params, dataset))
        save()
        self._writer = Writer(self._client, self._experiment, self._queue, self.uri, self._say)
        self._started, self._images = True, images
        if parent:
            return parent
        self._writer.flush(patience=0)
        opened = self._queue.run(SWEEP).run_id
        if opened is None:
            self._close()
            raise ConfigError("MLFLOW_TRACKING_URI", self.uri, f"cannot be written to ({self._writer.trouble})")
        return opened

    def start_trial(
        self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None = None
    ) -> None:
        """Open a trial's run under the parent, or reopen it; variants are parameters by their names.

        Parameters of a run never change, though where its files lie may have. One on other images than the sweep's
        has no data set, since nobody has taken their fingerprint.
        """
        run = trial_id(number)
        tags = {
            "mlflow.runName": run_name(number, config, params, baseline),
            "alast.kind": "trial",
            "alast.trial": run,
            "alast.searched": ", ".join(params),
            "alast.sweep_id": self._queue.sweep_id,
        }
        if self._queue.run(run).status is not None:
            self._writer.ask(_opening(run, tags))
            return
        own = flatten(config)
        names = {name: value for name, value in params.items() if _is_named(name, value, own)}
        data, fingerprint = self._images
        dataset = dataset_of(config.data, fingerprint) if same_images(config.data, data) else {}
        self._writer.ask(_opening(run, tags, names | own, dataset))

    def log_epoch(self, number: int, metrics: Mapping[str, float], step: int) -> None:
        """Log an epoch's metrics; those that are not finite numbers, which ruin MLflow's charts, are left out."""
        self._log_metrics(trial_id(number), metrics, step)

    def tag_trial(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a trial's run."""
        self._ask(trial_id(number), "log", tags=tags)

    def end_trial(
        self, number: int, status: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str] | None = None
    ) -> bool:
        """End a trial's run; returns whether it has one, which a trial that never started has not."""
        run = trial_id(number)
        if self._queue.run(run).status is None:
            return False
        self._ask(run, "end", status=status, tags={name: value[:_VALUE] for name, value in (tags or {}).items()})
        return True

    def end_result(self, result: TrialResult) -> bool:
        """End a trial's run as the study has it; returns whether there is one, which a trial that never started lacks.

        Its costs are put in proportion to those of full fine-tuning, as soon as that has ended.
        """
        self._costs.ended([result])
        tags = {"alast.state": result.state} | ({"alast.reason": result.reason} if result.reason else {})
        return self.end_trial(result.number, end_status(result), tags)

    def reconcile_runs(self, results: Sequence[TrialResult]) -> None:
        """End the runs of trials that the study has as ended: a driver may have died between the two.

        One that runs may have a run that the queue does not know, if the driver died before the queue was uploaded.
        """
        self._costs.reconcile(results)
        self._writer.may_exist = frozenset(trial_id(one.number) for one in results if one.state == "running")
        for result in results:
            left = self._queue.run(trial_id(result.number)).status
            if result.state != "running" and left is not None and left != end_status(result):
                self.end_result(result)

    def log_progress(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of the parent against the number of finished trials, or of a training against its epochs."""
        self._log_metrics(SWEEP, metrics, step)

    def upload(self, name: str) -> None:
        """Upload a file of the folder to its run."""
        self._ask(SWEEP, "upload", source=name)

    @property
    def logged(self) -> int:
        """The last step that metrics of the parent were logged at; 0 for none."""
        return self._queue.run(SWEEP).step

    def tag_front(self, members: Sequence[str], knee: str | None = None) -> None:
        """Tag the runs of trials that enter or leave the front, or become its knee or cease to be; all others stay.

        Args:
            members: trial ids.
            knee: trial id; it wanders while a sweep runs, and is told at its end.
        """
        wanted = {run: {"pareto": "true", "knee": str(run == knee).lower()} for run in members}
        places = self._queue.places()
        for run in [*members, *(run for run in places if run not in wanted)]:
            place = wanted.get(run, {"pareto": "false", "knee": "false"})
            if places.get(run) != place and self._queue.run(run).status is not None:
                self._ask(run, "log", tags=place)
                self._queue.placed(run, place)

    def log_front(
        self,
        front: FrontFile,
        results: Sequence[TrialResult],
        search: SearchReport | None = None,
        blocks: Mapping[int, BlockReport] | None = None,
        check: Callable[[], None] = lambda: None,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        """Tag trials by their place, and put the front on the parent: metrics, description, table, pages.

        What is not given of ``search`` and ``blocks`` (by trial number) is not drawn; ``check`` is called now and then,
        and may raise. ``weights`` says by trial id where the checkpoints of members are.
        """
        self.tag_front([member.trial_id for member in front.front], front.knee)
        self._costs.log_tested(results)
        for operation in models_of(front, weights or {}, self._queue):
            self._writer.ask(operation)
        metrics = front.hypervolumes | {f"best_{front.score}": front.best_accuracy, "front_size": len(front.front)}
        self.log_progress(metrics, sum(result.launched and result.state != "running" for result in results))
        tags = {
            f"alast.reference.{o.name}": str(v) for o, v in zip(front.objectives, front.reference_point, strict=True)
        }
        tags["alast.hypervolume"] = hypervolume_words(front)
        drawn = write_pages(front, results, search, blocks or {}, self._queue.folder / FOLDER, self._say, check)
        tags["mlflow.note.content"] = describe_front(front, results, drawn)
        # The client's log_table appends to the table of an earlier ending; this replaces it, and says so as that does.
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": "front_table.json", "type": "table"}])
        self._ask(SWEEP, "log", tags=tags)
        self._ask(SWEEP, "upload")

    def with_run_ids(self, front: FrontFile) -> FrontFile:
        """Fill in the MLflow runs of a front's members, as far as they are known yet."""
        return with_run_ids(front, {m.trial_id: self._queue.run(m.trial_id).run_id for m in front.front})

    def end_sweep(
        self, status: Literal["FINISHED", "FAILED", "KILLED"], check: Callable[[], None] = lambda: None
    ) -> None:
        """End the parent run, and wait until all is written; says so if that is not to be.

        One that is KILLED takes the runs of trials with it that a killed driver has left open. ``check`` is called
        while it waits, and may raise.
        """
        for run in self._queue.open_runs() if status == "KILLED" else [SWEEP]:
            self._ask(run, "end", status=status)
        finish(self._writer, self._queue, self.uri, self._say, check)
        self._close()

    def _close(self) -> None:
        self._writer.close()
        self._started = False

    def kill(self) -> None:
        """End the parent and the children still running as KILLED, before all else that is not written yet.

        Little time may be left, and whatever made the sweep end matters more: what is not written in
        ``LAST_MOMENT`` stays in the queue.
        """
        now = _now()
        self._writer.end_now(
            self._queue.open_runs(), lambda run: Operation(run, "end", now, status="KILLED"), LAST_MOMENT
        )
        self._close()

    def _log_metrics(self, run: str, metrics: Mapping[str, float], step: int) -> None:
        self._ask(run, "log", metrics=readable_metrics(metrics), step=step)

    def _ask(self, run: str, do: Literal["open", "log", "end", "upload", "model"], **values: Any) -> None:
        self._writer.ask(Operation(run, do, _now(), **values))


def _opening(
    run: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any] | None = None,
    dataset: Mapping[str, str] | None = None,
) -> Operation:
    texts = {name: readable_param(value)[:_VALUE] for name, value in (params or {}).items()}
    return Operation(run, "open", _now(), tags=tags, params=texts, dataset=dataset or {})


def _is_named(name: str, value: object, settings: Mapping[str, object]) -> bool:
    """Whether a parameter is logged under its own name: one of variants, or a conditional one that the trial has."""
    path = setting_of(name)
    return "/" not in name or (path != name and settings.get(path) == value)


def _now() -> int:
    return int(time.time() * 1000)


def end_status(result: TrialResult) -> Literal["FINISHED", "FAILED"]:
    """MLflow's word for how a trial ended; a pruned one did what it was told."""
    return "FAILED" if result.state == "failed" else "FINISHED"


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container under a user id that has no name
        return "unknown"
