"""Build, run and resume a sweep."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import ray
import torch
from filelock import FileLock, Timeout
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from alast_tune import checkpoint
from alast_tune.config import FullConfig, SweepConfig, TrialConfig, parse, read_mapping
from alast_tune.cost import step_flops, step_peak_bytes
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise, trial_id
from alast_tune.terminal import SweepProgress
from alast_tune.tracking import Tracker, default_uri, end_status, is_file_based
from alast_tune.train import load_trial
from alast_tune.tune.resources import fitting, trial_resources
from alast_tune.tune.search import StudySearcher, open_study, results
from alast_tune.tune.trainable import AlastTrainable, member_accuracy

MARGIN = 1.1
"""The reference point lies at this multiple of the cost of full fine-tuning."""


def stored_sweep(folder: Path) -> SweepConfig:
    """Read the configuration with which a sweep was started.

    Raises:
        ConfigError: no sweep there.
    """
    if not (folder / "sweep.json").exists():
        known = sorted(p.parent.name for p in folder.parent.glob("*/sweep.json"))
        remedy = f"no such sweep under {folder.parent}; there are: {', '.join(known)}" if known else "holds no sweep"
        raise ConfigError("resume", folder.name, remedy)
    return parse(SweepConfig, read_mapping(folder / "sweep.json"))


def run_sweep(sweep: SweepConfig, *, resume: bool = False, console: Console | None = None) -> list[TrialResult]:
    """Run a sweep to its end, or go on with one that was interrupted in whatever way.

    Leaves ``front.json``, ``study.db`` and the trials' checkpoints in ``<storage>/<name>``, and
    everything in MLflow. Only the number of trials may differ when resuming.

    Raises:
        ConfigError: whatever cannot work, before any trial starts.
    """
    console = console or Console(stderr=True)
    sweep = _with_absolute_paths(sweep)
    folder = sweep.storage / sweep.name
    if resume:
        before = stored_sweep(folder)
        if before.model_copy(update={"trials": sweep.trials, "storage": sweep.storage}) != sweep:
            raise ConfigError("resume", sweep.name, "was started with other settings; only --trials may change")
    elif (folder / "study.db").exists():
        raise ConfigError(
            "name", sweep.name, f"already exists; go on with --resume {sweep.name}, or choose another --name"
        )
    uri = default_uri(sweep.storage)
    reference = reference_point(sweep.trial)  # builds model, data and method: what cannot work says so here
    folder.mkdir(parents=True, exist_ok=True)
    with _only_driver(folder), _cluster(), _stopped_by_signals() as stop:
        cluster = ray.cluster_resources()
        resources = trial_resources(sweep, cluster)
        if is_file_based(uri) and sum(node["Alive"] for node in ray.nodes()) > 1:
            raise ConfigError(
                "MLFLOW_TRACKING_URI", uri, "several nodes need a tracking server; set it to one's http address"
            )
        (folder / "sweep.json").write_text(sweep.model_dump_json(indent=2) + "\n")
        study = open_study(sweep, folder / "study.db")
        if "reference_point" not in study.user_attrs:
            study.set_user_attr("reference_point", reference)
        tracker = Tracker(uri, sweep.storage)
        parent = tracker.start_sweep(sweep, study.user_attrs.get("mlflow_run_id"))
        study.set_user_attr("mlflow_run_id", parent)
        tracker.settle(results(study, sweep.trial))
        observer = SweepObserver(sweep, study, tracker, console)
        searcher = StudySearcher(
            study,
            sweep,
            observer,
            sweep.concurrent or fitting(resources, cluster),
            lambda number: checkpoints(folder, number),
        )
        try:
            if searcher.remaining:
                _tune(sweep, folder, searcher, _TuneEvents(observer, stop), resources)
            stop.check()
            front = observer.front
            _test_members(study, sweep, folder, front, resources, stop)
            front = observer.front
            front.write(folder / "front.json")
            tracker.log_front(front, results(study, sweep.trial))
            tracker.end_sweep("FINISHED")
        except BaseException:
            observer.front.write(folder / "front.json")
            tracker.kill()
            raise
        finally:
            observer.progress.close()
        return results(study, sweep.trial)


def _with_absolute_paths(sweep: SweepConfig) -> SweepConfig:
    """Paths mean the driver's folder; workers have another."""
    trial = sweep.trial
    data = trial.data.model_copy(update={"root": trial.data.root and trial.data.root.absolute()})
    model = trial.model.model_copy(update={"checkpoint": trial.model.checkpoint and trial.model.checkpoint.absolute()})
    trial = trial.model_copy(update={"data": data, "model": model})
    return sweep.model_copy(update={"storage": sweep.storage.absolute(), "trial": trial})


