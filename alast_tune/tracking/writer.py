"""Carries out what is in a queue, in a thread of its own."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag

from alast_tune.tracking.kept import REFUSED, SWEEP
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.page import FOLDER, REPORT, fill_run_ids
from alast_tune.tracking.queue import Queue
from alast_tune.tracking.store import is_outage, is_refusal, reason

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds between two tries; a server that is gone says so at once

_TRIES = 7
"""So often the store may fail at an operation while it takes others; then that one is set aside."""

_ALIVE = "alast.alive"
"""A tag that is set and taken off again, to see whether the store can be written to at all."""


class Writer:
    """Writes what is in a queue to MLflow, in order, each operation as often as it takes.

    What MLflow refuses is passed over, and said. What it fails at again and again while it takes other writes is set
    aside, and said. Any other failure is an outage, of which it says when it begins and when it is over.

    Args:
        client: of the store.
        experiment: id of the experiment of new runs.
        queue: this object's and its maker's alone from now on.
        name: of the store, for people.
        say: prints a line; called from the thread.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, queue: Queue, name: str, say: Callable[[str], None]
    ) -> None:
        self._client = client
        self._experiment = experiment
        self._queue = queue
        self._name = name
        self._say = say
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._away_since: float | None = None
        self._alive = time.monotonic()
        self._alone_until = -math.inf
        """Up to this operation each is carried out alone: together they failed."""
        self._tries: dict[int, int] = {}
        """Operations that have failed, and how often each while the store took others."""
        self._marked = False
        """Whether the parent may have that tag."""
        self.may_exist: frozenset[str] = frozenset()
        """Trials whose run an earlier driver may have made without leaving a word of it in the queue."""
        self.trouble = ""
        """Why the store cannot be written to at the moment."""
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self._thread.start()

    def ask(self, operation: Operation) -> None:
        """Have an operation carried out, some time; takes well under a millisecond."""
        self._queue.ask(operation)
        with self._changed:
            self._changed.notify_all()

    def flush(self, patience: float, limit: float = math.inf, check: Callable[[], None] = lambda: None) -> bool:
        """Wait until all is written; returns whether it is.

        Args:
            patience: seconds without a sign of life from the store after which it is given up.
            limit: seconds after which it is given up even if it is alive.
            check: is called while it waits, and may raise.
        """
        start = time.monotonic()
        while self._queue.waiting:
            now = time.monotonic()
            if now - start > limit or (self.trouble and now - max(start, self._alive) >= patience):
                return False
            with self._changed:
                self._changed.wait(0.1)
            check()
        return True

    def close(self) -> None:
        """End the thread; what it is in the middle of, if that hangs, will be done again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(0.5)
        with self._changed:
            self._abandoned = True

    def end_now(self, runs: Sequence[str], operation: Callable[[str], Operation], limit: float) -> None:
        """End runs before all else that waits, several at a time; what is left when the time is over stays queued.

        Args:
            runs: that are open.
            operation: makes a run's end.
            limit: seconds.
        """
        now = [run for run in runs if self._queue.can_end(run)]
        for run in runs:
            self._queue.ask(operation(run), first=run in now)
        with self._changed:
            self._changed.notify_all()
        self.flush(patience=0, limit=limit)

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while self._await_operation():
            try:
                dealt_with = self._take_next()
            except Exception as error:  # whatever it is, no trial is to suffer
                if self._abandoned:
                    return
                self._leaves(error)
                dealt_with = False
            with self._changed:
                self._changed.notify_all()
                if not dealt_with:
                    self._changed.wait_for(lambda: self._closing, wait)
            wait = _FIRST_WAIT if dealt_with else min(2 * wait, _LONGEST_WAIT)

    def _await_operation(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue.waiting)
            return not self._closing

    def _take_next(self) -> bool:
        """Carry out what comes next; returns whether it is dealt with, be it by passing it over.

        Raises:
            Exception: the store takes nothing at all, or the queue's own disk is full.
        """
        batch = self._queue.batch(self._alone_until)
        if not batch:
            return True
        why = None
        try:
            self._carry_out(batch)
        except sqlite3.Error:  # the queue's: those of a store are MLflow's
            raise
        except Exception as error:
            self._tries.setdefault(batch[0][0], 0)
            if not self._takes_others(error):
                raise
            self._returns()
            if len(batch) > 1:
                self._alone_until = batch[-1][0]
                return True
            if not is_refusal(error):
                self._tries[batch[0][0]] += 1
                if self._tries[batch[0][0]] < _TRIES:
                    return False
                why = reason(error)
            operation = batch[0][1]
            if operation.do == "open" and self._queue.run(operation.run).run_id is None:
                why = reason(error)  # and so will be all that is asked for it
            kept = f"; it is kept in {REFUSED}, all else goes on" if why else ""
            what = {"model": "give a model to"}.get(operation.do, operation.do)
            self._say(f"MLflow refuses to {what} run {operation.run}: {reason(error)}{kept}")
        with self._changed:
            if self._abandoned:
                return True
            if why is None and batch[0][1].do != "open" and self._queue.run(batch[0][1].run).run_id is None:
                why = "its run could not be opened"
            if why is None:
                self._queue.done(batch)
            else:
                self._queue.set_aside(batch, why)
        self._tries.pop(batch[0][0], None)
        self._returns()
        return True

    def _takes_others(self, error: Exception) -> bool:
        """Whether the store has something against one operation, and is not away, full, or another one."""
        parent = self._queue.run(SWEEP).run_id
        if parent is None or is_outage(error):  # nothing has begun, or a full disk, which may take one small write
            return False
        try:
            if is_refusal(error):
                self._client.get_run(parent)
            else:
                self._marked = True
                self._client.set_tag(parent, _ALIVE, str(time.time()))
                self._unmark()
        except Exception:
            return False
        return True

    def _unmark(self) -> None:
        """Take the tag off that may have been left when an answer was lost."""
        try:
            self._client.delete_tag(str(self._queue.run(SWEEP).run_id), _ALIVE)
        except Exception as error:
            if not is_refusal(error):  # else it is not there
                raise
        self._marked = False

    def _carry_out(self, batch: Sequence[tuple[int, Operation]]) -> None:
        if batch[0][0] < 0:  # of different runs
            with ThreadPoolExecutor(len(batch)) as pool:
                list(pool.map(lambda one: self._write([one]), batch))
        else:
            self._write(batch)

    def _write(self, batch: Sequence[tuple[int, Operation]]) -> None:
        """Carry out operations of one run."""
        key, first = batch[0]
        operations = [operation for _, operation in batch]
        run_id = self._open(key, first) if first.do == "open" else self._queue.run(first.run).run_id
        if run_id is None:
            return
        metrics = {(name, value, o.time, o.step): None for o in operations for name, value in o.metrics.items()}
        params = {name: value for o in operations for name, value in o.params.items()}
        tags = {name: value for o in operations if o.do not in {"open", "model"} for name, value in o.tags.items()}
        if metrics or params or tags:
            self._client.log_batch(
                run_id,
                [Metric(*point) for point in metrics],
                [Param(*param) for param in params.items()],
                [RunTag(*tag) for tag in tags.items()],
            )
        if first.dataset:
            context = InputTag("mlflow.data.context", "training")
            self._client.log_inputs(run_id, [DatasetInput(Dataset(**first.dataset), [context])])
        if first.do == "model":
            self._write_model(run_id, first)
        elif first.do == "upload":
            self._upload(run_id, self._queue.folder / (first.source or FOLDER))
        elif operations[-1].do == "end":
            self._client.set_terminated(run_id, operations[-1].status, operations[-1].time)

    def _upload(self, run_id: str, source: Path) -> None:
        if source.is_file():
            self._client.log_artifact(run_id, str(source))
        else:
            fill_run_ids(source, self._queue.run_ids())
            self._client.log_artifacts(run_id, str(source))
            if (page := self._queue.folder / REPORT).exists():
                self._client.log_artifact(run_id, str(page))

    def _write_model(self, run_id: str, operation: Operation) -> None:
        """Let a run have a model of this name and these tags, or, without a name, none; one that is there is changed.

        MLflow keeps a record of it and no weights. A try whose answer was lost may have left one that is not finished.
        """
        ours = f"source_run_id = '{run_id}' and tags.`alast.trial` = '{operation.run}'"
        found = [model.model_id for model in self._client.search_logged_models([self._experiment], ours)]
        tags = dict(operation.tags)
        if not operation.source:
            for model_id in found:
                self._client.delete_logged_model(model_id)
            return
        if found:
            self._client.set_logged_model_tags(found[0], tags)
        else:
            kind = "checkpoint"
            model = self._client.create_logged_model(self._experiment, operation.source, run_id, tags, model_type=kind)
            found = [model.model_id]
        outputs = self._client.get_run(run_id).outputs
        if found[0] not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            self._client.log_outputs(run_id, [LoggedModelOutput(found[0], operation.step)])
        self._client.finalize_logged_model(found[0], "READY")

    def _open(self, key: int, operation: Operation) -> str:
        """Make a run, or mark it as running again; one made by a try whose answer was lost is found by its tags."""
        run_id = self._queue.run(operation.run).run_id
        unsure = key <= self._queue.inherited or key in self._tries or operation.run in self.may_exist
        if run_id is None and unsure:
            run_id = self._find(operation)
        if run_id is not None:
            self._client.update_run(run_id, "RUNNING")
        else:
            tags = dict(operation.tags)
            if operation.run != SWEEP:
                tags["mlflow.parentRunId"] = str(self._queue.run(SWEEP).run_id)
            run_id = str(self._client.create_run(self._experiment, operation.time, tags).info.run_id)
        self._queue.opened(operation.run, run_id)
        return run_id

    def _find(self, operation: Operation) -> str | None:
        identity = {name: operation.tags.get(name) for name in ("alast.sweep_id", "alast.kind", "alast.trial")}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items() if value)
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _leaves(self, error: Exception) -> None:
        self.trouble = reason(error)
        if self._away_since is None:
            self._away_since = time.monotonic()
            if self._queue.run(SWEEP).run_id is not None:  # else nothing has begun
                self._say(f"MLflow at {self._name} cannot be written to ({self.trouble}); all else goes on without it")

    def _returns(self) -> None:
        self.trouble, self._alive = "", time.monotonic()
        if self._marked:
            with suppress(Exception):
                self._unmark()
        if self._away_since is not None:
            gone, self._away_since = self._alive - self._away_since, None
            self._say(f"MLflow at {self._name} is back after {gone:.0f} s; {self._queue.waiting} writes to go")
