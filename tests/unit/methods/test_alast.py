"""ALaST on a real timm model: what trains, what flows, what is remembered."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import AlastConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Alast, StepPlan, build_method

DEPTH = 6


def vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=5, **options
    )


def alast(model: VisionTransformer, rate: float = 0.01, **options: Any) -> Alast:
    options = {"trainable_blocks": 3} | options
    method = build_method(AlastConfig.model_validate(options), model, TrainConfig(learning_rate=rate))
    assert isinstance(method, Alast)
    return method


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def step(method: Alast, number: int = 0) -> torch.Tensor:
    method.begin_step(number)
    loss = method.forward(images()).square().mean()
    loss.backward()
    method.end_step()
    return loss


@pytest.mark.parametrize("backward", ["exact", "residual"])
def test_gradients_reach_below_frozen_blocks(backward: str) -> None:
    model = vit()
    method = alast(model, reading="paper", trainable_blocks=1, frozen_backward=backward)
    for number in range(20):
        step(method, number)
        if method.plan.trainable_L[0]:
            break
        model.zero_grad(set_to_none=True)
    assert method.plan.trainable_L == (True,) + (False,) * (DEPTH - 1)
    gradient = model.blocks[0].mlp.fc1.weight.grad
    assert gradient is not None and float(gradient.abs().max()) > 0


def test_residual_frozen_block_computes_the_same_and_passes_the_gradient_unchanged() -> None:
    model = vit()
    exact = model.blocks[3](x := torch.randn(2, 17, 32))
    method = alast(model, reading="paper", trainable_blocks=1, frozen_backward="residual")
    x.requires_grad_(True)
    (stage,) = method._flow.stages(StepPlan((17,) * DEPTH, (False,) * DEPTH))[3:4]
    y = stage.run(x, 17)
    assert torch.equal(y, exact)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight)


def test_same_step_drops_by_the_budget_just_learned() -> None:
    """By hand: budgets 0.75 before, no earlier delta, so 12 of 16 patches flow on from every block."""
    method = alast(vit(), reading="paper", initial_budget=0.75)
    step(method)
    assert method.plan.tokens_L == (17, 13, 13, 13, 13, 13)
    assert method.budgets == (0.75,) * DEPTH


def test_budgets_move_by_equation_six_between_two_steps() -> None:
    method = alast(vit(), reading="paper", initial_budget=0.5, alpha=0.003, trainable_blocks=DEPTH)
    step(method)
    first = method.deltas
    for block in method.model.blocks:
        torch.nn.init.normal_(block.mlp.fc2.weight, std=0.3)
    step(method, 1)
    expected = [min(max(0.5 + 0.003 * (b - a), 0.01), 1.0) for a, b in zip(first, method.deltas, strict=True)]
    assert method.budgets == pytest.approx(expected)
    assert len(set(expected)) == DEPTH


def test_next_step_uses_the_budgets_learned_before() -> None:
    method = alast(vit(), reading="fast", initial_budget=0.5, keep_multiple=1, alpha=1.0)
    step(method)
    assert method.plan.tokens_L == (17, 9, 9, 9, 9, 9)
    budgets = method.budgets
    step(method, 1)
    assert method.plan.tokens_L[1] == 1 + max(1, int(budgets[0] * 16))


def test_calibration_sets_budgets_once_from_the_first_images() -> None:
    method = alast(vit(), reading="fast", target_budget=0.5, alpha=0.0)
    step(method)
    assert method.plan.calibrated
    assert len(set(method.budgets)) > 1
    budgets = method.budgets
    step(method, 1)
    assert not method.plan.calibrated
    assert method.budgets == budgets


def test_floors_hold_by_thirds_of_the_depth() -> None:
    floors = {"early": 0.9, "middle": 0.5, "late": 0.2}
    method = alast(vit(), reading="fast", target_budget=0.01, floors=floors, keep_multiple=1)
    step(method)
    assert method.budgets == (0.9, 0.9, 0.5, 0.5, 0.2, 0.2)
    assert method.plan.tokens_L == (17, 15, 15, 9, 9, 4)


def test_registers_always_stay() -> None:
    method = alast(vit(reg_tokens=4), reading="paper", initial_budget=0.1, floors={"early": 0.1})
    step(method)
    assert method.plan.tokens_L == (21, 6, 6, 6, 6, 6)


def test_authors_reading_compounds_and_updates_at_the_first_step() -> None:
    method = alast(vit(), reading="authors", alpha=0.0)
    step(method)
    assert method.plan.tokens_L == (17, 16, 15, 14, 13, 12)
    assert method.model.pos_embed.requires_grad
    moved = alast(vit(), reading="authors", alpha=1e-3)
    step(moved)
    assert all(b >= 0.9 for b in moved.budgets) and max(moved.budgets) > 0.9


def test_alpha_defaults_to_the_learning_rate() -> None:
    assert alast(vit(), rate=0.125)._planner._alpha == 0.125
    assert alast(vit(), rate=0.125, alpha=0.5)._planner._alpha == 0.5


def test_more_trainable_blocks_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^method.trainable_blocks = 7: the model has 6 blocks$"):
        alast(vit(), trainable_blocks=7)


def test_cudnn_s_attention_which_prepares_anew_for_each_token_count_is_left_out() -> None:
    method, allowed = alast(vit()), []
    method.model.blocks[1].register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    step(method)
    assert not any(allowed) and torch.backends.cuda.cudnn_sdp_enabled()  # as before, for everybody else
