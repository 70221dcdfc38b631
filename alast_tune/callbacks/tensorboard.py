"""A sweep in TensorBoard: one run a trial, its settings and objectives in the HParams tab, and the front so far."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult
from alast_tune.summary import trial_id

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes a sweep for TensorBoard; ``tensorboard --logdir runs/demo/tensorboard`` shows it.

    Args:
        folder: gets a folder a trial, and ``front``; unset: ``tensorboard`` in the folder of the sweep.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            remedy = "needs the package tensorboard: pip install 'alast-tune[tensorboard]'"
            raise ConfigError("callbacks", "TensorBoard", remedy) from None
        self._writer = SummaryWriter
        self._given = Path(folder) if folder else None
        self._folder = Path()
        self._trials: dict[int, SummaryWriter] = {}
        self._front: SummaryWriter | None = None

    def on_sweep_start(self, config: SweepConfig) -> None:
        """Open the run of the front."""
        self._folder = self._given or config.storage / config.name / "tensorboard"
        self._front = self._open("front")

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        """Open a trial's run; one that is tried again goes on in its own."""
        if number not in self._trials:
            self._trials[number] = self._open(trial_id(number))

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        """Write the metrics of an epoch."""
        for name, value in record.items():
            if name != "epoch":
                self._trials[number].add_scalar(name, value, int(record["epoch"]))
        self._trials[number].flush()

    def on_trial_end(self, result: TrialResult) -> None:
        """Write what the trial was set to and what came of it, and close its run."""
        from torch.utils.tensorboard.summary import hparams

        writer = self._trials.pop(result.number, None)
        if writer is None:  # never launched
            return
        settings = {"method": result.config.method.name, "state": result.state} | result.searched
        names = [result.config.train.score, *(objective.name for objective in OBJECTIVES[1:])]
        # Not add_hparams, which puts them into a run of their own, apart from the curves.
        file_writer = writer._get_file_writer()
        for summary in hparams(settings, dict(zip(names, result.values or (), strict=False))):
            file_writer.add_summary(summary)
        writer.close()

    def on_front_change(self, front: FrontFile) -> None:
        """Write how good the front is by now, over the number of trials that have ended."""
        if self._front:
            values = {f"best_{front.score}": front.best_accuracy, "members": len(front.front)} | front.hypervolumes
            for name, value in values.items():
                self._front.add_scalar(f"front/{name}", value, front.trials.finished)
            self._front.flush()

    def on_sweep_end(self, front: FrontFile) -> None:
        """Close what is still open."""
        for writer in (*self._trials.values(), self._front):
            if writer:
                writer.close()
        self._trials.clear()

    def _open(self, run: str) -> SummaryWriter:
        return self._writer(str(self._folder / run))
