"""What a sweep's folder keeps of its way to MLflow, for whoever only reads: run ids, what is missing or refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

FILE = "mlflow-queue.db"
REFUSED = "mlflow-refused.jsonl"
"""What the store would not take while it took everything else, a line an operation."""
ENDED = "mlflow-runs"
"""Folder of what is known of runs that ended long ago, in files that never change."""
SWEEP = "sweep"
"""Key of the parent run, or of a training that is none; those of the children are their trials' ids."""

EXPERIMENT = "experiment"
"""What the queue notes: the name of the experiment that was asked for, if any was."""

ASKED, DONE = "mlflow-journal.jsonl", "mlflow-done.jsonl"
"""What the queue was up to version 0.1: read once, and removed."""


def run_ids(folder: Path) -> dict[int, str]:
    """Read which MLflow run each trial of a sweep has, by number, as far as they are known yet."""
    found: dict[str, str] = {}
    if (folder / DONE).exists():
        lines = [json.loads(line) for line in lines_of(folder / DONE)]
        found |= {line["run"]: line["run_id"] for line in lines if "run_id" in line}
    for file in sorted((folder / ENDED).glob("*.json")):
        found |= {run: run_id for run, run_id, *_ in json.loads(file.read_text())}
    found |= dict(_read(folder, "select run, run_id from runs where run_id is not null"))
    return {int(run): run_id for run, run_id in found.items() if run != SWEEP}


def sweep_run_id(folder: Path) -> str | None:
    """Read which MLflow run a sweep itself has; None if there is none yet."""
    return next((run_id for (run_id,) in _read(folder, f"select run_id from runs where run = '{SWEEP}'")), None)


def pending(folder: Path) -> int:
    """Count the writes of a sweep that MLflow does not have yet."""
    asked, done = (path.read_bytes().count(b"\n") if path.exists() else 0 for path in (folder / ASKED, folder / DONE))
    waiting = sum(count for (count,) in _read(folder, "select count(*) from operations"))
    return int(asked - done + waiting + len(refused_operations(folder)))


def refused_operations(folder: Path) -> list[dict[str, Any]]:
    """Read what was set aside, with the reasons."""
    file = folder / REFUSED
    return [json.loads(line) for line in lines_of(file)] if file.exists() else []


def has_queue(folder: Path) -> bool:
    """Whether anything was ever to be written to MLflow."""
    return (folder / FILE).exists() or (folder / ASKED).exists()


def _read(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask a queue that another process may have open; nothing of one that is not there."""
    if not (folder / FILE).exists():
        return []
    for how in ("mode=rw", "mode=ro&immutable=1"):  # the latter where nobody may write: SQLite wants to, beside it
        with (
            suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(f"{_uri(folder)}?{how}", uri=True)) as database,
        ):
            return database.execute(query).fetchall()
    return []


def _uri(folder: Path) -> str:
    return (folder / FILE).absolute().as_uri()


def lines_of(path: Path) -> list[str]:
    """Read lines, without one that is half written."""
    text = path.read_text(encoding="utf-8")
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]
