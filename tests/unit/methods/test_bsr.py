"""Few blocks train, and frozen ones drop the tokens that the class token looks at least."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from alast_tune.config import BsrConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Bsr, build_method
from alast_tune.methods.bsr import default_drops
from tests.unit.every_method import DEPTH, MODELS, vit


def bsr(model: Any, **options: Any) -> Bsr:
    method = build_method(BsrConfig.model_validate(options), model)
    assert isinstance(method, Bsr)
    return method


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def slow_drop(model: Any, x_BND: Tensor, block: Any, count: int) -> Tensor:
    """What flows on from a block: unfused softmax, ranked one image at a time."""
    attention, prefix = block.attn, model.num_prefix_tokens
    B, N, _ = x_BND.shape
    qkv = attention.qkv(block.norm1(x_BND)).reshape(B, N, 3, attention.num_heads, attention.head_dim)
    q, k = attention.q_norm(qkv[:, :, 0].transpose(1, 2)), attention.k_norm(qkv[:, :, 1].transpose(1, 2))
    softmax_BHNN = (q @ k.transpose(2, 3) / math.sqrt(attention.head_dim)).softmax(dim=-1)
    y_BND, kept_B = block(x_BND), []
    for image in range(B):
        score = [float(softmax_BHNN[image, :, 0, token].mean()) for token in range(N)]
        best = sorted(range(prefix, N), key=lambda token: -score[token])[:count]
        kept_B.append(torch.stack([y_BND[image, token] for token in (*range(prefix), *sorted(best))]))
    return torch.stack(kept_B)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_frozen_blocks_let_on_what_the_class_token_attends_to_most(options: dict[str, Any]) -> None:
    model = vit(options)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    method = bsr(model, blocks=(1, 5), keep=0.5, drop_after=(0, 3, 4))
    logits = method.forward(images())
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(images()))
        for index, block in enumerate(model.blocks):
            x = slow_drop(model, x, block, {0: 8, 3: 4, 4: 2}[index]) if index in (0, 3, 4) else block(x)
        torch.testing.assert_close(logits, model.head(model.norm(x)[:, 0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"keep": 0.5, "drop_after": (0, 2)}, (17, 9, 9, 5, 5, 5)),
        ({"keep": 0.7, "drop_after": (0, 1, 2, 3)}, (17, 12, 8, 5, 3, 3)),  # 16 patches, 11, 7, 4, 2
        ({"keep": 0.01, "drop_after": (1, 3)}, (17, 17, 2, 2, 2, 2)),
        ({"keep": 1.0, "drop_after": (0, 1)}, (17,) * DEPTH),
        ({"keep": 0.5, "drop_after": ()}, (17,) * DEPTH),
        ({"keep": 0.5}, (17, 17, 9, 9, 5, 5)),  # after blocks 1 and 3; the latter is nearest to two marks
    ],
)
def test_tokens_by_hand(options: dict[str, Any], tokens: tuple[int, ...]) -> None:
    method = bsr(vit(), blocks=(4, 5), **options)
    seen: list[int] = []
    for block in method.model.blocks:
        block.norm1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    method.forward(images())
    assert method.plan.tokens_L == tuple(seen) == tokens


def test_registers_do_not_count_as_patches_and_stay() -> None:
    method = bsr(vit({"reg_tokens": 4}), blocks=(5,), keep=0.5, drop_after=(0, 1))
    method.forward(images())
    assert method.plan.tokens_L == (21, 13, 9, 9, 9, 9)


def test_tokens_drop_by_default_at_the_frozen_blocks_nearest_to_the_quarters() -> None:
    def drops(depth: int, *trained: int) -> tuple[int, ...]:
        return default_drops([block in trained for block in range(depth)])

    assert drops(12, 9, 10, 11) == (3, 6, 8)
    assert drops(12, 0, 1, 2) == (3, 6, 9)
    assert drops(12, 3, 6, 9) == (2, 5, 8)  # of two as near the earlier
    assert drops(6, 4) == (1, 3)
    assert drops(4, 0, 1, 3) == (2,)
    assert drops(4, 0, 1, 2) == ()  # the last block never drops
    assert drops(2, 0, 1) == ()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "method.blocks = None: no block is chosen: explore first (fit does), or name some"),
        ({"blocks": (1, 6)}, "method.blocks = 6: the model has blocks 0 to 5"),
        ({"blocks": (1,), "drop_after": (6,)}, "method.drop_after = 6: the model has blocks 0 to 5"),
        ({"blocks": (1,), "drop_after": (0, 1)}, "method.drop_after = 1: this block trains; only frozen blocks drop"),
        ({"blocks": (1,), "drop_after": (5,)}, "method.drop_after = 5: no block comes after this one; give earlier"),
    ],
)
def test_blocks_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        bsr(vit(), **options)
    assert str(refusal.value).startswith(complaint)