def reference_point(trial: TrialConfig) -> tuple[float, float, float]:
    """Accuracy 0 and 1.1 times the cost of full fine-tuning, for as many epochs at the same batch size.

    FLOPs in closed form; peak memory predicted, in single precision.
    """
    model, splits = load_trial(trial)
    build_method(trial.method, model, trial.train)
    full = build_method(FullConfig(), model, trial.train)
    side = int(model.patch_embed.img_size[0])
    images = len(splits.train)
    flops = step_flops(model, FullConfig(), full.plan, side, 1) * images * trial.train.epochs
    optimizer = torch.optim.Adam(full.parameters())
    peak = step_peak_bytes(model, FullConfig(), full.plan, side, min(trial.train.batch_size, images), optimizer)
    return 0.0, MARGIN * flops, MARGIN * peak


class SweepObserver:
    """Passes what happens to trials on to MLflow and to the terminal, and keeps ``front.json`` current."""

    def __init__(self, sweep: SweepConfig, study: optuna.Study, tracker: Tracker, console: Console) -> None:
        self._sweep = sweep
        self._study = study
        self._tracker = tracker
        self._run_ids: dict[int, str] = {}
        self.progress = SweepProgress(sweep.trials, self.front.trials.finished, console)

    @property
    def front(self) -> FrontFile:
        """Of the trials that are complete now."""
        tested = {int(number): value for number, value in self._study.user_attrs.get("test_accuracy", {}).items()}
        reference = self._study.user_attrs["reference_point"]
        return summarise(self._sweep.name, results(self._study, self._sweep.trial), reference, tested)

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], run_id: str | None) -> str:
        """Open the trial's MLflow run."""
        self._run_ids[number] = self._tracker.start_trial(number, config, params, run_id)
        self.progress.started()
        return self._run_ids[number]

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch."""
        self._tracker.log_epoch(self._run_ids[number], metrics, int(metrics["epoch"]))

    def ended(self, result: TrialResult) -> None:
        """End the trial's MLflow run, log the front's progress."""
        front = self.front
        run_id = self._run_ids.get(result.number)
        if run_id:
            tags = {"alast.state": result.state} | ({"alast.reason": result.reason} if result.reason else {})
            self._tracker.end_trial(run_id, end_status(result), tags=tags)
        front.write(self._sweep.storage / self._sweep.name / "front.json")
        counts = front.trials
        progress = {"hypervolume": front.hypervolume, "hypervolume_share": front.hypervolume_share}
        self._tracker.log_progress(
            progress | {"best_accuracy": front.best_accuracy, "failed": counts.failed}, counts.finished
        )
        self.progress.ended(result, front)

    def explain(self, number: int, reason: str) -> None:
        """Add to a failed trial's run what Tune knows of the failure, once it says so."""
        if number in self._run_ids:
            self._tracker.end_trial(self._run_ids[number], "FAILED", tags={"alast.reason": reason})
        self.progress.note(f"trial {trial_id(number)}: {reason}")


