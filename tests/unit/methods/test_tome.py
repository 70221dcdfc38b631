"""Token merging against a slow one in plain loops, and what it makes of a whole model."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from alast_tune.config import TomeConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Tome, build_method
from alast_tune.methods.tome import bipartite_merge, merged_count, tokens_after
from tests.unit.every_method import DEPTH, MODELS, vit

WIDTH, TOKENS = 32, 17  # of the plain model


def lively(options: dict[str, Any] | None = None) -> VisionTransformer:
    """Weights so large that attention is far from even and tokens differ."""
    model = vit(options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def tome(model: VisionTransformer, **options: Any) -> Tome:
    method = build_method(TomeConfig.model_validate(options), model)
    assert isinstance(method, Tome)
    return method


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def slow_merge(x_BND: Tensor, metric_BNd: Tensor, size_BN: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Bolya et al. 2023, section 3: one image, one token, one pair at a time."""
    if r == 0:
        return x_BND, size_BN
    tokens_B, sizes_B = [], []
    for x, metric, size in zip(x_BND, metric_BNd, size_BN, strict=True):
        some = range(prefix + prefix % 2, len(x), 2)  # the even positions
        others = range(prefix + (prefix + 1) % 2, len(x), 2)
        best: dict[int, tuple[float, int]] = {}
        for a in some:
            for b in others:
                cosine = float(metric[a] @ metric[b] / (metric[a].norm() * metric[b].norm()))
                if a not in best or cosine > best[a][0]:
                    best[a] = (cosine, b)
        ranked = sorted(some, key=lambda a: -best[a][0]) if best else list(some)
        pairs = min(r, (len(x) - prefix) // 2)
        members = [[token] for token in (*range(prefix), *sorted(ranked[pairs:]), *others)]
        for a in ranked[:pairs]:
            next(group for group in members if group[0] == best[a][1]).append(a)
        patches = [sum(float(size[token]) for token in group) for group in members]
        sums = [torch.stack([size[token] * x[token] for token in group]).sum(dim=0) for group in members]
        tokens_B.append(torch.stack([total / count for total, count in zip(sums, patches, strict=True)]))
        sizes_B.append(torch.tensor(patches))
    return torch.stack(tokens_B), torch.stack(sizes_B)


def slow_forward(model: Any, images_BCHW: Tensor, merges_L: tuple[int, ...]) -> Tensor:
    """The model with unfused attention: a key that stands for s patches gets log s added to its logits."""
    x_BND = model.norm_pre(model._pos_embed(model.patch_embed(images_BCHW)))
    size_BN = torch.ones(x_BND.shape[:2])
    for block, r in zip(model.blocks, merges_L, strict=True):
        attention, (B, N, _) = block.attn, x_BND.shape
        qkv = attention.qkv(block.norm1(x_BND)).reshape(B, N, 3, attention.num_heads, attention.head_dim)
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        q, k = attention.q_norm(q), attention.k_norm(k)
        logits = q @ k.transpose(2, 3) / math.sqrt(attention.head_dim) + size_BN.log()[:, None, None]
        out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1)
        x_BND = x_BND + block.ls1(attention.proj(out))
        x_BND, size_BN = slow_merge(x_BND, k.detach().mean(dim=1), size_BN, r, model.num_prefix_tokens)
        x_BND = x_BND + block.ls2(block.mlp(block.norm2(x_BND)))
    logits_BK: Tensor = model.head(model.norm(x_BND)[:, 0])
    return logits_BK


