"""Training on some of the tokens, drawn at random: as timm's PatchDropout, of which the meter knows every FLOP."""

from typing import Any

import pytest
import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models.eva import Eva
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrialConfig
from alast_tune.methods import build_method
from alast_tune.testing.steps import batch, gradients, measured_steps
from tests.unit.every_method import DEPTH, vit
from tests.unit.kinds import KINDS, small


def setting(**values: Any) -> MethodConfig:
    return TrialConfig.model_validate({"method": values}).method


def ranked(first: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timm, which sorts random numbers upwards, and us, who keep the largest, draw the same tokens."""
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: first)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: -first)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_timms_patch_dropout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and gradients, on the same tokens, rotary positions or not."""
    ours, theirs = small(name).train(), small(name).train()
    side, prefix = int(ours.patch_embed.img_size[0]), int(ours.num_prefix_tokens)
    images, labels = torch.randn(3, 3, side, side), torch.tensor([0, 1, 2])
    ranked(torch.randn(3, 16), monkeypatch)
    options: dict[str, Any] = {"num_prefix_tokens": prefix, "ordered": True}
    theirs.patch_drop = (PatchDropoutWithIndices if isinstance(theirs, Eva) else PatchDropout)(0.5, **options)
    method = build_method(setting(name="full"), ours)
    method.begin_step(0, [images], 0.5)
    logits, expected = method.forward(images), theirs(images)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-4)
    for one in (logits, expected):
        F.cross_entropy(one, labels).backward()
    mine = gradients(ours)
    for where, gradient in gradients(theirs).items():
        torch.testing.assert_close(mine[where], gradient, atol=2e-5, rtol=2e-3, msg=where)
    assert method.plan.tokens_L == (8 + prefix,) * 2


METHODS: list[dict[str, Any]] = [
    {"name": "full"},
    {"name": "head"},
    {"name": "bsr", "blocks": (2, 5), "keep": 0.5},
    {"name": "tome", "merge": 2},
    {"name": "apla"},
    {"name": "lora"},
    {"name": "alast", "reading": "fast", "trainable_blocks": 3},
    {"name": "alast", "reading": "authors", "trainable_blocks": 3, "train_embeddings": False},
]


@pytest.mark.parametrize("values", METHODS, ids=lambda values: values.get("reading", values["name"]))
def test_a_share_of_1_and_one_that_rounds_to_all_are_today_s_step_bit_for_bit(values: dict[str, Any]) -> None:
    methods = [build_method(setting(**values), vit()) for _ in range(3)]
    for number in range(2):
        images, labels = batch(number)
        found = []
        for method, share in zip(methods, ((), (1.0,), (0.99,)), strict=True):
            torch.manual_seed(number)
            method.begin_step(number, [images], *share)
            F.cross_entropy(method.forward(images), labels).backward()
            method.end_step()
            found.append((method.plan, gradients(method.model)))
        (plan, expected), *others = found
        for other, mine in others:
            assert other == plan
            assert all(torch.equal(mine[where], expected[where]) for where in expected)


def test_at_least_one_patch_enters_and_the_size_of_the_images_counts() -> None:
    method = build_method(setting(name="full"), vit({"reg_tokens": 4}))

    def counts(side: int, share: float) -> tuple[int, int | None]:
        method.begin_step(0, [torch.empty(2, 3, side, side)], share)
        return method.plan.tokens_L[0], method.plan.image_tokens

    assert counts(32, 1.0) == (21, None)
    assert counts(32, 0.5) == (13, 21)
    assert counts(16, 0.5) == (7, 9)
    assert counts(32, 0.001) == (6, 21)


def test_budgets_are_shares_of_the_image_and_never_more_than_arrive() -> None:
    """As the 16 patches are counted, and not the 8 that enter."""
    floors = {"early": 0.25, "middle": 0.25, "late": 0.25}
    values = {"reading": "paper", "initial_budget": 0.75, "alpha": 0.0, "trainable_blocks": 2, "floors": floors}
    method = build_method(setting(name="alast", **values), vit())
    images, _ = batch()
    method.begin_step(0, [images], 0.5)
    method.forward(images)
    assert method.plan.tokens_L == (9,) * DEPTH
    values["initial_budget"] = 0.25
    method = build_method(setting(name="alast", **values), vit())
    method.begin_step(0, [images], 0.5)
    method.forward(images)
    assert method.plan.tokens_L == (9, *(5,) * (DEPTH - 1))


@pytest.mark.parametrize(
    ("values", "precision"),
    [
        ({"name": "full"}, "fp32"),
        ({"name": "lora"}, "bf16"),
        ({"name": "alast", "reading": "fast", "trainable_blocks": 1, "keep_multiple": 1}, "fp32"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_every_structural_kind_costs_what_is_predicted(name: str, values: dict[str, Any], precision: str) -> None:
    model, config = small(name), setting(**values)
    if config.why_not(model):
        return
    first, second = measured_steps(model, config, 24, precision, token_keep=0.4)
    assert (first.predicted.flops, second.predicted.flops) == (first.flops, second.flops)
    assert second.peak_error <= 0.01


@pytest.mark.parametrize("values", METHODS, ids=lambda values: values.get("reading", values["name"]))
def test_micro_batches_cost_what_is_predicted(values: dict[str, Any]) -> None:
    first, second = measured_steps(vit({"patch_size": 4}), setting(**values), 8, accumulate=3, token_keep=0.7)
    assert (first.predicted.flops, second.predicted.flops) == (first.flops, second.flops)
    assert second.peak_error <= 0.01
