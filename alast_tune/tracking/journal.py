"""What shall be written to MLflow, kept in the sweep's folder until it is."""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from alast_tune.errors import ConfigError

ASKED = "mlflow-journal.jsonl"
DONE = "mlflow-done.jsonl"
SWEEP = "sweep"
"""Key of the parent run, or of a training that is none; those of the children are their trials' ids."""


@dataclass(frozen=True)
class Operation:
    """One write to MLflow; carried out twice it leaves what it leaves once.

    Runs go by keys of ours, since MLflow's ids are known only once it has made them.
    """

    run: str
    do: Literal["open", "log", "end", "upload"]
    time: int
    """When it was asked for, in ms since 1970: what MLflow shows, whenever it is carried out."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    status: Literal["", "FINISHED", "FAILED", "KILLED"] = ""
    source: str = ""
    """What is uploaded, a file or folder in the journal's; unset: the front's pages."""

    def line(self) -> bytes:
        """Put into a line of JSON, without what is empty."""
        return _line({name: value for name, value in asdict(self).items() if value})


class Journal:
    """The operations of a sweep that are not done yet, in order, and what is known from those that are.

    Two files that only grow, one written by the driver and one by the writer's thread; a process killed at any
    moment leaves at worst half a line, which the next one removes.

    Args:
        folder: of the sweep; only one process may have its journal open.

    Raises:
        ConfigError: a line that is not an operation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: deque[Operation] = deque()
        self.runs: dict[str, str] = {}
        """MLflow's id of each run that has been opened."""
        self.status: dict[str, str] = {}
        """How each run was left by the last operation asked for; empty for an open one."""
        self.steps: dict[str, int] = {}
        """The last step that anything was logged at, of each run."""
        self.sweep_id = ""
        """Of the sweep, ours and unique: tells its runs from those of all others."""
        self._unsaved = b""
        for name in (ASKED, DONE):
            _mend(folder / name)
        try:
            done = _read(folder / DONE)
            for line in _read(folder / ASKED):
                self._add(Operation(**line))
            for line in done:
                self.waiting.popleft()
                if "run_id" in line:
                    self.runs[line["run"]] = line["run_id"]
        except (TypeError, KeyError, IndexError, json.JSONDecodeError):
            raise ConfigError("sweep", folder / ASKED, "is damaged; move it and mlflow-done.jsonl away") from None

    def ask(self, operation: Operation) -> None:
        """Add an operation; on a full disk it is kept in memory until there is room."""
        self._add(operation)
        self._unsaved += operation.line()
        with suppress(OSError):
            self._save()

    def done(self, run_id: str | None) -> None:
        """Count the first of those waiting as done; an ``open`` gives its run's id.

        Raises:
            OSError: it cannot be written down.
        """
        self._save()  # or more would be done than was ever asked for
        run = self.waiting[0].run
        _append(self.folder / DONE, _line({"run": run} | ({"run_id": run_id} if run_id else {})))
        if run_id:
            self.runs[run] = run_id
        self.waiting.popleft()

    def _save(self) -> None:
        if self._unsaved:
            _append(self.folder / ASKED, self._unsaved)
            self._unsaved = b""

    def _add(self, operation: Operation) -> None:
        self.waiting.append(operation)
        if operation.do in {"open", "end"}:
            self.status[operation.run] = operation.status
        self.steps[operation.run] = max(operation.step, self.steps.get(operation.run, 0))
        self.sweep_id = self.sweep_id or operation.tags.get("alast.sweep_id", "")


def run_ids(folder: Path) -> dict[int, str]:
    """Read which MLflow run each trial of a sweep has, by number, as far as they are known yet."""
    lines = _read(folder / DONE) if (folder / DONE).exists() else []
    return {int(line["run"]): line["run_id"] for line in lines if "run_id" in line and line["run"] != SWEEP}


def pending(folder: Path) -> int:
    """Count the writes of a sweep that MLflow does not have yet."""
    asked, done = (path.read_bytes().count(b"\n") if path.exists() else 0 for path in (folder / ASKED, folder / DONE))
    return asked - done


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _append(path: Path, text: bytes) -> None:
    """Write at the end of a file, all or nothing."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise


def _read(path: Path) -> list[dict[str, Any]]:
    """Read lines of JSON, without one that is half written."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _mend(path: Path) -> None:
    """Make a file if it is not there; cut off what a killed process has left of a line."""
    path.touch()
    text = path.read_bytes()
    os.truncate(path, text.rfind(b"\n") + 1)