class _TuneEvents(tune.Callback):
    """What only Tune's callbacks hear: why a trial failed, and the pulse of its loop."""

    def __init__(self, observer: SweepObserver, stop: _Stop) -> None:
        self._observer = observer
        self._stop = stop

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._stop.check()

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = [line for line in Path(trial.error_file or os.devnull).read_text().splitlines() if line.strip()]
        self._observer.explain(trial.config["number"], lines[-1].strip() if lines else "worker lost")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore from, and it is the study that a sweep resumes from."""
        return {}


def checkpoints(folder: Path, number: int) -> list[Path]:
    """List a trial's checkpoints, newest first, over all the drivers that have worked on the sweep."""
    found = folder.glob(f"tune/*/{trial_id(number)}/checkpoint_*/{checkpoint.FILE}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _tune(
    sweep: SweepConfig, folder: Path, searcher: StudySearcher, events: _TuneEvents, resources: dict[str, float]
) -> None:
    """Let Ray Tune run what remains, under a folder of its own: its state is not needed afterwards."""
    attempt = len(list(folder.glob("tune/*")))
    tuner = tune.Tuner(
        tune.with_resources(AlastTrainable, resources),
        tune_config=TuneConfig(
            search_alg=searcher,
            num_samples=searcher.remaining,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial_id(trial.config["number"]),
            trial_dirname_creator=lambda trial: trial_id(trial.config["number"]),
        ),
        run_config=RunConfig(
            name=f"driver-{attempt:02d}",
            storage_path=str(folder / "tune"),
            verbose=0,
            failure_config=FailureConfig(max_failures=sweep.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[events],
        ),
    )
    tuner.fit()


def _test_members(
    study: optuna.Study, sweep: SweepConfig, folder: Path, front: FrontFile, resources: dict[str, float], stop: _Stop
) -> None:
    """Look at the test images, for the members of the final front only, once each."""
    tested = dict(study.user_attrs.get("test_accuracy", {}))
    accuracy = ray.remote(num_cpus=resources["cpu"], num_gpus=resources["gpu"])(member_accuracy)
    pending = {
        member.trial_id: accuracy.remote(member.config.model_dump(mode="json"), str(newest), sweep.cpus_per_trial)
        for member in front.front
        if str(int(member.trial_id)) not in tested
        for newest in checkpoints(folder, int(member.trial_id))[:1]
    }
    for member_id, reference in pending.items():
        while not ray.wait([reference], timeout=0.2)[0]:
            stop.check()
        tested[str(int(member_id))] = ray.get(reference)
    study.set_user_attr("test_accuracy", tested)


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Refuse a second driver of the same sweep; the lock goes with the process, however it dies."""
    lock = FileLock(folder / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("name", folder.name, "another driver is running this sweep; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names (a job's own is set by Ray), else start one here."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # MLflow has it all
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the newer one prints a banner whatever its verbosity
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C comes as an exception, as SIGTERM does
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started = not ray.is_initialized()
    if started:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)  # type: ignore[arg-type]
        else:
            # Not left to Ray, which would look for the last head on this machine, and wait for it if that is gone.
            ray.init(address="local", include_dashboard=False, **quiet)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if started:
            ray.shutdown()


class _Stop:
    """Whether to stop: asked at Tune's every pulse, so that nothing is cut off in the middle of a transaction."""

    def __init__(self) -> None:
        self._signum = 0

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Stop soon: the signals' handler; asked twice, at once."""
        if self._signum:
            raise KeyboardInterrupt
        self._signum = signum

    def check(self) -> None:
        """Stop if a signal has come."""
        if self._signum:
            raise SystemExit(128 + self._signum)


@contextmanager
def _stopped_by_signals() -> Iterator[_Stop]:
    """Let SIGTERM (`ray job stop` sends it, and SIGKILL 3 s later) and Ctrl-C end MLflow's runs on the way out."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only there may signals be caught
        return
    before = {signum: signal.signal(signum, stop.request) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
