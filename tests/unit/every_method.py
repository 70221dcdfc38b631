"""Every method with settings drawn at random, for tests that must hold for all of them."""

import random
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import MethodConfig, TrialConfig

DEPTH = 6
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers, layer scale, qk-norm": {"reg_tokens": 4, "init_values": 1e-3, "qk_norm": True},
    "other widths": {"embed_dim": 48, "num_heads": 3, "mlp_ratio": 3.0, "no_embed_class": True},
}


def vit(options: dict[str, Any] | None = None) -> VisionTransformer:
    """Six small blocks: 16 patches of an image of 32 pixels."""
    torch.manual_seed(0)
    base = {"embed_dim": 32, "num_heads": 2, "patch_size": 8} | (options or {})
    return VisionTransformer(img_size=32, depth=DEPTH, num_classes=10, **base)


def _alast(draw: random.Random) -> dict[str, Any]:
    return {
        "reading": draw.choice(["paper", "authors", "fast"]),
        "trainable_blocks": draw.randint(1, DEPTH),
        "alpha": 10 ** draw.uniform(-4, 0),
        "initial_budget": draw.choice(["calibrate", draw.uniform(0.5, 1)]),
        "keep_multiple": draw.choice([1, 8]),
        "train_embeddings": draw.random() < 0.5,
        "frozen_backward": draw.choice(["exact", "residual"]),
        "selection": draw.choice(["proportional", "softmax", "top_k"]),
    }


def _blocks(draw: random.Random) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(range(DEPTH), draw.randint(1, DEPTH))))


def _adapters(draw: random.Random) -> dict[str, Any]:
    targets = ["qkv", "proj", "fc1", "fc2"]
    return {"rank": draw.choice([1, 4, 8]), "targets": draw.sample(targets, draw.randint(1, 4))}


def draw_method(name: str, draw: random.Random) -> MethodConfig:
    """Draw settings of the method ``name``; ``lora+alast`` is ALaST on adapters."""
    values: dict[str, Any] = {
        "full": dict,
        "head": dict,
        "top_k": lambda: {"blocks": _blocks(draw)},
        "bsr": lambda: {"blocks": _blocks(draw), "keep": draw.uniform(0.3, 1)},
        "tome": lambda: {"merge": draw.choice([draw.randint(0, 4), tuple(draw.randint(0, 5) for _ in range(DEPTH))])},
        "lora": lambda: _adapters(draw) | {"blocks": draw.choice([None, _blocks(draw)])},
        "apla": lambda: {"columns": draw.choice([None, draw.randint(1, 31)])},
        "alast": lambda: _alast(draw),
        "lora+alast": lambda: _alast(draw) | {"lora": _adapters(draw)},
    }[name]()
    tag = "alast" if name == "lora+alast" else name
    return TrialConfig.model_validate({"method": {"name": tag} | values}).method


METHODS = ("full", "head", "top_k", "bsr", "tome", "lora", "apla", "alast", "lora+alast")
