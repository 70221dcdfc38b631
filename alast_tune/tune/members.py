"""What the checkpoints of finished trials are asked: test accuracy, the blocks of a front's knee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import ray

from alast_tune import checkpoint
from alast_tune.blocks import BlockReport
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult
from alast_tune.storage import CHECKPOINTS, address_of, listing
from alast_tune.summary import trial_id
from alast_tune.tune.cluster import Stop
from alast_tune.tune.resources import Packing, task_options
from alast_tune.tune.trainable import member_accuracy, member_blocks
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


@dataclass(frozen=True)
class Desk:
    """Starts Ray tasks on finished trials' checkpoints, each where the trial itself would fit, and waits for them."""

    sweep: SweepConfig
    folder: Path
    packing: Packing
    stop: Stop

    def ask(
        self, question: Callable[[dict[str, Any], str, int], Answer], number: int, trial: TrialConfig, peak_bytes: float
    ) -> ray.ObjectRef[Answer] | None:
        """Start a task on a trial's newest checkpoint; None if it has none here, as one of an earlier sweep."""
        newest = checkpoints(self.folder, number)[:1]
        if not newest:
            return None
        request = self.packing.place(int(peak_bytes))
        self.packing.release(request)
        task = ray.remote(question).options(**task_options(request))
        asked: ray.ObjectRef[Answer] = task.remote(trial.model_dump(mode="json"), newest[0], self.sweep.cpus_per_trial)
        return asked

    def answer(self, asked: ray.ObjectRef[Answer]) -> Answer:
        """Wait for a task's answer, or until the sweep is to stop."""
        while not ray.wait([asked], timeout=0.2)[0]:
            self.stop.check()
        return ray.get(asked)


def score(desk: Desk, study: optuna.Study, front: FrontFile) -> None:
    """Look at the test images, once each: for members of the final front; of a grid, which selects nothing, for all.

    What was tested is kept even if the driver is stopped before all are.
    """
    tested = dict(study.user_attrs.get("test_accuracy", {}))
    members = {member.trial_id for member in front.front}
    pending = {
        str(result.number): desk.ask(member_accuracy, result.number, result.config, result.values[BYTES])
        for result in results(study, desk.sweep)
        if result.values and (trial_id(result.number) in members or desk.sweep.sampler == "grid")
        if str(result.number) not in tested
    }
    for number, asked in pending.items():
        if asked is not None:
            tested[number] = desk.answer(asked)
            study.set_user_attr("test_accuracy", tested)


def block_reports(
    desk: Desk, front: FrontFile, ended: Sequence[TrialResult], say: Callable[[str], None]
) -> dict[int, BlockReport]:
    """Look into the blocks of the knee and of the paper's configuration, by trial number, the knee first.

    Says in a line what cannot be seen: a sweep that is finished does not fail for a picture.
    """
    complete = [result for result in ended if result.state == "complete" and result.values]
    wanted = [result for result in complete if trial_id(result.number) == front.knee]
    wanted += [result for result in complete if result.landmark == "paper" and result not in wanted]
    reports = {}
    for result in wanted:
        assert result.values
        try:
            asked = desk.ask(member_blocks, result.number, result.config, result.values[BYTES])
            if asked is None:
                raise FileNotFoundError("no checkpoint here")
            reports[result.number] = desk.answer(asked)
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[-1]
            say(f"the blocks of trial {trial_id(result.number)} are not drawn: {why}")
    return reports
