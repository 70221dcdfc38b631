"""A sweep in Weights & Biases: one run a trial, grouped by sweep, and a run with the front as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alast_tune.config import SweepConfig, TrialConfig, flatten
from alast_tune.errors import ConfigError
from alast_tune.results import OBJECTIVES, FrontFile, TrialResult
from alast_tune.summary import trial_id


class WandB:
    """Writes a sweep to Weights & Biases; a trial that is resumed by another driver is a second run there.

    Args:
        project: of the runs.
        options: of ``wandb.init``: entity, mode, dir, tags, settings. Its own messages, and its copy of what the
            driver prints, are off unless ``settings`` say otherwise.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, project: str = "alast-tune", **options: Any) -> None:
        try:
            import wandb
        except ImportError:
            remedy = "needs the package wandb: pip install 'alast-tune[wandb]'"
            raise ConfigError("callbacks", "WandB", remedy) from None
        quiet = {"settings": wandb.Settings(silent=True, console="off")}
        self._wandb = wandb
        self._options = quiet | options | {"project": project, "reinit": "create_new"}  # trials run side by side
        self._trials: dict[int, Any] = {}
        self._sweep = "sweep"

    def on_sweep_start(self, config: SweepConfig) -> None:
        """Learn the sweep's name, by which its runs are grouped."""
        self._sweep = config.name

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        """Begin a trial's run; one that is tried again goes on in its own."""
        if number not in self._trials:
            name = f"{trial_id(number)} {config.method.name}"
            self._trials[number] = self._begin(name, "trial", flatten(config) | {"number": number})

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        """Log the metrics of an epoch."""
        self._trials[number].log(dict(record), step=int(record["epoch"]))

    def on_trial_end(self, result: TrialResult) -> None:
        """Say what has become of the trial, and end its run."""
        run = self._trials.pop(result.number, None)
        if run is not None:
            run.summary.update({"state": result.state, "reason": result.reason})
            run.finish(exit_code=int(result.state == "failed"))

    def on_sweep_end(self, front: FrontFile) -> None:
        """End what is still open, as failed; log the front as a table, in a run of its own."""
        for run in self._trials.values():
            run.finish(exit_code=1)
        self._trials.clear()
        names = [objective.name for objective in OBJECTIVES]
        rows = [
            [member.trial_id, member.config.method.name, member.test_accuracy]
            + [member.objectives[name] for name in names]
            for member in front.front
        ]
        table = self._wandb.Table(
            columns=["trial", "method", f"test_{front.score}", front.score, *names[1:]], data=rows
        )
        run = self._begin("front", "front", {"sweep": self._sweep})
        run.log({"front": table})
        run.summary.update({f"best_{front.score}": front.best_accuracy} | front.hypervolumes)
        run.finish()

    def _begin(self, name: str, kind: str, config: Mapping[str, object]) -> Any:
        return self._wandb.init(name=name, group=self._sweep, job_type=kind, config=dict(config), **self._options)
