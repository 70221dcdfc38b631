"""Closed-form FLOPs equal torch's FlopCounterMode to the last FLOP."""

import random
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost import forward_flops, step_flops
from alast_tune.methods import build_method

DEPTH = 6
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers, layer scale, qk-norm": {"reg_tokens": 4, "init_values": 1e-3, "qk_norm": True},
    "other widths": {"embed_dim": 48, "num_heads": 3, "mlp_ratio": 3.0, "no_embed_class": True},
}


def vit(options: dict[str, Any]) -> VisionTransformer:
    torch.manual_seed(0)
    base = {"embed_dim": 32, "num_heads": 2} | options
    return VisionTransformer(img_size=32, patch_size=8, depth=DEPTH, num_classes=10, **base)


def random_method(draw: random.Random) -> dict[str, Any]:
    return {
        "name": "alast",
        "reading": draw.choice(["paper", "authors", "fast"]),
        "trainable_blocks": draw.randint(1, DEPTH),
        "alpha": 10 ** draw.uniform(-4, 0),
        "initial_budget": draw.choice(["calibrate", draw.uniform(0.5, 1)]),
        "keep_multiple": draw.choice([1, 8]),
        "train_embeddings": draw.random() < 0.5,
        "frozen_backward": draw.choice(["exact", "residual"]),
        "selection": draw.choice(["proportional", "softmax", "top_k"]),
    }


def check(options: dict[str, Any], method_values: dict[str, Any], seed: int, steps: int = 2) -> None:
    model = vit(options)
    config = TrialConfig.model_validate({"method": method_values}).method
    method = build_method(config, model, TrainConfig(seed=seed))
    batch = 1 + seed % 3
    for number in range(steps):
        with FlopCounterMode(display=False) as counter:
            method.begin_step(number)
            method.forward(torch.randn(batch, 3, 32, 32)).square().mean().backward()
        method.end_step()
        model.zero_grad()
        assert step_flops(model, config, method.plan, 32, batch) == counter.get_total_flops(), method.plan


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("name", ["full", "head"])
def test_fixed_methods(options: dict[str, Any], name: str) -> None:
    check(options, {"name": name}, seed=2)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_alast_over_random_settings_and_plans(options: dict[str, Any]) -> None:
    draw = random.Random(0)
    for seed in range(12):
        check(options, random_method(draw), seed)


def test_evaluation_is_one_forward() -> None:
    model = vit({}).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(3, 3, 32, 32))
    assert forward_flops(model, 32, 3) == counter.get_total_flops()
