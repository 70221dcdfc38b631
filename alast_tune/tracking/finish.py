"""Waiting until MLflow has all of a sweep: at its end, or later from its queue alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from alast_tune.errors import ConfigError
from alast_tune.results import RESEEDED, Reseeded
from alast_tune.tracking.kept import EXPERIMENT, FILE, REFUSED, SWEEP, has_queue, refused_operations
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.page import FOLDER, fill_run_ids
from alast_tune.tracking.queue import Queue
from alast_tune.tracking.store import experiment_of, open_store
from alast_tune.tracking.writer import Writer

PATIENCE = 30.0
"""So many seconds the end of a sweep waits for a store that is away: as long as a server takes to start again."""

LONGEST_WAIT = 600.0
"""So many seconds the end of a sweep waits at most, however slowly the store takes what it has missed."""


def sync(folder: Path, uri: str, say: Callable[[str], None]) -> int:
    """Write to MLflow what a sweep could not; returns how many writes are left nevertheless.

    Args:
        folder: of the sweep, which no driver may be running.
        uri: of the store in which the sweep began.
        say: prints a line.

    Raises:
        ConfigError: not the folder of a sweep, or a store that does not answer or is another one.
    """
    if not has_queue(folder):
        raise ConfigError("sweep", folder, f"has no {FILE}: nothing of it was ever to be written to MLflow")
    queue = Queue(folder)
    client, experiment = open_store(uri, folder.parent, queue.fact(EXPERIMENT))
    queue.retry()
    if parent := queue.run(SWEEP).run_id:
        experiment = experiment_of(client, uri, parent)
    count = queue.waiting
    left = finish(Writer(client, experiment, queue, uri, say), queue, uri, say)
    if not left:
        say(f"MLflow at {uri} has all of {folder.name} ({count} writes)")
    return left


def log_reseeded(reseeded: Reseeded, folder: Path) -> None:
    """Ask for what a front's members come to over seeds to be on their runs and the parent; :func:`sync` writes it."""
    queue, now = Queue(folder), int(time.time() * 1000)
    for member in reseeded.members:
        metrics = {f"reseeded_{name}": value for name, value in member.mean.items()}
        metrics |= {
            "reseeded_accuracy_spread": member.spread["accuracy"],
            "front_probability": member.front_probability,
        }
        if queue.run(member.trial_id).status is not None:  # else it is another sweep's
            queue.ask(Operation(member.trial_id, "log", now, metrics=metrics))
    reseeded.write(folder / FOLDER / RESEEDED)
    queue.ask(Operation(SWEEP, "upload", now))
    queue.close()


def finish(
    writer: Writer,
    queue: Queue,
    uri: str,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> int:
    """Wait until all is written, or for as long as there is hope; returns how many writes are left."""
    writer.flush(PATIENCE, LONGEST_WAIT, check)
    writer.close()
    fill_run_ids(queue.folder, queue.run_ids())
    left, set_aside = queue.waiting, len(refused_operations(queue.folder))
    command = f"alast-tune sync {shlex.quote(str(queue.folder))}"
    if left:
        why = writer.trouble or "it is slow"
        say(
            f"MLflow at {uri} lacks {left} writes ({why}), which are kept in {queue.folder / FILE}; "
            f"once it is back: {command}"
        )
    if set_aside:
        say(
            f"MLflow at {uri} has refused {set_aside} writes, which are kept in {queue.folder / REFUSED} "
            f"with the reasons; once it takes them: {command}"
        )
    queue.close()
    return left + set_aside
