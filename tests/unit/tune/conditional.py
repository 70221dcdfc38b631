"""A space of three methods, each with ranges of its own, for the tests of whatever meets one."""

from typing import Any

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.tune.forecast import Costs

METHODS: dict[str, Any] = {
    "lora": {
        "method": {"name": "lora"},
        "method/rank": {"type": "categorical", "choices": [16, 4]},
        "train/learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    },
    "full": {
        "method": {"name": "full"},
        "train/learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        "train/optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
    },
    "head": {"method": {"name": "head"}},
}
SPACE: dict[str, Any] = {
    "train/batch_size": {"type": "categorical", "choices": [16, 32]},
    "way": {"type": "variants", "variants": METHODS},
}


def sweep(**options: Any) -> SweepConfig:
    """A sweep over the three methods."""
    values = {"study": "journal", "trials": 16, "trial": {"train": {"epochs": 3}}, "space": SPACE}
    return SweepConfig.model_validate(values | options)


def accuracy(config: TrialConfig) -> float:
    """What is made up for a trial: the larger the learning rate the better, and LoRA better than the others."""
    return min(1.0, 0.3 + 0.3 * (config.method.name == "lora") + 3 * config.train.learning_rate)


def forecast(config: TrialConfig, growth: float = 0.0) -> Costs:
    """Of the whole, what a method trains and how large its batches are."""
    share = {"full": 1.0, "lora": 0.7, "head": 0.4}.get(config.method.name, 0.6)
    return Costs(1e12 * share * (1 + 1 / config.train.batch_size), int(1e6 * share * config.train.batch_size))
