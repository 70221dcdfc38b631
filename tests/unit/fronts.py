"""A sweep's trials to show: among the settings of ALaST, as long as they get."""

from pathlib import Path
from typing import Any

from alast_tune.config import Limits, SweepConfig, parse, read_mapping
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import summarise
from alast_tune.tune.space import baseline_params, trial_config

SWEEP = parse(SweepConfig, read_mapping(Path(__file__).with_name("alast.yaml")))
REFERENCE = (0.0, 1e12, float(200 << 20))


def trial(
    number: int, values: tuple[float, float, float], baseline: str | None = None, seconds: float = 5.0, **more: Any
) -> TrialResult:
    """A complete trial; the peak is given in MiB."""
    shift = number / 1e6  # no two are alike
    params = {
        "method/alpha": 0.00012345 + shift,
        "method/trainable_blocks": 10 + number % 3,
        "method/floors/early": 0.12345 + shift,
        "method/floors/middle": 0.45678 + shift,
        "method/floors/late": 0.78901 + shift,
        "method/target_budget": 0.54321 + shift,
        "method/frozen_backward": "residual" if number % 2 else "exact",
        "train/learning_rate": 0.00081234 + shift,
    }
    if baseline:
        params = baseline_params(SWEEP.trial, SWEEP.space, baseline)
    accuracy, flops, peak = values
    given = {"metrics": {"train_seconds": seconds}, "device": "one", "test_accuracy": accuracy, "baseline": baseline}
    config = trial_config(SWEEP, params, baseline)
    return TrialResult(number, "complete", config, params, (accuracy, flops, peak * 2**20), 2, **(given | more))


def trials() -> list[TrialResult]:
    """Both baselines and three more, all on the front; the knee near full fine-tuning is 13."""
    return [
        trial(0, (0.94, 1e12, 100), "full", 20.0),
        trial(1, (0.935, 9e11, 95), "paper", 19.0),
        trial(13, (0.93, 5.1e11, 57), seconds=11.0),
        trial(14, (0.9, 4e11, 50), seconds=8.0),
        trial(15, (0.6, 1e11, 20), seconds=3.0),
    ]


def front(**limits: Any) -> FrontFile:
    """Their front."""
    return summarise("demo", trials(), REFERENCE, limits=Limits.model_validate(limits))