def authors_merge(
    x_BND: Tensor, metric_BNd: Tensor, size_BN1: Tensor, r: int, protected: int = 1
) -> tuple[Tensor, Tensor]:
    """``bipartite_soft_matching`` and ``merge_wavg`` of the authors' code (tome/merge.py), with a class token.

    Registers, which theirs does not know, are protected as their distillation token is, and put in front again.
    """
    r = min(r, (metric_BNd.shape[1] - protected) // 2)
    if r <= 0:
        return x_BND, size_BN1
    metric = metric_BNd / metric_BNd.norm(dim=-1, keepdim=True)
    a, b = metric[..., ::2, :], metric[..., 1::2, :]
    scores = a @ b.transpose(-1, -2)
    scores[..., : (protected + 1) // 2, :] = -math.inf
    scores[..., :, : protected // 2] = -math.inf
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True)[..., None]
    unm_idx = edge_idx[..., r:, :].sort(dim=1)[0]
    src_idx = edge_idx[..., :r, :]
    dst_idx = node_idx[..., None].gather(dim=-2, index=src_idx)

    def merge(x: Tensor) -> Tensor:
        src, dst = x[..., ::2, :], x[..., 1::2, :]
        n, t1, c = src.shape
        unm = src.gather(dim=-2, index=unm_idx.expand(n, t1 - r, c))
        src = src.gather(dim=-2, index=src_idx.expand(n, r, c))
        dst = dst.scatter_reduce(-2, dst_idx.expand(n, r, c), src, reduce="sum")
        some, others = (protected + 1) // 2, protected // 2
        return torch.cat([x[:, :protected], unm[:, some:], dst[:, others:]], dim=1)

    size = merge(size_BN1)
    return merge(x_BND * size_BN1) / size, size


def random_tokens(seed: int, batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, 5, generator=generator)
    metric = torch.randn(batch, tokens, 3, generator=generator)
    return x, metric, torch.randint(1, 9, (batch, tokens, 1), generator=generator).float()


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(0, 12), st.integers(0, 9), st.integers(1, 5))
def test_merge_equals_the_slow_one(seed: int, batch: int, patches: int, r: int, prefix: int) -> None:
    x, metric, size = random_tokens(seed, batch, prefix + patches)
    fast_x, fast_size = bipartite_merge(x, metric, size, r, prefix)
    slow_x, slow_size = slow_merge(x, metric, size[..., 0], r, prefix)
    assert fast_x.shape[1] == prefix + patches - min(r, patches // 2)
    torch.testing.assert_close(fast_x, slow_x)
    torch.testing.assert_close(fast_size[..., 0], slow_size)


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(0, 12), st.integers(0, 9), st.integers(1, 6))
def test_merge_equals_the_authors(seed: int, patches: int, r: int, prefix: int) -> None:
    """One after another too: where a token lies says to which set it belongs at the next block."""
    x, metric, size = random_tokens(seed, 2, prefix + patches)
    ours, theirs = (x, size), (x, size)
    for _ in range(3):
        ours = bipartite_merge(ours[0], metric[:, : ours[0].shape[1]], ours[1], r, prefix)
        theirs = authors_merge(theirs[0], metric[:, : theirs[0].shape[1]], theirs[1], r, prefix)
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=60)
@given(st.integers(0, 999), st.integers(1, 14), st.integers(0, 9), st.integers(1, 5))
def test_nothing_is_lost_and_the_prefix_never_merges(seed: int, patches: int, r: int, prefix: int) -> None:
    x, metric, size = random_tokens(seed, 2, prefix + patches)
    metric[:, :prefix] = metric[:, prefix : prefix + 1]  # as similar as can be
    merged, sizes = bipartite_merge(x, metric, size, r, prefix)
    torch.testing.assert_close((merged * sizes).sum(dim=1), (x * size).sum(dim=1), atol=1e-4, rtol=1e-5)
    assert torch.equal(sizes.sum(dim=1), size.sum(dim=1))
    torch.testing.assert_close(merged[:, :prefix], x[:, :prefix])
    assert torch.equal(sizes[:, :prefix], size[:, :prefix])


def test_by_hand() -> None:
    """Tokens 2, 4 are A and 1, 3 B: 2 is closest to 3, which stands for three patches."""
    x = torch.tensor([[[9.0], [1.0], [2.0], [6.0], [4.0]]])
    metric = torch.tensor([[[1.0, 0.0], [1.0, 0.3], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]])
    size = torch.tensor([[[1.0], [1.0], [1.0], [3.0], [1.0]]])
    merged, sizes = bipartite_merge(x, metric, size, 1)
    assert merged.flatten().tolist() == [9, 4, 1, (2 + 3 * 6) / 4]
    assert sizes.flatten().tolist() == [1, 1, 1, 4]


def test_no_pairs_is_the_identity() -> None:
    x, metric, size = random_tokens(0, 2, 9)
    merged, sizes = bipartite_merge(x, metric, size, 0)
    assert merged is x and sizes is size


def test_more_pairs_than_half_of_the_tokens_are_cut() -> None:
    assert [merged_count(99, tokens) for tokens in (1, 2, 3, 17, 18)] == [0, 0, 1, 8, 8]
    assert merged_count(99, 21, prefix=5) == 8
    assert tokens_after([99] * 6, 17, 1) == [17, 9, 5, 3, 2, 2, 2]
    x, metric, size = random_tokens(0, 2, 10)
    for fast, slow in zip(bipartite_merge(x, metric, size, 99), bipartite_merge(x, metric, size, 4), strict=True):
        assert torch.equal(fast, slow)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("merge", [2, (0, 5, 0, 1, 3, 0), 99], ids=str)
def test_model_equals_a_slow_one_with_proportional_attention(options: dict[str, Any], merge: Any) -> None:
    model, twin = lively(options), lively(options)
    method = tome(model, merge=merge)
    logits, slow = method.forward(images()), slow_forward(twin, images(), method.merges_L)
    torch.testing.assert_close(logits, slow, atol=1e-4, rtol=1e-4)
    logits.square().sum().backward()
    slow.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(one.grad, other.grad, atol=1e-3 * scale + 1e-6, rtol=1e-3, msg=name)


def test_plan_says_what_each_block_really_receives() -> None:
    method = tome(lively({"reg_tokens": 4}), merge=(3, 0, 2, 99, 1, 1))
    seen: list[int] = []
    for block in method.model.blocks:
        block.norm1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    method.forward(images())
    assert method.plan.tokens_L == tuple(seen) == (21, 18, 18, 16, 11, 10)
    assert method.plan.trainable_L == (True,) * DEPTH


