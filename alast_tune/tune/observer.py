"""Who hears of a sweep's trials: MLflow, the terminal and front.json; and what only Tune's loop can tell or be told."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.lease import SweepLease
from alast_tune.progress import SweepProgress
from alast_tune.results import FrontFile, Region, TrialResult
from alast_tune.summary import FrontTracker, trial_id
from alast_tune.tracking import Tracker
from alast_tune.tune.cluster import Stop
from alast_tune.tune.schedule import last_line

_SHARE = 4096
"""So many bytes of ``front.json`` a trial are written, on the average,"""
_LONGEST = 60.0
"""unless it was written longer ago than so many seconds."""


def _is_counted(result: TrialResult) -> bool:
    """Whether it was asked for, or is a baseline: no other trial takes the place of one that cannot run."""
    return result.launched or result.baseline is not None


class SweepObserver:
    """Passes what happens to trials on to MLflow and to the terminal, and keeps ``front.json`` current.

    Args:
        sweep: as it was asked for.
        reference: what hypervolume is measured from.
        before: trials of the study.
        tracker: of the sweep, started.
        lease: on its folder.
        console: for people.
        total: how many trials it will have run in the end, baselines included.
        validation_images: that accuracies are of, if that is known.
        region: says which accuracy counts, as far as the study tells by now.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        reference: Sequence[float],
        before: Sequence[TrialResult],
        tracker: Tracker,
        lease: SweepLease,
        console: Console,
        total: int,
        validation_images: int | None = None,
        region: Callable[[], Region] = Region,
    ) -> None:
        self._lease = lease
        self._file = sweep.storage / sweep.name / "front.json"
        self._tracker = tracker
        ended = [result for result in before if result.state != "running"]
        self._region = region
        self._front = FrontTracker(sweep.name, reference, sweep.limits, ended, validation_images, region())
        self._nodes: dict[int, str] = {}
        self._written, self._size, self._ended = -math.inf, 0, 0
        """When ``front.json`` was last written, bytes of it, trials that have ended since."""
        self._changed = True
        finished = sum(_is_counted(result) and result.origin is None for result in ended)
        self.progress = SweepProgress(sweep.name, total, finished, console)

    @property
    def front(self) -> FrontFile:
        """Of the trials that have ended."""
        return self._front.front

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        """Open the trial's MLflow run."""
        self._lease.save()  # or it could leave a run, and checkpoints, under a number that nobody knows
        self._tracker.start_trial(number, config, params, baseline)
        self._lease.save()
        self.progress.started(number, config, params, baseline)

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch."""
        self._tracker.log_epoch(number, metrics, int(metrics["epoch"]))
        self.progress.reported(number, int(metrics["epoch"]))

    def moved(self, number: int, node: str) -> None:
        """Say which node a trial is on, if that is not known yet."""
        if self._nodes.get(number) != node:
            self._nodes[number] = node
            self._tracker.tag_trial(number, {"alast.node": node})

    def ended(self, result: TrialResult) -> None:
        """End the trial's MLflow run; if it changes the front, say so."""
        self._tracker.end_result(result)
        changed = self._front.add(result)
        if result.baseline == "full":
            self._front.measure_in(self._region())
            self._changed = True
        self._ended += 1
        front = self.front
        if changed:
            self._changed = True
            self._tracker.tag_front([member.trial_id for member in front.front])
        self._write()
        if result.launched:
            progress = {f"best_{front.score}": front.best_accuracy, "failed": front.trials.failed}
            self._tracker.log_progress(front.hypervolumes | progress, self._front.launched)
        if _is_counted(result):
            self.progress.ended(result, front)
        else:
            self.progress.skipped(result)
        self._lease.save()

    def pulse(self) -> None:
        """Keep what epochs have brought, now and then."""
        self._write()
        self._lease.save(every=10)

    def close(self) -> None:
        """Leave the terminal as it is, and ``front.json`` as the front is."""
        self.progress.close()
        with suppress(OSError):  # a full disk may be the very reason why the sweep ends
            self._write(at_once=True)

    def _write(self, at_once: bool = False) -> None:
        """Write ``front.json`` if the front has changed, not too often: all of a large one for each trial is much."""
        waited = time.monotonic() - self._written
        due = at_once or waited >= _LONGEST or (waited >= 1 and self._ended * _SHARE >= self._size)
        if self._changed and due:
            self._tracker.with_run_ids(self.front).write(self._file)
            self._written, self._size, self._ended = time.monotonic(), self._file.stat().st_size, 0
            self._changed = False

    def tried_again(self, number: int, reason: str) -> None:
        """Say that a trial's worker has failed, and that it is tried again."""
        self.progress.note(f"trial {trial_id(number)}: {reason}; tried again")


class TuneEvents(tune.Callback):
    """What only Tune's callbacks hear: why a trial is tried again, and the pulse of its loop."""

    clock = staticmethod(time.monotonic)
    """Seconds, by which a trial hangs."""

    def __init__(
        self, sweep: SweepConfig, observer: SweepObserver, stop: Stop, crashed: Callable[[int, str, bool], None]
    ) -> None:
        self._crashed = crashed
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
            self._crashed(trial.config["number"], f"no epoch finished within {self._timeout:g} seconds", False)
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

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Pass on why it is tried again."""
        self._observer.tried_again(
            trial.config["number"], last_line(Path(trial.error_file or os.devnull).read_text(errors="replace"))
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore from, and it is the study that a sweep resumes from."""
        return {}
