"""Losses of a few steps on the embedded backbone, kept: a refactoring must not move them.

ALAST_WRITE_GOLDEN=1 writes them anew, where a change of the method is meant.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from alast_tune.config import ModelConfig, TrainConfig, TrialConfig
from alast_tune.methods import build_method
from alast_tune.models import create_model

FILE = Path(__file__).with_name("losses.json")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "paper": {"name": "alast", "reading": "paper", "alpha": 0.01},
    "authors": {"name": "alast", "reading": "authors", "alpha": 1e-4},
    "fast": {"name": "alast", "reading": "fast", "alpha": 0.01},
    "fast, residual": {"name": "alast", "reading": "fast", "trainable_blocks": 4, "frozen_backward": "residual"},
}


def losses(values: dict[str, Any]) -> list[float]:
    torch.manual_seed(0)
    model = create_model(ModelConfig(num_classes=10))
    method = build_method(TrialConfig.model_validate({"method": values}).method, model, TrainConfig(seed=3))
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (16,), generator=generator)
    seen = []
    for step in range(4):
        method.begin_step(step)
        loss = F.cross_entropy(method.forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_kept(name: str) -> None:
    seen = losses(METHODS[name])
    if os.environ.get("ALAST_WRITE_GOLDEN"):
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps(kept | {name: seen}, indent=2) + "\n")
    assert seen == pytest.approx(json.loads(FILE.read_text())[name], rel=1e-3)
