"""What shall be written to MLflow, kept in the sweep's folder until it is."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alast_tune.errors import ConfigError
from alast_tune.storage import atomic_write
from alast_tune.tracking.kept import ASKED, DONE, ENDED, FILE, REFUSED, SWEEP, lines_of, refused_operations
from alast_tune.tracking.operation import Operation, Run, after, read_operation

_SCHEMA = """
create table operations (id integer primary key autoincrement, run text not null, body text not null);
create index operations_of_run on operations (run, id);
create table runs (run text primary key, run_id text, status text, step integer not null default 0, place text)
    without rowid;
create table facts (name text primary key, value text not null) without rowid;
"""

_TOGETHER = 100
"""So many operations of one run at most are carried out with one request."""

_AT_ONCE = 8
"""So many runs at most are ended at the same time."""

_KEPT = 200
"""Once there are twice as many ended runs in the database, so many go into a file that never changes."""


class Queue:
    """The operations of a sweep that are not done yet, in order, and what is known of its runs.

    A SQLite database: every call is one transaction, so that a process killed at any moment loses nothing. What is
    done is deleted. May be used from several threads.

    Args:
        folder: of the sweep; only one process may have its queue open.

    Raises:
        ConfigError: a file that is no queue.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._unsaved: list[tuple[Operation, bool]] = []
        self._ended: dict[str, Run] | None = None
        try:
            self._database = sqlite3.connect(folder / FILE, check_same_thread=False)
            self._database.execute("pragma journal_mode=wal")
            self._database.execute("pragma synchronous=normal")
            if not self._database.execute("select count(*) from sqlite_master").fetchone()[0]:
                self._database.executescript(f"begin; {_SCHEMA} commit;")
            self._adopt()
            (self.inherited,) = self._one("select coalesce(max(id), 0) from operations")
        except sqlite3.OperationalError:
            raise  # a full disk, say
        except sqlite3.DatabaseError:
            remedy = f"is damaged; move it away, and {ENDED}: the sweep goes on with new runs"
            raise ConfigError("sweep", folder / FILE, remedy) from None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def ask(self, operation: Operation, *, first: bool = False) -> None:
        """Add an operation, at the front if it is to be the first; on a full disk it is kept in memory meanwhile."""
        with self._lock:
            self._unsaved.append((operation, first))
            with suppress(sqlite3.OperationalError):
                self._save()

    def batch(self, alone_until: float = -math.inf) -> list[tuple[int, Operation]]:
        """Give the first operation, and those of its run that can be carried out with it; empty if none waits.

        Ends that were asked for as the first come together, those of several runs.

        Args:
            alone_until: up to this key an operation is given alone.

        Raises:
            sqlite3.OperationalError: the disk is full, and all that waits is in memory.
        """
        with self._lock:
            with suppress(sqlite3.OperationalError):
                self._save()
            head = self._database.execute("select id, run from operations order by id limit 1").fetchone()
            if head is None:
                self._save()
                return []
            values: tuple[Any, ...]
            most = 1 if head[0] <= alone_until else _TOGETHER
            if head[0] < 0:
                query, values = (
                    "select id, body from operations where id < 0 order by id limit ?",
                    (min(most, _AT_ONCE),),
                )
            else:
                query = "select id, body from operations where run = ? and id >= ? order by id limit ?"
                values = (head[1], head[0], most)
            rows = [(key, read_operation(body)) for key, body in self._database.execute(query, values)]
        if head[0] < 0:
            return rows
        found = rows[:1]
        for key, operation in rows[1:] if found[0][1].do in {"open", "log"} else []:
            # A sweep ends when all that was asked for before has been done.
            if operation.do == "log" or (operation.do == "end" and operation.run != SWEEP):
                found.append((key, operation))
            if operation.do != "log":
                break
        return found

    def done(self, batch: Sequence[tuple[int, Operation]]) -> None:
        """Forget operations that have been carried out.

        Raises:
            sqlite3.OperationalError: that cannot be written down.
        """
        with self._lock, self._database:
            self._database.executemany("delete from operations where id = ?", [(key,) for key, _ in batch])
            if batch[-1][1].do == "end":
                self._put_away()

    def opened(self, run: str, run_id: str) -> None:
        """Note MLflow's id of a run.

        Raises:
            sqlite3.OperationalError: that cannot be written down.
        """
        with self._lock, self._database:
            self._know(run, run_id=run_id)

    def set_aside(self, batch: Sequence[tuple[int, Operation]], why: str) -> None:
        """Keep operations in a file of their own instead, with the reason; :meth:`retry` brings them back.

        Raises:
            OSError: the file cannot be written.
            sqlite3.OperationalError: nor the database.
        """
        with self._lock:
            with (self.folder / REFUSED).open("a", encoding="utf-8") as file:
                for _, operation in batch:
                    file.write(json.dumps(json.loads(operation.body()) | {"why": why}) + "\n")
            self.done(batch)

    def retry(self) -> None:
        """Ask again for all that was set aside."""
        with self._lock:
            for line in refused_operations(self.folder):
                self.ask(read_operation(json.dumps({name: value for name, value in line.items() if name != "why"})))
            self._save()
            (self.folder / REFUSED).unlink(missing_ok=True)

    @property
    def waiting(self) -> int:
        """How many operations are not done yet."""
        with self._lock:
            return int(self._one("select count(*) from operations")[0]) + len(self._unsaved)

    @property
    def sweep_id(self) -> str:
        """Of the sweep, ours and unique: tells its runs from those of all others; empty before it has begun."""
        with self._lock:
            unsaved = (operation.tags.get("alast.sweep_id", "") for operation, _ in self._unsaved)
            found = self._one("select coalesce((select value from facts where name = 'sweep_id'), '')")[0]
            return str(found) or next(filter(None, unsaved), "")

    def run(self, run: str) -> Run:
        """Tell what is known of a run."""
        with self._lock:
            with suppress(sqlite3.OperationalError):
                self._save()
            row = self._database.execute("select run_id, status, step, place from runs where run = ?", (run,))
            known = next((Run(*values) for values in row), None) or self._long_ended().get(run) or Run()
            for operation, _ in self._unsaved:
                if operation.run == run:
                    known = after(known, operation)
            return known

    def open_runs(self) -> list[str]:
        """Name the runs that are neither ended nor about to be, the parent last."""
        with self._lock:
            names = [name for (name,) in self._database.execute("select run from runs where status = ''")]
            names += [operation.run for operation, _ in self._unsaved if operation.do == "open"]
            return sorted((name for name in set(names) if self.run(name).status == ""), key=lambda name: name == SWEEP)

    def can_end(self, run: str) -> bool:
        """Whether a run may be ended before all else that waits: it has been opened, and nothing reopens it."""
        query = "select body from operations where run = ? order by id"
        with self._lock:
            waiting = [read_operation(body) for (body,) in self._database.execute(query, (run,))]
            return self.run(run).run_id is not None and all(operation.do != "open" for operation in waiting)

    def run_ids(self) -> dict[str, str]:
        """MLflow's id of each run that has been opened."""
        with self._lock:
            known = {run: one.run_id for run, one in self._long_ended().items() if one.run_id}
            return known | dict(self._database.execute("select run, run_id from runs where run_id is not null"))

    def places(self) -> dict[str, dict[str, str]]:
        """Tags that say how runs stand to the front, of those that are or were on it."""
        with self._lock:
            rows = self._database.execute("select run, place from runs where place is not null")
            return {run: json.loads(place) for run, place in rows}

    def placed(self, run: str, place: Mapping[str, str]) -> None:
        """Note the tags that say how a run stands to the front."""
        with self._lock, suppress(sqlite3.OperationalError), self._database:  # else they are asked for again
            self._know(run, place=json.dumps(place))

    def fact(self, name: str) -> Any:
        """Read what :meth:`note` wrote down; None if there is nothing."""
        with self._lock:
            found = self._one("select (select value from facts where name = ?)", name)[0]
            return None if found is None else json.loads(found)

    def note(self, name: str, value: Any) -> None:
        """Write down something about the sweep that later drivers have to know."""
        with self._lock, suppress(sqlite3.OperationalError), self._database:  # else it is made up for again
            self._database.execute("insert or replace into facts values (?, ?)", (name, json.dumps(value)))

    def _save(self) -> None:
        """Write down what is only in memory."""
        while self._unsaved:
            operation, first = self._unsaved[0]
            with self._database:
                where = "(select min(coalesce(min(id), 0), 0) - 1 from operations)" if first else "null"
                insert = f"insert into operations (id, run, body) values ({where}, ?, ?)"
                self._database.execute(insert, (operation.run, operation.body()))
                self._know_of(operation)
            del self._unsaved[0]

    def _know_of(self, operation: Operation) -> None:
        """Add what an operation tells of its run and of the sweep, within a transaction."""
        run = after(Run(), operation)
        self._know(operation.run, status=run.status, step=run.step)
        if sweep_id := operation.tags.get("alast.sweep_id"):
            self._database.execute("insert or ignore into facts values ('sweep_id', ?)", (sweep_id,))

    def _know(self, run: str, **values: object) -> None:
        """Add to what is known of a run, within a transaction."""
        old = self._long_ended().get(run)
        row = (run, old.run_id, old.status, old.step, old.place) if old else (run, None, None, 0, None)
        self._database.execute("insert or ignore into runs values (?, ?, ?, ?, ?)", row)
        for name, value in values.items():
            if value is not None:
                new = "max(step, ?)" if name == "step" else "?"
                self._database.execute(f"update runs set {name} = {new} where run = ?", (value, run))

    def _put_away(self) -> None:
        """Move what is known of runs that ended long ago out of the database, which is small then: it is sent whole."""
        settled = """status != '' and run_id is not null and place is null and run != ?
            and not exists (select 1 from operations where operations.run = runs.run)"""
        if self._one(f"select count(*) from runs where {settled}", SWEEP)[0] < 2 * _KEPT:
            return
        query = f"select run, run_id, status, step from runs where {settled} order by run limit ?"
        rows = self._database.execute(query, (SWEEP, _KEPT)).fetchall()
        folder = self.folder / ENDED
        number = len(list(folder.glob("*.json"))) if folder.exists() else 0
        with atomic_write(folder / f"{number:05d}.json") as scratch:
            scratch.write_text(json.dumps(rows))
        self._long_ended().update({run: Run(*known) for run, *known in rows})
        self._database.executemany("delete from runs where run = ?", [row[:1] for row in rows])

    def _long_ended(self) -> dict[str, Run]:
        if self._ended is None:
            files = sorted((self.folder / ENDED).glob("*.json"))
            self._ended = {run: Run(*known) for file in files for run, *known in json.loads(file.read_text())}
        return self._ended

    def _adopt(self) -> None:
        """Take over the journal of an older version, and remove it."""
        asked, done = self.folder / ASKED, self.folder / DONE
        if asked.exists() and not self._one("select count(*) from facts where name = 'adopted'")[0]:
            try:
                operations = [read_operation(line) for line in lines_of(asked)]
                carried_out = [json.loads(line) for line in lines_of(done)] if done.exists() else []
                runs = {line["run"]: line["run_id"] for line in carried_out if "run_id" in line}
                if len(carried_out) > len(operations):
                    raise ValueError
            except (TypeError, KeyError, ValueError):
                raise ConfigError("sweep", asked, f"is damaged; move it and {DONE} away") from None
            with self._database:
                for place, operation in enumerate(operations):
                    self._know_of(operation)
                    if place >= len(carried_out):
                        row = (operation.run, operation.body())
                        self._database.execute("insert into operations (run, body) values (?, ?)", row)
                for run, run_id in runs.items():
                    self._know(run, run_id=run_id)
                self._database.execute("insert into facts values ('adopted', '')")
        for file in (asked, done):
            file.unlink(missing_ok=True)

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._database.execute(query, values).fetchone()
        return found
