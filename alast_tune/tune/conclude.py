"""Make from a sweep's study all that people look at: once at its end, and again whenever they ask."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import optuna
from rich.console import Console
from threadpoolctl import threadpool_limits

from alast_tune.blocks import BlockReport
from alast_tune.config import SweepConfig, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.lease import exclusive_driver
from alast_tune.other_seeds import with_knee_of_means
from alast_tune.results import FrontFile, Reseeded, TrialResult
from alast_tune.storage import STUDY, display_path, fetch
from alast_tune.summary import summarise, trial_id
from alast_tune.tracking import Tracker, default_uri, run_ids
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.attributes import VALIDATION_IMAGES
from alast_tune.tune.cluster import Stop, stopped_by_signals
from alast_tune.tune.insight import report_search
from alast_tune.tune.region import fixed_region
from alast_tune.tune.storage_errors import as_storage_error
from alast_tune.tune.trials import open_study, results

SEARCHED = "searched"
"""The study's attribute that says that no trial is left to run."""


def report(folder: Path, console: Console) -> FrontFile:
    """Write a sweep's ``front.json``, its pages and its MLflow runs' tags again, from its study alone.

    Needs no cluster, no images and no checkpoints. A sweep that has trials left to run keeps them for ``--resume``.

    Args:
        folder: of the sweep, which no driver may be running.
        console: for lines about outages and pages that cannot be drawn.

    Raises:
        ConfigError: not the folder of a sweep, or a store that does not answer or is another one.
    """
    fetch(folder)
    if not (folder / "sweep.json").exists():
        raise ConfigError("sweep", folder, "has no sweep.json: it is not the folder of a sweep")
    sweep = stored_sweep(folder)
    if sweep.study == "sqlite" and not (folder / STUDY).exists():
        raise ConfigError("sweep", sweep.name, f"has no {STUDY}: there is nothing to report")

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with (
        threadpool_limits(limits=1),
        as_storage_error(folder),
        exclusive_driver(folder, "sweep", say),
        stopped_by_signals() as stop,
        Tracker(default_uri(sweep.storage), sweep.storage, say, sweep.experiment) as tracker,
    ):
        study = open_study(sweep, folder, alone=True)
        if "reference_point" not in study.user_attrs:
            raise ConfigError("sweep", sweep.name, "its study is empty: there is nothing to report")
        over = tracker.ended(folder) or bool(study.user_attrs.get(SEARCHED))
        study.set_user_attr(SEARCHED, over)  # an older version has not said so, and this may be stopped
        tracker.start_sweep(sweep)
        conclude(sweep, study, tracker, stop, say, "FINISHED" if over else "KILLED")
    return FrontFile.read(folder / "front.json")


def conclude(
    sweep: SweepConfig,
    study: optuna.Study,
    tracker: Tracker,
    stop: Stop,
    say: Callable[[str], None],
    status: Literal["FINISHED", "KILLED"] = "FINISHED",
) -> list[TrialResult]:
    """Write ``front.json``, draw the pages, tag the runs and end MLflow's parent.

    Args:
        sweep: as it was asked for.
        study: with its trials, and what the cluster has told of the front's members.
        tracker: of the sweep, started.
        stop: whether to stop; what is missing then is made up for by :func:`report`.
        say: prints a line.
        status: of MLflow's parent.

    Returns:
        The trials, by number.
    """
    folder = sweep.storage / sweep.name
    found = results(study, sweep, run_ids(folder))
    tracker.reconcile_runs(found)
    ended = [result for result in found if result.state != "running"]
    images = study.user_attrs.get(VALIDATION_IMAGES)
    reference, region = study.user_attrs["reference_point"], fixed_region(study, sweep)
    front = summarise(sweep.name, ended, reference, None, sweep.limits, images, region)
    front = with_knee_of_means(front, Reseeded.find(folder))
    front.write(folder / "front.json")
    try:
        stop.check()
        drawings = report_search(study, sweep), _blocks(folder, front, ended)
        tracker.log_front(front, found, *drawings, stop.check, _weights(folder, front))
        tracker.end_sweep(status, stop.check)
    except (SystemExit, KeyboardInterrupt):
        say(
            f"stopped before all of {sweep.name} was reported; "
            f"alast-tune report {shlex.quote(display_path(folder))} does it"
        )
        raise
    return results(study, sweep, run_ids(folder))


def blocks_file(folder: Path, number: int) -> Path:
    """Where a sweep keeps what a trial's last checkpoint told of its blocks."""
    return folder / "blocks" / f"{trial_id(number)}.npz"


def drawn(front: FrontFile, ended: Sequence[TrialResult]) -> list[TrialResult]:
    """Trials whose blocks are drawn: the knee's and the paper's configuration, the knee first."""
    complete = [result for result in ended if result.state == "complete" and result.values]
    knee = [result for result in complete if trial_id(result.number) == front.knee]
    return knee + [result for result in complete if result.baseline == "paper" and result not in knee]


def _weights(folder: Path, front: FrontFile) -> dict[str, str]:
    """Find each member's last checkpoint, by trial id; a member of an earlier sweep has none here."""
    own = [member.trial_id for member in front.front if member.origin is None]
    newest = {name: next(iter(checkpoints(folder, int(name))), None) for name in own}
    return {name: address for name, address in newest.items() if address is not None}


def _blocks(folder: Path, front: FrontFile, ended: list[TrialResult]) -> dict[int, BlockReport]:
    """Read what is known of the blocks of the knee and of the paper's configuration, the knee first."""
    files = {trial.number: blocks_file(folder, trial.number) for trial in drawn(front, ended)}
    return {number: BlockReport.read(file) for number, file in files.items() if file.exists()}
