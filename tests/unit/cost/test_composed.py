"""A step composed of its parts, against a walk over the whole of it."""

import random
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from alast_tune.config import MethodConfig
from alast_tune.cost.composed import Parts, StepBytes
from alast_tune.cost.step import StepOnTape
from alast_tune.methods import StepPlan, build_method
from alast_tune.models import embedded_vit

ADAPTERS = {"rank": 4, "blocks": [2, 3, 5]}
METHODS: list[dict[str, Any]] = [
    {"name": "full"},
    {"name": "head"},
    {"name": "top_k", "blocks": [1, 4]},
    {"name": "bsr", "blocks": [4, 5], "keep": 0.5},
    {"name": "tome", "merge": 2},
    {"name": "lora", "rank": 4},
    {"name": "apla", "columns": 32},
    {"name": "alast", "budget_timing": "same_step", "train_embeddings": True},
    {"name": "alast", "budget_timing": "next_step", "frozen_backward": "residual"},
    {"name": "alast", "budget_timing": "next_step", "lora": ADAPTERS},
    {"name": "alast", "budget_timing": "same_step", "frozen_backward": "residual", "lora": ADAPTERS},
]
STEPS = ((1, 4, False), (3, 2, False), (2, 4, True), (2, 2, True))
"""Images, bytes of a number in products, whether gradients are there already."""


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values()))[:40])
def test_it_equals_the_walk_to_the_byte(method: dict[str, Any]) -> None:
    config: Any = TypeAdapter(MethodConfig).validate_python(
        method | ({"trainable_blocks": 2} if "budget_timing" in method else {})
    )
    draw = random.Random(0)
    with torch.device("meta"):
        model = embedded_vit(3)
    built = build_method(config, model)
    parts, depth, tokens = Parts(model, 32), len(model.blocks), built.plan.tokens_L[0]
    drawable = ADAPTERS["blocks"] if method.get("lora") else range(depth)
    for _ in range(4 if config.name == "alast" else 1):
        plan = built.plan
        if config.name == "alast":
            tokens_L = [tokens]
            while len(tokens_L) < depth:
                tokens_L.append(tokens_L[-1] if draw.random() < 0.4 else draw.randint(2, tokens_L[-1]))
            chosen = draw.sample(list(drawable), draw.randint(0, 3))
            plan = StepPlan(tuple(tokens_L), tuple(block in chosen for block in range(depth)), draw.random() < 0.5)
        for step in STEPS:
            walk = StepOnTape(model, config, plan, 32, *step).run()
            expected = StepBytes(walk.tape.flops, walk.held_bytes, walk.tape.peak_bytes, walk.tape.live_bytes)
            assert parts.step(config, plan, *step) == expected
