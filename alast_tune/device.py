"""What a run computes on, and in which type: ``train.precision`` may leave that to the device."""

from __future__ import annotations

import torch

from alast_tune.config import Precision, TrainConfig
from alast_tune.errors import ConfigError

AUTOCAST: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What forwards run in, by :func:`precision_of`."""


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


def precision_of(train: TrainConfig) -> Precision:
    """Say in what forwards run: auto is bf16 on a CUDA device of Ampere or later, on older ones and on a CPU fp32.

    Every process finds that out for itself, and nothing keeps it: a run may be resumed on another device.
    """
    if train.precision != "auto":
        return train.precision
    cards = torch.cuda.device_count() if train.device != "cpu" and torch.cuda.is_available() else 0
    newer = [torch.cuda.get_device_properties(card).major >= 8 for card in range(cards)]
    return "bf16" if newer and all(newer) else "fp32"


def set_tf32(train: TrainConfig) -> None:
    """Let this process's fp32 matrix products round their factors to TF32 on GPUs that have it, or not."""
    torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
