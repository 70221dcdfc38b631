"""Callbacks hear of a sweep's trials, after MLflow, the terminal and front.json have."""

from __future__ import annotations

from collections.abc import Mapping

from alast_tune.callbacks import Callbacks
from alast_tune.config import TrialConfig
from alast_tune.results import FrontFile, TrialResult
from alast_tune.tune.observer import SweepObserver


class CallbackObserver:
    """Passes what the searcher tells on to the sweep's own observer, then to callbacks.

    Args:
        observer: of the sweep.
        callbacks: told last: what they do cannot delay what has to be kept.
    """

    def __init__(self, observer: SweepObserver, callbacks: Callbacks) -> None:
        self._observer = observer
        self._callbacks = callbacks

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        """A trial was handed to a worker."""
        self._observer.started(number, config, params, baseline)
        self._callbacks.tell("on_trial_start", number, config)

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """It finished an epoch."""
        self._observer.reported(number, metrics)
        self._callbacks.tell("on_epoch_end", number, metrics)

    def ended(self, result: TrialResult) -> None:
        """The study knows how it ended; one that no other dominates changes the front."""
        before = _members(self._observer.front)
        self._observer.ended(result)
        self._callbacks.tell("on_trial_end", result)
        front = self._observer.front
        if _members(front) != before:
            self._callbacks.changed(front)


def _members(front: FrontFile) -> list[str]:
    return [member.trial_id for member in front.front]
