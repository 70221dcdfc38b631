"""Build, run and resume a sweep."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from rich.console import Console
from threadpoolctl import threadpool_limits

from alast_tune.callbacks import Callbacks
from alast_tune.choices import space_words, with_auto_space, with_space_of
from alast_tune.config import SweepConfig, check_sweep_effects, stored_sweep, with_absolute_paths
from alast_tune.data import check_apart
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints, fingerprints, keep_fingerprints
from alast_tune.lease import SweepLease, exclusive_driver
from alast_tune.methods import build_method, with_blocks_chosen
from alast_tune.other_seeds import flops_of_seeds, with_knee_of_means
from alast_tune.phases import phases_of
from alast_tune.results import Reseeded, TrialResult
from alast_tune.run import load_trial
from alast_tune.storage import CHECKPOINTS, address_of, atomic_write, fetch, is_copy
from alast_tune.summary import trial_id
from alast_tune.terminal import printer
from alast_tune.tracking import Tracker, default_uri, is_file_based
from alast_tune.tune.attempts import checkpoints, next_attempt
from alast_tune.tune.attributes import VALIDATION_IMAGES
from alast_tune.tune.budget import Budget
from alast_tune.tune.callback_observer import CallbackObserver
from alast_tune.tune.cluster import Stop, check_cluster, cluster, stopped_by_signals
from alast_tune.tune.conclude import SEARCHED, blocks_file, conclude
from alast_tune.tune.feasible import check_limits
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.members import CheckpointTasks, block_reports, score
from alast_tune.tune.observer import SweepObserver, TuneEvents
from alast_tune.tune.region import fixed_region
from alast_tune.tune.resources import packing_of, placement
from alast_tune.tune.retention import keep_front
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.space import full_config
from alast_tune.tune.storage_errors import as_storage_error
from alast_tune.tune.trainable import AlastTrainable
from alast_tune.tune.trials import (
    baselines,
    enqueue_failed,
    enqueue_first,
    name_metrics,
    open_study,
    results,
)
from alast_tune.tune.warm_start import Earlier, best_points, earlier_results, feed

MARGIN = 1.1
"""The reference point lies at this multiple of the cost of full fine-tuning."""


@dataclass(frozen=True)
class Prepared:
    """A sweep whose settings are known to work; nothing of it has been written yet."""

    sweep: SweepConfig
    """With absolute paths."""
    resume: bool
    retry_failed: bool
    """Run trials that have failed again."""
    uri: str
    """Of the MLflow store."""
    reference: tuple[float, float, float]
    validation_images: int
    """How many."""
    origin: Fingerprints
    """Of the images and the starting weights."""
    forecast: Forecast
    earlier: Sequence[Earlier]
    """What a new sweep begins with, of the one that it is warm-started from."""
    console: Console
    say: Callable[[str], None]
    """Prints a line as it is."""

    @property
    def folder(self) -> Path:
        """Where the sweep is kept."""
        return self.sweep.storage / self.sweep.name


def run_sweep(
    sweep: SweepConfig,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    console: Console | None = None,
    callbacks: Sequence[object] = (),
) -> list[TrialResult]:
    """Run a sweep to its end, or go on with one that was interrupted in whatever way.

    Leaves ``front.json``, the study and the trials' checkpoints in ``<storage>/<name>``, and
    everything in MLflow. What changes results may not differ when resuming.

    Args:
        sweep: what to search, and where to keep it.
        resume: go on with the sweep of this name.
        retry_failed: run trials that have failed again.
        console: for people; unset: standard error.
        callbacks: told what happens, see :mod:`alast_tune.callbacks`.

    Raises:
        ConfigError: whatever cannot work, before any trial starts.
    """
    console = console or Console(stderr=True)
    told = Callbacks(callbacks, printer(console))
    prepared = prepare(sweep, resume=resume, retry_failed=retry_failed, console=console)
    # One thread: on a busy machine those of one process wait for one another many times as long as they work.
    with (
        threadpool_limits(limits=1),
        as_storage_error(prepared.folder),
        exclusive_driver(prepared.folder, say=prepared.say) as lease,
        stopped_by_signals() as stop,
        Tracker(prepared.uri, prepared.sweep.storage, prepared.say, prepared.sweep.experiment) as tracker,
    ):
        try:
            with cluster():
                stop.listen()  # Ray has put its own handler in their place
                study = search(prepared, lease, tracker, stop, told)
            found = conclude(prepared.sweep, study, tracker, stop, prepared.say)
            if prepared.sweep.keep == "front":
                keep_front(prepared.folder, prepared.sweep, study, stop.check, prepared.say)
        finally:
            told.end(prepared.folder / "front.json")
        return found


def prepare(sweep: SweepConfig, *, resume: bool, retry_failed: bool, console: Console) -> Prepared:
    """Try out whatever can be tried without a cluster: settings, images, weights, the method, earlier results.

    Raises:
        ConfigError: what cannot work.
    """
    sweep = _with_absolute_paths(sweep)
    check_cluster()
    check_apart(sweep.trial.data, "storage", sweep.storage)
    folder = sweep.storage / sweep.name
    fetch(folder)
    if resume:
        stored = stored_sweep(folder)
        sweep = with_space_of(sweep, stored)
        if isinstance(sweep.begin_with, Path):  # which was made out when the sweep began
            sweep = sweep.model_copy(update={"begin_with": stored.begin_with})
        if differs := sweep.difference(stored):
            remedy = f"was started with other settings ({differs}); only --trials, places and resources may change"
            raise ConfigError("resume", sweep.name, remedy)
    elif (folder / "sweep.json").exists():
        raise ConfigError(
            "name", sweep.name, f"already exists; go on with --resume {sweep.name}, or choose another --name"
        )
    uri = default_uri(sweep.storage)
    if is_file_based(uri) and is_copy(folder):
        remedy = "the sweep shall outlive this machine, and so must its runs; set it to a server's http address"
        raise ConfigError("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "not set"), remedy)
    say = printer(console)
    if not sweep.space:
        sweep = with_auto_space(sweep)
        say(f"space: {', '.join(space_words(sweep.space))}")
    if isinstance(source := sweep.begin_with, Path):
        points = best_points(sweep)
        sweep = sweep.model_copy(update={"begin_with": points})
        say(f"begins with the {len(points)} best points of {address_of(source)}")
    if not resume:
        check_sweep_effects(sweep)
    model, splits = load_trial(sweep.trial)
    for note in splits.notes:
        say(f"note: {note}")
    build_method(with_blocks_chosen(sweep.trial.method), model, sweep.trial.train)  # what cannot work says so here
    phases_of(sweep.trial.train, model)
    origin = fingerprints(splits, sweep.trial.model)
    forecast = Forecast()
    forecast.look_at(sweep.trial, model, splits)  # before there is much else in memory
    reference = reference_point(sweep, forecast)
    if not resume and sweep.warm_start is None:
        check_limits(sweep, forecast.costs)
    earlier = earlier_results(sweep, origin, say) if sweep.warm_start and not resume else []
    images = len(splits.validation)
    return Prepared(sweep, resume, retry_failed, uri, reference, images, origin, forecast, earlier, console, say)


def search(prepared: Prepared, lease: SweepLease, tracker: Tracker, stop: Stop, told: Callbacks) -> optuna.Study:
    """Run what remains of a sweep's trials on the cluster, and ask their checkpoints what only the cluster can tell.

    Args:
        prepared: the sweep.
        lease: on its folder.
        tracker: not started yet.
        stop: whether to stop.
        told: callbacks, which hear of the trials.

    Returns:
        The sweep's study, which is all that :func:`~alast_tune.tune.conclude.conclude` needs.

    Raises:
        ConfigError: a cluster or a store that cannot serve the sweep.
    """
    sweep, folder = prepared.sweep, prepared.folder
    keep_fingerprints(prepared.origin, folder, "resume", new=not prepared.resume)
    packing = packing_of(sweep, stop, prepared.say)
    if is_file_based(prepared.uri) and sum(node["Alive"] for node in ray.nodes()) > 1:
        raise ConfigError(
            "MLFLOW_TRACKING_URI", prepared.uri, "several nodes need a tracking server; set it to one's http address"
        )
    study = _begin(prepared)
    tracker.start_sweep(sweep, prepared.origin.data, lease.save)
    before = results(study, sweep)
    tracker.reconcile_runs(before)
    total = sweep.trials + len(baselines(study))
    observer = SweepObserver(
        sweep,
        study.user_attrs["reference_point"],
        before,
        tracker,
        lease,
        prepared.console,
        total,
        prepared.validation_images,
        partial(fixed_region, study, sweep),
    )
    del before  # of many trials it is large, and the search lasts
    full_flops = study.user_attrs["reference_point"][1] / MARGIN
    limits = sweep.time_budget, sweep.flops_budget, full_flops, sweep.min_gain
    budget = Budget(study, *limits, lambda: flops_of_seeds(observer.front, sweep.reseed or 0, full_flops))
    observer.progress.used = budget.used
    try:
        told.start(sweep, observer.front)
        searcher = StudySearcher(
            study,
            sweep,
            CallbackObserver(observer, told),
            packing,
            prepared.forecast.costs,
            lambda number: checkpoints(folder, number),
            budget,
        )
        if searcher.remaining:
            study.set_user_attr(SEARCHED, False)
            scheduler = MoAsha(sweep, study, searcher.crashed, searcher.outdone)
            _tune(sweep, folder, searcher, scheduler, TuneEvents(sweep, observer, stop, searcher.crashed))
        stop.check()
        if searcher.waiting:
            them = ", ".join(map(trial_id, searcher.waiting))
            prepared.say(f"interrupted trials {them} fit no node now; --resume on a larger cluster goes on with them")
        budget.keep()
        if searcher.remaining:
            why = "all that is left to propose was tried before, or is predicted to break a limit"
            if (over := budget.over) == "gain":
                why = f"none is expected to add {sweep.min_gain:.1%} to the front's hypervolume; --resume {sweep.name} "
                why += "with a smaller --min-gain goes on"
            elif over:
                option = "--time-budget" if over == "time" else "--flops-budget"
                why = f"the budget of {over} is used up; --resume {sweep.name} with a larger {option} goes on"
            prepared.say(f"{searcher.remaining} of {total} trials were not run: {why}")
        study.set_user_attr(SEARCHED, not searcher.waiting)
        tasks = CheckpointTasks(sweep, folder, packing, stop)
        front = with_knee_of_means(observer.front, Reseeded.find(folder))
        score(tasks, study, front, prepared.say)
        for number, report in block_reports(tasks, front, results(study, sweep), prepared.say).items():
            report.write(blocks_file(folder, number))
    finally:
        observer.close()
    return study


def _begin(prepared: Prepared) -> optuna.Study:
    """Open the sweep's study; a new one begins with earlier results and the baselines."""
    sweep, folder = prepared.sweep, prepared.folder
    study = open_study(sweep, folder, new=not prepared.resume, must_exist=prepared.resume, alone=True)
    name_metrics(study, sweep.trial.train.score)
    _keep(sweep, folder / "sweep.json")
    if "reference_point" not in study.user_attrs:
        study.set_user_attr("reference_point", prepared.reference)
    if VALIDATION_IMAGES not in study.user_attrs:  # an older version has not written it down
        study.set_user_attr(VALIDATION_IMAGES, prepared.validation_images)
    if not study.user_attrs.get("begun"):
        taken = feed(study, sweep, prepared.earlier)
        if sweep.warm_start:
            left = len(prepared.earlier) - taken
            prepared.say(f"warm start: {taken} results of {sweep.warm_start}, {left} left out")
        enqueue_first(study, sweep)
        study.set_user_attr("begun", True)
    if prepared.retry_failed:
        prepared.say(f"{enqueue_failed(study)} failed trials are run again, under new numbers")
    return study


