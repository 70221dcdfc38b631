"""A trial that is out, and what the study keeps of it while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from optuna.trial import Trial

from alast_tune.config import TrialConfig
from alast_tune.objectives import objective_values
from alast_tune.results import TrialResult
from alast_tune.tune.resources import Request
from alast_tune.tune.trials import epoch_key


class Observer(Protocol):
    """Who wants to know how trials fare."""

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        """A trial was handed to a worker, for the first time or again."""

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """It finished an epoch."""

    def ended(self, result: TrialResult) -> None:
        """The study knows how it ended."""


@dataclass
class LiveTrial:
    """A trial that is out."""

    trial: Trial
    config: TrialConfig
    request: Request
    orphan: bool = False
    """Begun by an earlier driver, whose checkpoints it goes on from."""
    epochs: list[list[float]] = field(default_factory=list)
    """Objectives after each, and seconds spent in training by then."""
    device: str | None = None
    """The kind of device that it trains on; empty if there were several."""

    def keep_epoch(self, metrics: Mapping[str, float], observer: Observer) -> None:
        """Keep an epoch's objectives with the trial, by which it is compared, also after a restart; and its time.

        One that a restart has repeated, to the same end, is known already. Told first and kept then: a driver killed
        between the two tells it again, and never leaves it out. Each epoch is written once, so that the study grows by
        the same for each; those behind one that came to another end are struck out first, the last of them first.
        """
        epoch = int(metrics.get("epoch", 0))
        values = list(objective_values(metrics, self.config.train.score).values())
        if [kept[:-1] for kept in self.epochs[epoch - 1 : epoch]] == [values]:
            return
        observer.reported(self.trial.number, metrics)
        if all(map(math.isfinite, values)) and len(self.epochs) >= epoch - 1:
            for later in range(len(self.epochs), epoch, -1):
                self.trial.set_user_attr(epoch_key(later), None)
            self.epochs[epoch - 1 :] = [[*values, metrics.get("train_seconds", math.nan)]]
            self.trial.set_user_attr(epoch_key(epoch), self.epochs[-1])

    def keep_device(self, device: str | None) -> None:
        """Keep the kind of device that it trains on, once; an empty one if a restart has moved it to another."""
        if device is not None and device != self.device:
            first = self.device is None and not self.epochs  # an older version has kept no device of its epochs
            self.device = device if first else ""
            self.trial.set_user_attr("device", self.device)
