"""A step composed of its parts: each is run once, for all images and tokens, and the model is not touched."""

import random
from typing import Any

import pytest
import torch

from alast_tune.config import TrialConfig
from alast_tune.cost import StepCosts, part, prediction
from alast_tune.cost.prediction import Precision
from alast_tune.methods import StepPlan, build_method
from tests.unit.every_method import DEPTH, MODELS, vit

METHODS: list[dict[str, Any]] = [
    {"name": "full"},
    {"name": "apla", "columns": 9},
    {"name": "reader", "read": "attentive"},
    {"name": "bsr", "blocks": [2, 5], "keep": 0.5},
    {"name": "tome", "merge": 3},
    {"name": "alast", "reading": "authors", "trainable_blocks": 2},
    {"name": "alast", "reading": "fast", "trainable_blocks": 2, "frozen_backward": "residual", "lora": {"rank": 4}},
]


def drawn_plan(draw: random.Random, most: int, least: int) -> StepPlan:
    tokens_L = [most]
    while len(tokens_L) < DEPTH:
        tokens_L.append(tokens_L[-1] if draw.random() < 0.4 else draw.randint(least, tokens_L[-1]))
    chosen = draw.sample(range(DEPTH), draw.randint(0, DEPTH))
    return StepPlan(tuple(tokens_L), tuple(block in chosen for block in range(DEPTH)), draw.random() < 0.5)


@pytest.mark.parametrize("values", METHODS, ids=lambda values: values.get("reading", values["name"]))
@pytest.mark.parametrize("kind", MODELS)
def test_it_does_not_matter_on_how_many_images_and_tokens_a_part_was_run(values: dict[str, Any], kind: str) -> None:
    model = vit(MODELS[kind] | {"patch_size": 4})
    config = TrialConfig.model_validate({"method": values}).method
    method, draw = build_method(config, model), random.Random(0)
    once, again = StepCosts(model, 32), StepCosts(model, 32)
    prefix = int(model.num_prefix_tokens)
    again._run_with = (59, 2 * 41 + prefix, 43)
    assert once._run_with != again._run_with
    again._labels = torch.empty(59, dtype=torch.int64)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        plan = drawn_plan(draw, 64 + prefix, prefix + 1) if config.name == "alast" else method.plan
        for accumulating in (False, True):
            step = again._micro_step(config, plan, 6, precision, accumulating)
            assert once._micro_step(config, plan, 6, precision, accumulating) == step


def test_sizes_are_taken_apart() -> None:
    assert part.split_size(59 * 84 * 84 * 12, (59, 84, 43, 83, 42 * 17)) == ((1, 2, 0, 0, 0), 12)
    assert part.split_size(4 * 768 * 768, (59, 84, 1, 83, 1)) == ((0, 0, 0, 0, 0), 4 * 768 * 768)


def test_a_new_plan_needs_no_run_once_its_kinds_of_blocks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draw = vit({"patch_size": 4}), random.Random(0)
    config = TrialConfig.model_validate({"method": {"name": "alast", "trainable_blocks": 3}}).method
    build_method(config, model)
    known = StepCosts(model, 32)
    for _ in range(60):
        known._micro_step(config, drawn_plan(draw, 65, 2), 8, "fp32")
    monkeypatch.setattr(prediction, "run_part", None)
    costs = {known._micro_step(config, drawn_plan(draw, 65, 2), 8, "fp32") for _ in range(20)}
    assert len(costs) > 15


def test_the_model_is_left_as_it_was() -> None:
    model = vit()
    config = TrialConfig.model_validate({"method": {"name": "alast", "trainable_blocks": 3}}).method
    method = build_method(config, model)
    before = [(p.requires_grad, p.grad, p.clone()) for p in model.parameters()]
    StepCosts(model, 32)._micro_step(config, StepPlan((17, 17, 9, 9, 5, 5), (True, False) * 3), 8, "bf16", True)
    for parameter, (requires_grad, grad, value) in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad == requires_grad and parameter.grad is grad
        assert torch.equal(parameter, value)
    assert all(len(block.attn.q_norm._forward_hooks) == 1 for block in model.blocks)  # type: ignore[union-attr]
    assert method.plan.tokens_L == (17,) * DEPTH