def _keep(sweep: SweepConfig, file: Path) -> None:
    """Write a sweep's settings, whole or not at all: without them it cannot be resumed."""
    with atomic_write(file) as scratch:
        scratch.write_text(json.dumps(sweep.given_values(), indent=2) + "\n")


def _with_absolute_paths(sweep: SweepConfig) -> SweepConfig:
    """Paths mean the driver's folder; workers have another."""
    earlier = {
        field: (place if place.exists() else sweep.storage / place).absolute()  # a path, or a name as --resume takes it
        for field in ("warm_start", "begin_with")
        if isinstance(place := getattr(sweep, field), Path)
    }
    trial = with_absolute_paths(sweep.trial)
    return sweep.model_copy(update={"storage": sweep.storage.absolute(), "trial": trial, **earlier})


def reference_point(sweep: SweepConfig, forecast: Forecast) -> tuple[float, float, float]:
    """Accuracy 0 and 1.1 times the forecast FLOPs and peak bytes of the full fine-tuning that the sweep runs.

    From which accuracy on hypervolume counts is a region's to say.
    """
    full = forecast.costs(full_config(sweep))
    return 0.0, MARGIN * full.train_flops, MARGIN * full.peak_bytes


def _tune(
    sweep: SweepConfig,
    folder: Path,
    searcher: StudySearcher,
    scheduler: MoAsha,
    events: TuneEvents,
) -> None:
    """Let Ray Tune run what remains, under a folder of its own: its state is not needed afterwards."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(searcher.remaining)  # one that waits for a large card holds none up
    tuner = tune.Tuner(
        tune.with_resources(AlastTrainable, placement),
        tune_config=TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=searcher.remaining,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial_id(trial.config["number"]),
            trial_dirname_creator=lambda trial: trial_id(trial.config["number"]),
        ),
        run_config=RunConfig(
            name=next_attempt(folder),
            storage_path=address_of(folder / CHECKPOINTS),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # says nothing; the one for notebooks empties the cell first
            failure_config=FailureConfig(max_failures=sweep.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_frequency=1),
            callbacks=[events],
        ),
    )
    tuner.fit()
