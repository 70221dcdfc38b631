"""ALaST on a real timm model: what trains, what flows, what is remembered."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import AlastConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Alast, StepPlan, build_method
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import embed

DEPTH = 6
ALL = {"early": 1.0, "middle": 1.0, "late": 1.0}


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


@pytest.mark.parametrize(
    ("reduction", "growth"), [("batch_mean", 10_000.0), ("batch_sum", 10_000.0), ("relative", 1.0)]
)
def test_relative_deltas_do_not_grow_with_the_residual_stream(reduction: str, growth: float) -> None:
    """Norms make blocks see the same where all that is added to the stream is a hundred times as large."""
    found = []
    for scale in (1.0, 100.0):
        model = vit()
        with torch.no_grad():
            model.cls_token.normal_(std=0.1)
            for parameter in model.blocks[0].parameters():
                parameter.mul_(3)
            writers = [layer for block in model.blocks for layer in (block.attn.proj, block.mlp.fc2)]
            for layer in (model.patch_embed.proj, *writers):
                layer.weight.mul_(scale)
                layer.bias.mul_(scale)
            for stream in (model.cls_token, model.pos_embed):
                stream.mul_(scale)
        for block in model.blocks:
            block.norm1.eps = block.norm2.eps = 0.0
        method = alast(model, reading="paper", delta_reduction=reduction)
        step(method)
        found.append(method.deltas)
    small, large = found
    assert large == pytest.approx([growth * delta for delta in small], rel=1e-3)
    assert len(set(small)) == DEPTH and max(small) > 1e-3


def test_relative_deltas_are_what_calibration_looks_at() -> None:
    model = vit()
    method = alast(model, reading="paper", delta_reduction="relative", alpha=0.5, initial_budget=0.5, floors=ALL)
    magnitudes_L, _ = summary_updates(model, embed(model, images()))
    step(method)
    assert method.plan.tokens_L == (17,) * DEPTH
    assert method.deltas == pytest.approx(magnitudes_L.tolist(), rel=1e-5)


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


def test_the_same_budget_for_every_block_is_the_same_share_of_the_image() -> None:
    method = alast(vit(), reading="fast", initial_budget=0.6, alpha=0.0, keep_multiple=1)
    for number in range(3):
        step(method, number)
        assert method.plan.tokens_L == (17, 10, 10, 10, 10, 10)


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
