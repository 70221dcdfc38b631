"""Losses of a few steps on the embedded backbone and how far weights moved, kept: a refactoring must not change them.

ALAST_WRITE_GOLDEN=1 writes them anew, where a change of the method is meant.
"""

import copy
import json
import os
import re
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
    "top_k": {"name": "top_k", "blocks": (3, 11)},
    "bsr": {"name": "bsr", "blocks": (5, 11), "keep": 0.5},
    "tome": {"name": "tome", "merge": 4},
    "lora": {"name": "lora", "rank": 4, "targets": ("qkv", "fc1")},
    "apla": {"name": "apla", "columns": 20},
    "apla, last blocks": {"name": "apla", "blocks": (9, 10, 11)},
    "tome once, lora": {"name": "tome", "merge_once_in": 5, "lora": {"rank": 4}},
    "reader": {"name": "reader"},
    "reader, attentive": {"name": "reader", "read": "attentive"},
    "paper": {"name": "alast", "reading": "paper", "alpha": 0.01},
    "authors": {"name": "alast", "reading": "authors", "alpha": 1e-4},
    "fast": {"name": "alast", "reading": "fast", "alpha": 0.01},
    "fast, residual": {"name": "alast", "reading": "fast", "trainable_blocks": 4, "frozen_backward": "residual"},
    "fast, lora": {"name": "alast", "reading": "fast", "trainable_blocks": 4, "lora": {"rank": 4}},
    "full, bf16": {"name": "full"},
    "paper, bf16": {"name": "alast", "reading": "paper", "alpha": 0.01},
}


def run(values: dict[str, Any], half: bool) -> dict[str, list[float]]:
    """Four steps: the losses, and how far the embeddings, each block, the final norm and the classifier have moved."""
    torch.manual_seed(0)
    model = create_model(ModelConfig(num_classes=10))
    start = copy.deepcopy(model)
    method = build_method(TrialConfig.model_validate({"method": values}).method, model, TrainConfig(seed=3))
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (16,), generator=generator)
    losses = []
    for step in range(4):
        method.begin_step(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(method.forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()
        losses.append(round(loss.item(), 6))
    moved: dict[str, float] = {}
    end = method.export().state_dict()
    for name, before in start.state_dict().items():
        if name not in end:  # a reader is in the classifier's place
            continue
        part = re.sub(r"^(blocks\.\d+|norm|head)?.*", r"\1", name)
        moved[part] = moved.get(part, 0) + float((end[name] - before).double().square().sum())
    return {"losses": losses, "moved": [round(value**0.5, 6) for value in moved.values()]}


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_weights_are_those_kept(name: str) -> None:
    half = name.endswith("bf16")
    seen = run(METHODS[name], half)
    if os.environ.get("ALAST_WRITE_GOLDEN"):
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in (kept | {name: seen}).items()]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    kept = json.loads(FILE.read_text())[name]
    assert seen["losses"] == pytest.approx(kept["losses"], rel=5e-3 if half else 1e-3)
    assert seen["moved"] == pytest.approx(kept["moved"], rel=3e-2 if half else 1e-2, abs=1e-6)
