"""Who hears of a sweep's trials: MLflow, the terminal and front.json; and what only Tune's loop can tell or be told."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.hold import Hold
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import Standing, trial_id
from alast_tune.terminal import SweepProgress
from alast_tune.tracking import Tracker, end_status
from alast_tune.tune.cluster import Stop
from alast_tune.tune.trials import results


class SweepObserver:
    """Passes what happens to trials on to MLflow and to the terminal, and keeps ``front.json`` current."""

    def __init__(self, sweep: SweepConfig, study: optuna.Study, tracker: Tracker, hold: Hold, console: Console) -> None:
        self._hold = hold
        self._sweep = sweep
        self._study = study
        self._tracker = tracker
        ended = [result for result in results(study, sweep) if result.state != "running"]
        self._standing = Standing(sweep.name, study.user_attrs["reference_point"], sweep.limits, ended)
        self._nodes: dict[int, str] = {}
        self._written = -math.inf
        self.progress = SweepProgress(sweep.trials, self.front.trials.finished, console)

    @property
    def front(self) -> FrontFile:
        """Of the trials that have ended."""
        tested = {int(number): value for number, value in self._study.user_attrs.get("test_accuracy", {}).items()}
        return self._tracker.with_run_ids(self._standing.front(tested))

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object]) -> None:
        """Open the trial's MLflow run."""
        self._tracker.start_trial(number, config, params)
        self._hold.save()  # or it could leave checkpoints under a number that nobody knows
        self.progress.started()

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch."""
        self._tracker.log_epoch(number, metrics, int(metrics["epoch"]))

    def moved(self, number: int, node: str) -> None:
        """Say which node a trial is on, if that is not known yet."""
        if self._nodes.get(number) != node:
            self._nodes[number] = node
            self._tracker.tag_trial(number, {"alast.node": node})

    def ended(self, result: TrialResult) -> None:
        """End the trial's MLflow run, log the front's progress."""
        self._standing.add(result)
        front = self.front
        tags = {"alast.state": result.state} | ({"alast.reason": result.reason} if result.reason else {})
        launched = self._tracker.end_trial(result.number, end_status(result), tags)
        if time.monotonic() - self._written >= 1:  # a large front takes a while, and trials may be short
            front.write(self._sweep.storage / self._sweep.name / "front.json")
            self._written = time.monotonic()
        counts = front.trials
        progress = {"hypervolume": front.hypervolume, "hypervolume_share": front.hypervolume_share}
        self._tracker.log_progress(
            progress | {"best_accuracy": front.best_accuracy, "failed": counts.failed}, counts.finished
        )
        if launched:
            self.progress.ended(result, front)
        else:
            self.progress.note(f"trial {trial_id(result.number)}: {result.reason}")
        self._hold.save()

    def pulse(self) -> None:
        """Keep what epochs have brought, now and then."""
        self._hold.save(every=10)

    def explain(self, number: int, reason: str) -> None:
        """Add to a failed trial's run what Tune knows of the failure, once it says so."""
        self._tracker.end_trial(number, "FAILED", {"alast.reason": reason})
        self.progress.note(f"trial {trial_id(number)}: {reason}")


class TuneEvents(tune.Callback):
    """What only Tune's callbacks hear: why a trial failed, and the pulse of its loop."""

    clock = staticmethod(time.monotonic)
    """Seconds, by which a trial hangs."""

    def __init__(self, sweep: SweepConfig, observer: SweepObserver, stop: Stop) -> None:
        self._timeout = sweep.epoch_timeout
        self._observer = observer
        self._stop = stop
        self._heard: dict[str, float] = {}
        self._hung: set[str] = set()

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Stop if asked to; look for trials that hang."""
        self._stop.check()
        self._observer.pulse()
        if self._timeout is not None:
            now = self.clock()
            for trial in trials:
                if (
                    trial.status == TuneTrial.RUNNING
                    and now - self._heard.setdefault(trial.trial_id, now) > self._timeout
                ):
                    self._end_hung(trial)

    def _end_hung(self, trial: TuneTrial) -> None:
        """Kill a trial's worker; it would only hang again, so that it is not tried again."""
        if trial.trial_id not in self._hung:
            self._hung.add(trial.trial_id)
            trial.max_failures = 0
            if trial.temporary_state.ray_actor:
                ray.kill(trial.temporary_state.ray_actor)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """It has a worker, from now on."""
        self._heard[trial.trial_id] = self.clock()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """It is alive, and where."""
        self._heard[trial.trial_id] = self.clock()
        if "node" in result:
            self._observer.moved(trial.config["number"], result["node"])

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Pass on that it hung; whatever else it crashed of the study has been told."""
        if trial.trial_id in self._hung:
            self._observer.explain(trial.config["number"], f"no epoch finished within {self._timeout:g} seconds")

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore from, and it is the study that a sweep resumes from."""
        return {}
