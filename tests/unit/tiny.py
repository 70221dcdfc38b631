"""Trials that train in a fraction of a second: real fine-tuning, on a model and data no larger than it takes."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alast_tune.config import TrialConfig
from alast_tune.data import prepare
from alast_tune.run import Run
from alast_tune.scores import Evaluation

MODEL: dict[str, Any] = {"name": "test_vit", "pretrained": False, "image_size": 64}
"""One of timm's own: six blocks of width 64 and two heads, here with 16 patches and a class token."""

DEPTH, TOKENS, STEPS = 6, 17, 4
"""Blocks, tokens of an image, and steps of an epoch: 32 pictures by eights."""

ALAST: dict[str, Any] = {"name": "alast", "alpha": 0.5, "trainable_blocks": 3, "target_budget": 0.4}


def trial(pictures: Path, method: dict[str, Any] | None = None, **train: Any) -> TrialConfig:
    """Describe a trial on the image folder ``two_classes``: 32, 16 and 8 pictures to train, validate and test on."""
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup_epochs": 0.5, "device": "cpu"}
    return TrialConfig.model_validate(
        {
            "data": {"dataset": "folder", "root": pictures},
            "model": MODEL,
            "method": method or ALAST,
            "train": training | train,
        }
    )


def evaluation(accuracy: float, loss: float = 1.0) -> Evaluation:
    """Make up what a model has answered on a hundred images, of which a share is right: as many of either class."""
    right = round(50 * accuracy)
    return Evaluation(np.array([[right, 50 - right], [50 - right, right]]), loss)


def seen(run: Run, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    """An epoch's batches as a run's model sees them."""
    return [(prepare(images, run.device), labels.to(run.device)) for images, labels in run._loader(epoch)]
