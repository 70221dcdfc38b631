"""Carries a journal's operations out, in a thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from alast_tune.tracking.journal import SWEEP, Journal, Operation
from alast_tune.tracking.page import FOLDER, fill_run_ids
from alast_tune.tracking.store import is_refusal, reason

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds between two tries; a server that is gone says so at once


class Writer:
    """Writes what is in a journal to MLflow, in order, each as often as it takes.

    What MLflow refuses is passed over, and said; any other failure is an outage, of which it says when it begins
    and when it is over.

    Args:
        client: of the store.
        experiment: id of the experiment of new runs.
        journal: this object's alone from now on.
        name: of the store, for people.
        say: prints a line; called from the thread.
    """

    def __init__(
        self, client: MlflowClient, experiment: str, journal: Journal, name: str, say: Callable[[str], None]
    ) -> None:
        self._client = client
        self._experiment = experiment
        self._journal = journal
        self._name = name
        self._say = say
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._away_since: float | None = None
        self._alive = time.monotonic()
        self.trouble = ""
        """Why the store cannot be written to at the moment."""
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)
        self._thread.start()

    def ask(self, operation: Operation) -> None:
        """Have an operation carried out, some time; takes well under a millisecond."""
        with self._changed:
            self._journal.ask(operation)
            self._changed.notify_all()

    def flush(self, patience: float, limit: float = math.inf, check: Callable[[], None] = lambda: None) -> bool:
        """Wait until all is written; returns whether it is.

        Args:
            patience: seconds without a sign of life from the store after which it is given up.
            limit: seconds after which it is given up even if it is alive.
            check: is called while it waits, and may raise.
        """
        start = time.monotonic()
        with self._changed:
            while self._journal.waiting:
                now = time.monotonic()
                if now - start > limit or (self.trouble and now - max(start, self._alive) >= patience):
                    return False
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

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while operation := self._await_operation():
            try:
                run_id = self._carry_out(operation)
                with self._changed:
                    if self._abandoned:
                        return
                    self._journal.done(run_id)
                    self._changed.notify_all()
            except Exception as error:  # whatever it is, no trial is to suffer
                self._leaves(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._returns()
                wait = _FIRST_WAIT

    def _await_operation(self) -> Operation | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._journal.waiting)
            return None if self._closing else self._journal.waiting[0]

    def _carry_out(self, operation: Operation) -> str | None:
        """Carry out or, if MLflow refuses it, pass over; returns the id of a run just opened."""
        try:
            return self._write(operation)
        except Exception as error:
            if not is_refusal(error):
                raise
            if SWEEP in self._journal.runs:
                self._client.get_run(self._journal.runs[SWEEP])  # else it is another store that answers
            self._say(f"MLflow refuses to {operation.do} run {operation.run}: {reason(error)}")
            return None

    def _write(self, operation: Operation) -> str | None:
        opens = operation.do == "open"
        run_id = self._open(operation) if opens else self._journal.runs.get(operation.run)
        if run_id is None:  # refused when it was to be opened
            return None
        metrics = [Metric(name, value, operation.time, operation.step) for name, value in operation.metrics.items()]
        params = [Param(name, value) for name, value in operation.params.items()]
        tags = [] if opens else [RunTag(name, value) for name, value in operation.tags.items()]
        if metrics or params or tags:
            self._client.log_batch(run_id, metrics, params, tags)
        if operation.do == "upload":
            self._upload(run_id, self._journal.folder / (operation.source or FOLDER))
        elif operation.do == "end":
            self._client.set_terminated(run_id, operation.status, operation.time)
        return run_id if opens else None

    def _upload(self, run_id: str, source: Path) -> None:
        if source.is_file():
            self._client.log_artifact(run_id, str(source))
        else:
            fill_run_ids(source, self._journal.runs)
            self._client.log_artifacts(run_id, str(source))

    def _open(self, operation: Operation) -> str:
        """Make a run, or mark it as running again; one made by a try whose answer was lost is found by its tags."""
        run_id = self._journal.runs.get(operation.run) or self._find(operation)
        if run_id is not None:
            self._client.update_run(run_id, "RUNNING")
            return run_id
        tags = dict(operation.tags)
        if operation.run != SWEEP:
            tags["mlflow.parentRunId"] = self._journal.runs[SWEEP]
        return str(self._client.create_run(self._experiment, operation.time, tags).info.run_id)

    def _find(self, operation: Operation) -> str | None:
        identity = {name: operation.tags.get(name) for name in ("alast.sweep_id", "alast.kind", "alast.trial")}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items() if value)
        found = self._client.search_runs([self._experiment], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _leaves(self, error: Exception) -> None:
        self.trouble = reason(error)
        if self._away_since is None:
            self._away_since = time.monotonic()
            if SWEEP in self._journal.runs:  # else nothing has begun
                self._say(f"MLflow at {self._name} cannot be written to ({self.trouble}); all else goes on without it")

    def _returns(self) -> None:
        self.trouble, self._alive = "", time.monotonic()
        if self._away_since is not None:
            gone, self._away_since = self._alive - self._away_since, None
            self._say(f"MLflow at {self._name} is back after {gone:.0f} s; {len(self._journal.waiting)} writes to go")
