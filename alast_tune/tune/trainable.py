"""The Ray trainable: one epoch a step, a checkpoint an epoch, the actor reused from trial to trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray import tune

from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.train import Run


class AlastTrainable(tune.Trainable):
    """Wraps a :class:`~alast_tune.train.Run`.

    Config: ``number`` of the trial in the study, ``trial`` (a TrialConfig as plain values),
    ``threads`` for torch on a CPU, ``resume_from`` (folders of checkpoints, newest first).
    Each result holds the epoch's metrics under ``report``.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Build the run; go on from the newest checkpoint that can be read."""
        with _plain_errors():
            self._start(config)

    def _start(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(config["threads"])
        trial = TrialConfig.model_validate(config["trial"])
        self._run = Run(trial, verify=False)  # the driver has looked at every image
        for folder in config["resume_from"]:
            try:
                self._run.load(Path(folder))
                return
            except ConfigError:  # damaged; a half-loaded run is not gone on with
                self._run = Run(trial, verify=False)

    def step(self) -> dict[str, Any]:
        """Train one epoch; a run that was finished before only repeats its last report."""
        report = self._run.report
        if report is None or not self._run.finished:
            with _plain_errors():
                report = self._run.train_epoch()
        return {"report": report.metrics(), "done": self._run.finished}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write everything the next epoch depends on."""
        self._run.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Go on from a checkpoint folder, after the worker or its node has died."""
        self._run.load(Path(str(checkpoint)))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial into the same process, whose imports are done."""
        self.setup(new_config)
        return True


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let errors travel as text: one that Ray cannot unpickle in the driver would end the whole sweep."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def member_accuracy(trial: dict[str, Any], folder: str, threads: int) -> float | None:
    """Evaluate a finished trial's checkpoint on the test images, which no search has seen; None if there are none."""
    torch.set_num_threads(threads)
    run = Run(TrialConfig.model_validate(trial), verify=False)
    run.load(Path(folder))
    return run.evaluate("test")[0] if run.has_test else None
