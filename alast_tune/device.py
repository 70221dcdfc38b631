"""What a run computes on, and in which type."""

from __future__ import annotations

import torch

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What forwards run in, by ``train.precision``."""


def device_of(train: TrainConfig) -> torch.device:
    """Find the device that a run takes.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device", "cuda", "no CUDA device is visible; use auto or cpu")
    if train.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(train.device)
