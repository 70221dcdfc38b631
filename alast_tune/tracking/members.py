"""What a trial's run learns after it has ended: its costs beside full fine-tuning, its test accuracy, its model."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import trial_id
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.people import percent_of_full
from alast_tune.tracking.queue import Queue

_FULL, _TESTED, _MODELS = "full", "tested", "models"
"""What the queue notes of a sweep: the objectives of full fine-tuning, test accuracies, trials that have a model."""


class CostMetrics:
    """Logs the costs of trials in percent of full fine-tuning, once that has ended: of earlier trials then, as well.

    Args:
        queue: of the sweep; keeps what has been logged from one driver to the next.
        log: asks for metrics of a run at a step.
    """

    def __init__(self, queue: Queue, log: Callable[[str, Mapping[str, float], int], None]) -> None:
        self._queue = queue
        self._log = log
        self._waiting: dict[int, TrialResult] = {}
        """Trials that have ended before full fine-tuning has."""

    def reconcile(self, results: Sequence[TrialResult]) -> None:
        """Make up for what an earlier driver could not log, or did not yet know to; ``results`` are the sweep's."""
        if self._queue.fact(_FULL) is None or _full(results) not in (None, self._queue.fact(_FULL)):
            self.ended(results)

    def ended(self, results: Sequence[TrialResult]) -> None:
        """Log the costs of trials that have ended, or keep them until there is something to compare them with."""
        known, full = self._queue.fact(_FULL), _full(results)
        if full is None and known is None:
            self._waiting |= {result.number: result for result in results}
            return
        if full not in (None, known):
            results = [*self._waiting.values(), *results]
        for result in results:
            if result.values and self._has_run(result):
                self._log(trial_id(result.number), percent_of_full(result.values, full or known), result.epochs)
        if full not in (None, known):
            self._queue.note(_FULL, full)
            self._waiting.clear()

    def log_tested(self, results: Sequence[TrialResult]) -> None:
        """Log test accuracies that are new; trials are tested after they have ended."""
        known = self._queue.fact(_TESTED) or {}
        tested = {trial_id(one.number): one.test_accuracy for one in results if one.test_accuracy is not None}
        for result in results:
            run = trial_id(result.number)
            if run in tested and known.get(run) != tested[run] and self._has_run(result):
                self._log(run, {f"test_{result.config.train.score}": tested[run]}, result.epochs)
        self._queue.note(_TESTED, tested)

    def _has_run(self, result: TrialResult) -> bool:
        return self._queue.run(trial_id(result.number)).status is not None


def models_of(front: FrontFile, weights: Mapping[str, str], queue: Queue) -> Iterator[Operation]:
    """Give each member's run a model that says where its weights are, and take those of former members away.

    No weights are copied, which may be gigabytes; ``alast-tune promote`` makes a loadable model of a member.

    Args:
        front: of a sweep that has ended.
        weights: address of each member's last checkpoint, by trial id; who has none has no model.
        queue: of the sweep.
    """
    now = int(time.time() * 1000)
    runs = [member.trial_id for member in front.front if member.trial_id in weights]
    runs = [run for run in runs if queue.run(run).status is not None]
    for run in runs:
        name = f"{front.sweep.replace('.', '_')} {run}"  # MLflow takes no point in it
        promote = shlex.join(["alast-tune", "promote", front.sweep, "--pick", run])
        note = (
            f"The weights are not in MLflow: they are in `{weights[run]}`. `{promote}` makes a model that MLflow loads."
        )
        tags = {"alast.trial": run, "alast.checkpoint": weights[run], "alast.promote": promote}
        tags["mlflow.note.content"] = note
        yield Operation(run, "model", now, source=name, tags=tags)
    yield from (Operation(run, "model", now) for run in queue.fact(_MODELS) or [] if run not in runs)
    queue.note(_MODELS, runs)


def _full(results: Sequence[TrialResult]) -> list[float] | None:
    """Find what full fine-tuning has come to; None before it has ended."""
    return next((list(one.values) for one in results if one.baseline == "full" and one.values), None)