def test_one_number_is_for_every_block_and_several_are_one_each() -> None:
    assert tome(vit(), merge=2).merges_L == (2,) * DEPTH
    assert tome(vit(), merge=(1, 2, 3, 0, 0, 1)).merges_L == (1, 2, 3, 0, 0, 1)


def block_flops(merges_L: tuple[int, ...]) -> int:
    """Forward and backward of the plain model's blocks: 2 FLOPs a multiply-add, a product's backward is two more.

    In the last block all but keys and values is the class token's alone.
    """
    total, tokens = 0, TOKENS
    for block, r in enumerate(merges_L):
        after = tokens - min(r, (tokens - 1) // 2)
        queries, beyond = (1, 1) if block == DEPTH - 1 else (tokens, after)
        products = 2 * WIDTH**2 * (tokens + queries) + 8 * WIDTH**2 * beyond  # keys, values; q and proj; fc1 and fc2
        scores_and_values = 4 * WIDTH * tokens * queries
        total += 3 * 2 * products + scores_and_values + 10 * WIDTH * tokens * queries  # fused: scores once more
        tokens = after
    return total


@pytest.mark.parametrize("target", [1.0, 0.9, 0.75, 0.6, 0.5, 0.41])
def test_target_is_reached_with_the_fewest_merges(target: float) -> None:
    found = tome(vit(), target_flops=target).merges_L

    def share(total: int) -> float:
        spread = tuple(total // DEPTH + (block < total % DEPTH) for block in range(DEPTH))
        return block_flops(spread) / block_flops((0,) * DEPTH)

    assert found == tuple(sorted(found, reverse=True)) and max(found) - min(found) <= 1
    assert share(sum(found)) <= target
    assert all(share(total) > target for total in range(sum(found)))


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^method.merge = \(1, 2\): the model has 6 blocks: give 6 numbers, or one$"):
        tome(vit(), merge=(1, 2))
    with pytest.raises(ConfigError, match=r"^method.target_flops = 0.05: no merging saves that much; give more"):
        tome(vit(), target_flops=0.05)
    for options in ({}, {"merge": 2, "target_flops": 0.5}, {"merge": 0, "merge_once_in": 0}):
        with pytest.raises(ValidationError, match="give one of merge"):
            TomeConfig.model_validate(options)
    with pytest.raises(ValidationError, match="with lora give merge instead"):
        TomeConfig.model_validate({"target_flops": 0.5, "lora": {}})
    with pytest.raises(ValidationError, match="merge_share"):  # no more than half can merge at once
        TomeConfig.model_validate({"merge_once_in": 2, "merge_share": 0.6})
    with pytest.raises(ConfigError, match=r"^method.merge_once_in = 6: the model has blocks 0 to 5$"):
        tome(vit(), merge_once_in=6)
    with pytest.raises(ConfigError, match=r"^method.merge_once_in = 5: no block comes after this one, .* an earlier"):
        tome(vit(), merge_once_in=5)
    with pytest.raises(ConfigError, match=r"^method.lora.blocks = 7: the model has blocks 0 to 5$"):
        tome(vit(), merge_once_in=2, lora={"blocks": (7,)})


@pytest.mark.parametrize(
    ("options", "once_in", "share", "expected"),
    [
        ({}, 2, 0.5, (0, 0, 8, 0, 0, 0)),
        ({}, 0, 0.3, (4, 0, 0, 0, 0, 0)),
        ({"reg_tokens": 4}, 4, 0.5, (0, 0, 0, 0, 8, 0)),
    ],
    ids=str,
)
def test_merging_once_is_a_schedule_of_one_block(
    options: dict[str, Any], once_in: int, share: float, expected: tuple[int, ...]
) -> None:
    """A share of the 16 patches; the class token and registers are none."""
    method, twin = (
        tome(lively(options), merge_once_in=once_in, merge_share=share),
        tome(lively(options), merge=expected),
    )
    assert method.merges_L == expected
    assert method.plan == twin.plan
    assert torch.equal(method.forward(images()), twin.forward(images()))


def test_on_adapters_it_starts_as_without_and_trains_them_alone() -> None:
    method, twin = tome(lively(), merge_once_in=2, lora={"rank": 2, "blocks": (3, 5)}), tome(lively(), merge_once_in=2)
    torch.testing.assert_close(method.forward(images()), twin.forward(images()), atol=1e-6, rtol=1e-6)
    assert method.plan.tokens_L == twin.plan.tokens_L == (17, 17, 17, 9, 9, 9)
    assert method.plan.trainable_L == (False, False, False, True, False, True)
    trained = {name for name, p in method.model.named_parameters() if p.requires_grad}
    assert trained and all(re.match(r"head\.|blocks\.[35]\..*\.lora_", name) for name in trained)
