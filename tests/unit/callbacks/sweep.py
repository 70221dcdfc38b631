"""What happens in a small sweep, told to one callback."""

from dataclasses import replace
from typing import Any

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise

TRIAL = TrialConfig.model_validate({"method": {"name": "alast", "alpha": 0.5}, "train": {"epochs": 2}})


def happen(callback: Any, sweep: SweepConfig) -> FrontFile:
    """Two trials side by side, of which one fails; one that was foreseen to break a limit."""
    good = TrialResult(0, "complete", TRIAL, {"method/alpha": 0.5}, (0.8, 2e12, 4e8), epochs=2)
    bad = replace(good, number=1, state="failed", values=None, reason="not a finite number")
    front = summarise(sweep.name, [good, bad], (0.0, 4e12, 8e8))
    callback.on_sweep_start(sweep)
    for number in (0, 1):
        callback.on_trial_start(number, TRIAL)
    for epoch in (1, 2):
        callback.on_epoch_end(0, {"epoch": float(epoch), "accuracy": 0.4 * epoch, "train_flops": 1e12 * epoch})
    callback.on_epoch_end(1, {"epoch": 1.0, "accuracy": 0.1, "train_flops": 1e12})
    callback.on_trial_end(good)
    if hasattr(callback, "on_front_change"):
        callback.on_front_change(front)
    callback.on_trial_end(bad)
    callback.on_trial_end(replace(bad, number=2, state="infeasible", launched=False))
    callback.on_trial_start(3, TRIAL)  # still running as the sweep ends
    callback.on_sweep_end(front)
    return front
