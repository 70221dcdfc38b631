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

from alast_tune import checkpoint
from alast_tune.blocks import BlockReport
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult
from alast_tune.storage import CHECKPOINTS, address_of, listing
from alast_tune.summary import trial_id
from alast_tune.tune.cluster import Stop
from alast_tune.tune.resources import Packing, task_options
from alast_tune.tune.trainable import first_line, member_accuracy, member_blocks
from alast_tune.tune.trials import results

Answer = TypeVar("Answer")
BYTES = [objective.name for objective in OBJECTIVES].index("peak_bytes")


def checkpoints(folder: Path, number: int) -> list[str]:
    """List the addresses of a trial's checkpoints, newest first, over all the drivers that have worked on the sweep.

    The numbers of driver and checkpoint tell, not the time: a worker that the network has parted from the sweep may
    write an old one when its trial has long been ended by another.
    """

    def newest_first(place: Path, prefix: str) -> list[Path]:
        named = [entry.base_name for entry in listing(place) if entry.base_name.startswith(prefix)]
        return [place / name for name in sorted(named, key=lambda name: int(name.removeprefix(prefix)), reverse=True)]

    return [
        address_of(place)
        for driver in newest_first(folder / CHECKPOINTS, "driver-")
        for place in newest_first(driver / trial_id(number), "checkpoint_")
        if any(file.base_name == checkpoint.FILE for file in listing(place))
    ]


def next_attempt(folder: Path) -> str:
    """Name a driver's folder for checkpoints: above all that are there, so that of two the later is the newer."""
    taken = [entry.base_name.removeprefix("driver-") for entry in listing(folder / CHECKPOINTS)]
    return f"driver-{max((int(number) for number in taken if number.isdecimal()), default=-1) + 1:02d}"


@dataclass(frozen=True)
class Desk:
    """Starts Ray tasks on finished trials' checkpoints, each where the trial itself would fit, and waits for them."""

    sweep: SweepConfig
    folder: Path
    packing: Packing
    stop: Stop

    def ask(
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

    def answer(self, asked: ray.ObjectRef[Answer]) -> Answer:
        """Wait for a task's answer, or until the sweep is to stop."""
        while not ray.wait([asked], timeout=0.2)[0]:
            self.stop.check()
        return ray.get(asked)


def score(desk: Desk, study: optuna.Study, front: FrontFile, say: Callable[[str], None]) -> None:
    """Look at the test images, once each: for members of the final front; of a grid, which selects nothing, for all.

    What was tested is kept even if the driver is stopped before all are. Whoever cannot be tested has no test accuracy,
    and a line says why: a sweep that is finished does not fail for it, and a resumed one tries again.
    """
    tested = dict(study.user_attrs.get("test_accuracy", {}))
    members = {member.trial_id for member in front.front}
    wanted = [
        result
        for result in results(study, desk.sweep)
        if result.values and not result.origin and str(result.number) not in tested
        if trial_id(result.number) in members or desk.sweep.sampler == "grid"
    ]
    for number, accuracy in _answers(desk, member_accuracy, wanted, "is not tested", say):
        tested[str(number)] = accuracy
        study.set_user_attr("test_accuracy", tested)


def block_reports(
    desk: Desk, front: FrontFile, ended: Sequence[TrialResult], say: Callable[[str], None]
) -> dict[int, BlockReport]:
    """Look into the blocks of the knee and of the paper's configuration, by trial number, the knee first."""
    complete = [result for result in ended if result.state == "complete" and result.values]
    wanted = [result for result in complete if trial_id(result.number) == front.knee]
    wanted += [result for result in complete if result.landmark == "paper" and result not in wanted]
    return dict(_answers(desk, member_blocks, wanted, "has no drawing of its blocks", say))


def _answers(
    desk: Desk,
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
            asked[result.number] = desk.ask(question, result.number, result.config, result.values[BYTES])
    for number, task in asked.items():
        answered = []
        with _said(number, lacks, say):
            answered.append(desk.answer(task))
        yield from ((number, answer) for answer in answered)


@contextmanager
def _said(number: int, lacks: str, say: Callable[[str], None]) -> Iterator[None]:
    """Put whatever befalls a task, a damaged checkpoint, a dead worker, too small a cluster, into a line."""
    try:
        yield
    except Exception as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        say(f"trial {trial_id(number)} {lacks}: {first_line(cause)}")
