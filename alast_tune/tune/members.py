"""What the checkpoints of finished trials are asked: test accuracy, the blocks of a front's knee."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import ray
from ray.exceptions import RayTaskError

from alast_tune.blocks import BlockReport
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult
from alast_tune.summary import trial_id
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.cluster import Stop
from alast_tune.tune.conclude import blocks_file, drawn
from alast_tune.tune.resources import Packing, task_options
from alast_tune.tune.trainable import first_line, member_accuracy, member_blocks
from alast_tune.tune.trials import results

Answer = TypeVar("Answer")
_NO_BLOCKS = "has no drawing of its blocks"
BYTES = [objective.name for objective in OBJECTIVES].index("peak_bytes")


@dataclass(frozen=True)
class CheckpointTasks:
    """Starts Ray tasks on finished trials' checkpoints, each where the trial itself would fit, and waits for them."""

    sweep: SweepConfig
    folder: Path
    packing: Packing
    stop: Stop

    def submit(
        self,
        question: Callable[[dict[str, Any], list[str], int], Answer],
        number: int,
        trial: TrialConfig,
        peak_bytes: float,
    ) -> ray.ObjectRef[Answer]:
        """Start a task on a trial's checkpoints.

        Raises:
            ConfigError: no node of the cluster has room for it.
        """
        request = self.packing.place(int(peak_bytes))
        self.packing.release(request)
        task = ray.remote(question).options(**task_options(request))
        asked: ray.ObjectRef[Answer] = task.remote(
            trial.model_dump(mode="json"), checkpoints(self.folder, number), self.sweep.cpus_per_trial
        )
        return asked

    def result(self, asked: ray.ObjectRef[Answer]) -> Answer:
        """Wait for a task's answer, or until the sweep is to stop."""
        while not ray.wait([asked], timeout=0.2)[0]:
            self.stop.check()
        return ray.get(asked)


def score(tasks: CheckpointTasks, study: optuna.Study, front: FrontFile, say: Callable[[str], None]) -> None:
    """Look at the test images, once each: for members of the final front; of a grid, which selects nothing, for all.

    What was tested is kept even if the driver is stopped before all are. Whoever cannot be tested has no test accuracy,
    and a line says why: a sweep that is finished does not fail for it, and a resumed one tries again.
    """
    wanted = _untested(study, tasks.sweep, front)
    tested = dict(study.user_attrs.get("test_accuracy", {}))
    for number, accuracy in _answers(tasks, member_accuracy, wanted, "is not tested", say):
        tested[str(number)] = accuracy
        study.set_user_attr("test_accuracy", tested)


def block_reports(
    tasks: CheckpointTasks, front: FrontFile, ended: Sequence[TrialResult], say: Callable[[str], None]
) -> dict[int, BlockReport]:
    """Look into the blocks of the knee and of the paper's configuration, by trial number, unless that was done."""
    wanted = _unseen(tasks.folder, front, ended)
    return dict(_answers(tasks, member_blocks, wanted, _NO_BLOCKS, say))


def write_blocks_here(
    folder: Path, sweep: SweepConfig, front: FrontFile, ended: Sequence[TrialResult], say: Callable[[str], None]
) -> None:
    """Look into the same blocks in this process, once the cluster has been left, and keep what they tell."""
    for result in _unseen(folder, front, ended):
        with _said(result.number, _NO_BLOCKS, say):
            trial, there = result.config.model_dump(mode="json"), checkpoints(folder, result.number)
            member_blocks(trial, there, sweep.cpus_per_trial).write(blocks_file(folder, result.number))


def not_asked_yet(folder: Path, study: optuna.Study, sweep: SweepConfig, front: FrontFile) -> set[int]:
    """Numbers of complete trials whose checkpoints have not told all: a resumed sweep asks them again."""
    missing = _untested(study, sweep, front) + _unseen(folder, front, results(study, sweep))
    return {result.number for result in missing}


def _untested(study: optuna.Study, sweep: SweepConfig, front: FrontFile) -> list[TrialResult]:
    tested = study.user_attrs.get("test_accuracy", {})
    members = {member.trial_id for member in front.front}
    return [
        result
        for result in results(study, sweep)
        if result.values and not result.origin and str(result.number) not in tested
        if trial_id(result.number) in members or sweep.sampler == "grid"
    ]


def _unseen(folder: Path, front: FrontFile, ended: Sequence[TrialResult]) -> list[TrialResult]:
    return [
        result
        for result in drawn(front, ended)
        if not result.origin and not blocks_file(folder, result.number).exists()
    ]


def _answers(
    tasks: CheckpointTasks,
    question: Callable[[dict[str, Any], list[str], int], Answer],
    trials: Sequence[TrialResult],
    lacks: str,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Answer]]:
    """Ask about all trials at once, yield the answers by number; say in a line who has none and why."""
    asked: dict[int, ray.ObjectRef[Answer]] = {}
    for result in trials:
        assert result.values
        with _said(result.number, lacks, say):
            asked[result.number] = tasks.submit(question, result.number, result.config, result.values[BYTES])
    for number, task in asked.items():
        answered = []
        with _said(number, lacks, say):
            answered.append(tasks.result(task))
        yield from ((number, answer) for answer in answered)


@contextmanager
def _said(number: int, lacks: str, say: Callable[[str], None]) -> Iterator[None]:
    """Put whatever befalls a task, a damaged checkpoint, a dead worker, too small a cluster, into a line."""
    try:
        yield
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        say(f"trial {trial_id(number)} {lacks}: {first_line(cause)}")
