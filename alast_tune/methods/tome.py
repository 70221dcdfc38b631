"""Token Merging (Bolya et al. 2023) during training: similar tokens become one.

Within each block, after its attention, the tokens are split by their position, as the authors' code does: A has the
class token (0) and every second token after it (2, 4, ...), B the others (1, 3, ...). Class token and registers never
merge. Every other token of A finds its most similar token of B, and the r best pairs merge to their mean, weighted by
how many patches each stands for. Later attention counts a token that stands for s patches s times over.

Tokens merge in every block, or once. Half of them in one block, with adapters that train, is FPET's way (Kim et al.
2025), which also learns the matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Flow, Method, Stage, StepPlan, check_blocks
from alast_tune.methods.lora import LEARNING_RATE, Adapters, add_adapters, merge_adapters
from alast_tune.methods.parameters import adapters
from alast_tune.methods.tap import AttentionTap
from alast_tune.models.backbone import (
    Backbone,
    attention_pool,
    blocks_of,
    needs_class_token_alone,
    recomputed,
    run_block,
    token_count,
)
from alast_tune.text import short_number


class TomeConfig(MethodConfig):
    """Token Merging (Bolya et al. 2023) during training: every block merges similar tokens, or one block does."""

    name: Literal["tome"] = "tome"
    label = "ToMe"
    foremost = "merge"

    merge: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="r, tokens merged away in each block; one number or one a block"
    )
    target_flops: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of r: share of full fine-tuning's FLOPs in the blocks; r is the least that reaches it",
    )
    merge_once_in: int | None = Field(
        None, ge=0, description="instead of r: number of the one block, from 0, in which tokens merge"
    )
    merge_share: float = Field(
        0.5, gt=0, le=0.5, description="share of the patch tokens that merge_once_in merges away"
    )
    lora: Adapters | None = Field(None, description="train adapters in place of the weights")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [self.merge, self.target_flops, self.merge_once_in].count(None) != 2:
            raise ValueError("give one of merge (8, say), target_flops (0.6, say) and merge_once_in (6, say)")
        if self.lora is not None and self.target_flops is not None:
            raise ValueError("target_flops is a share of what training all weights takes; with lora give merge instead")
        return self

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """All, or the adapters' and the classifier's."""
        return list(model.parameters()) if self.lora is None else adapters(model) + list(model.head.parameters())

    def why_not(self, model: Backbone) -> str:
        """No layers for the adapters, a classifier that cannot know how many patches a token is, or other blocks."""
        if self.lora is not None and (why := self.lora.why_not(model)):
            return why
        if model.global_pool != "token" or attention_pool(model) is not None:
            return "classifies from all tokens, as if each stood for one patch"
        blocks = blocks_of(model)
        known = all(type(block) is Block for block in blocks) and needs_class_token_alone(model)
        return "" if known else f"is built of {type(blocks[0]).__name__}, not of timm's plain Block"

    def splits_blocks(self) -> bool:
        """Tokens merge between the halves."""
        return True

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model."""
        return Tome(self, model)

    def flow(self, model: Backbone) -> Flow:
        """Tokens merge within blocks."""
        return Merging(self, model)

    def full_label(self) -> str:
        """Say whether adapters take the place of weights."""
        return f"{self.label} with LoRA" if self.lora else self.label

    def default_learning_rate(self) -> float | None:
        """Give that of adapters, where there are some."""
        return None if self.lora is None else LEARNING_RATE

    def trains_backbone(self) -> bool:
        """Without adapters."""
        return self.lora is None

    def words(self) -> Iterator[tuple[str, str]]:
        """Say r, or what it follows from, and the adapters' rank."""
        merge = (self.merge,) if isinstance(self.merge, int) else self.merge
        yield "merge", "" if merge is None else f"r{','.join(map(str, merge))}"
        yield "target_flops", "" if self.target_flops is None else f"flops {short_number(self.target_flops)}"
        yield "merge_once_in", "" if self.merge_once_in is None else f"once in {self.merge_once_in}"
        yield "merge_share", "" if self.merge_once_in is None else short_number(self.merge_share)
        yield "lora/rank", "" if self.lora is None else f"lora r{self.lora.rank}"


def bipartite_merge(
    x_BND: Tensor, metric_BNd: Tensor, size_BN1: Tensor, r: int, prefix: int = 1
) -> tuple[Tensor, Tensor]:
    """Merge the r most similar pairs of tokens, each token in at most one pair as the one that goes.

    Args:
        x_BND: tokens, class token first.
        metric_BNd: what similarity (cosine) is judged by: the keys, mean over heads.
        size_BN1: patches that each token stands for.
        r: pairs; at most half of the tokens that may merge.
        prefix: leading tokens that never merge: class token and registers.

    Returns:
        Tokens and sizes, (B, N-r, D) and (B, N-r, 1): the prefix, the rest of A, then B, each in the order
        in which they came. The sum of size * x and the sum of sizes stay.
    """
    r = merged_count(r, x_BND.shape[1], prefix)
    if r == 0:
        return x_BND, size_BN1
    B, N, D = x_BND.shape
    with torch.no_grad():
        metric = F.normalize(metric_BNd[:, prefix:], dim=-1)
        first_a, first_b = prefix % 2, (prefix + 1) % 2  # A has the even positions, the prefix counted
        similarity_BAC = metric[:, first_a::2] @ metric[:, first_b::2].transpose(1, 2)
        best_BA, partner_BA = similarity_BAC.max(dim=2)
        order_BA = best_BA.argsort(dim=1, descending=True, stable=True)
        gone_BR, stay_BS = order_BA[:, :r], order_BA[:, r:].sort(dim=1).values
        into_BR = partner_BA.gather(1, gone_BR)
        # Row numbers in x, and of where the merged ones land among those that are kept.
        images_B1 = torch.arange(B, device=x_BND.device)[:, None]
        first_BP = torch.arange(prefix, device=x_BND.device).expand(B, -1)
        second_BC = torch.arange(prefix + first_b, N, 2, device=x_BND.device).expand(B, -1)
        kept = (torch.cat([first_BP, prefix + first_a + 2 * stay_BS, second_BC], dim=1) + images_B1 * N).flatten()
        gone = (prefix + first_a + 2 * gone_BR + images_B1 * N).flatten()
        into = (prefix + stay_BS.shape[1] + into_BR + images_B1 * (N - r)).flatten()

    def merge(rows: Tensor) -> Tensor:
        return rows.index_select(0, kept).index_add(0, into, rows.index_select(0, gone))

    size = merge(size_BN1.reshape(B * N, 1))
    merged = merge((x_BND * size_BN1).reshape(B * N, D)) / size
    return merged.reshape(B, N - r, D), size.reshape(B, N - r, 1)


def merged_count(r: int, tokens: int, prefix: int = 1) -> int:
    """Pairs that can merge: r, but no more than half of the tokens that may."""
    return min(r, (tokens - prefix) // 2)


class Tome(Constant):
    """Everything trains, or adapters do, on fewer tokens.

    Raises:
        ConfigError: as :func:`merges`, or a block to adapt that the model does not have.
    """

    def __init__(self, config: TomeConfig, model: Backbone) -> None:
        if config.lora is not None:
            add_adapters(config.lora, model, config.from_block)
        flow = Merging(config, model)
        self.merges_L = flow.merges_L
        super().__init__(config, model, flow=flow)
        self._adapted = config.lora is not None

    def tokens(self, entering: int, start: int = 0) -> list[int]:
        """Say how many tokens each block receives, from a block on."""
        return tokens_after(self.merges_L[start:], entering, int(self.model.num_prefix_tokens))[:-1]

    def are_tokens_at(self, block: int) -> bool:
        """Not once some have merged: how many images' parts each stands for goes with them."""
        return not any(self.merges_L[:block])

    def export(self) -> Backbone:
        """The model itself; with adapters a copy in which they are merged."""
        return merge_adapters(self.model) if self._adapted else self.model


class Merging(Flow):
    """Every block with merged tokens between its attention and its MLP; after the last one nobody looks at others.

    Raises:
        ConfigError: as :func:`merges`.
    """

    def __init__(self, config: TomeConfig, model: Backbone) -> None:
        super().__init__(config, model)
        self.merges_L = merges(config, model)
        self._tap = AttentionTap(model)

    def stages(self, plan: StepPlan) -> list[Stage]:
        """Give a plan's stages, one a block; tokens come with how many patches each stands for, once some merged."""
        last = tokens_after(self.merges_L[-1:], plan.tokens_L[-1], int(self.model.num_prefix_tokens))
        counts = [*plan.tokens_L[:-1], *last]

        def run(index: int) -> Callable[[Any, int], Any]:
            return lambda tokens, leaving: self._run(index, tokens, leaving)

        return [
            Stage(run(index), counts[index], counts[index + 1], self.alone(index), False, self.alone(index))
            for index in range(len(self.merges_L))
        ]

    def _run(self, index: int, tokens: Any, leaving: int) -> Any:
        """Run a block; tokens come alone as long as each stands for one patch."""
        x_BND, size_BN1 = tokens if isinstance(tokens, tuple) else (tokens, None)
        if self.alone(index):
            return run_block(self.model, index, x_BND, mask=_weights(x_BND, size_BN1))
        given = (x_BND,) if size_BN1 is None else (x_BND, size_BN1)
        del tokens, x_BND, size_BN1  # names would hold them while the block runs
        return recomputed(self.model, index, partial(self._merge_within, index, leaving), *given)

    def _merge_within(self, index: int, leaving: int, x_BND: Tensor, size_BN1: Tensor | None = None) -> Any:
        """Run a block whose tokens merge between its halves."""
        weights, block = _weights(x_BND, size_BN1), blocks_of(self.model)[index]
        r = x_BND.shape[1] - leaving
        self._tap.listening = r > 0
        x_BND = x_BND + block.drop_path1(block.ls1(block.attn(block.norm1(x_BND), attn_mask=weights)))
        if r > 0:
            size = x_BND.new_ones(*x_BND.shape[:2], 1) if size_BN1 is None else size_BN1
            prefix = int(self.model.num_prefix_tokens)
            x_BND, size_BN1 = bipartite_merge(x_BND, self._tap.mean_keys(), size, r, prefix)
        x_BND = x_BND + block.drop_path2(block.ls2(block.mlp(block.norm2(x_BND))))
        return x_BND if size_BN1 is None else (x_BND, size_BN1)


def merges(config: TomeConfig, model: Backbone) -> tuple[int, ...]:
    """Find r of each block, (L,): as given, or the smallest total, spread evenly, that reaches the FLOPs asked for.

    Raises:
        ConfigError: another number of r's than of blocks, FLOPs that no merging reaches, or a block to merge in that
            the model does not have, or that no other block follows.
    """
    depth, tokens, prefix = len(model.blocks), token_count(model), int(model.num_prefix_tokens)
    if isinstance(config.merge, int):
        return (config.merge,) * depth
    if config.merge is not None:
        if len(config.merge) != depth:
            raise ConfigError(
                "method.merge", config.merge, f"the model has {depth} blocks: give {depth} numbers, or one"
            )
        return config.merge
    if config.merge_once_in is not None:
        check_blocks("method.merge_once_in", [config.merge_once_in], model)
        if config.merge_once_in == depth - 1:
            remedy = "no block comes after this one, which saves nothing; give an earlier one"
            raise ConfigError("method.merge_once_in", config.merge_once_in, remedy)
        r = merged_count(int(config.merge_share * (tokens - prefix) + 1e-9), tokens, prefix)
        return tuple(r if block == config.merge_once_in else 0 for block in range(depth))
    assert config.target_flops is not None
    full = _block_flops(model, [tokens] * (depth + 1))
    for total in range(depth * tokens):
        spread = tuple(total // depth + (block < total % depth) for block in range(depth))
        if _block_flops(model, tokens_after(spread, tokens, prefix)) <= config.target_flops * full:
            return spread
    raise ConfigError("method.target_flops", config.target_flops, "no merging saves that much; give more, 0.5 say")


def tokens_after(merges_L: Sequence[int], tokens: int, prefix: int) -> list[int]:
    """Tokens that reach each block, and those that leave the last: (L+1,)."""
    counts = [tokens]
    for r in merges_L:
        counts.append(counts[-1] - merged_count(r, counts[-1], prefix))
    return counts


def _block_flops(model: Backbone, counts: Sequence[int]) -> int:
    """FLOPs of all blocks' forward and backward an image, but for a constant factor."""
    total = 0
    for index, block in enumerate(blocks_of(model)):
        before, after = counts[index : index + 2]
        queries, after = (1, 1) if index == len(model.blocks) - 1 else (before, after)  # the class token alone
        keys = block.attn.qkv.weight.numel() * 2 // 3
        others = keys // 2 + block.attn.proj.weight.numel()
        mlp = block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel()
        total += 6 * (before * keys + queries * others + after * mlp) + 14 * queries * before * block.attn.attn_dim
    return total


def _weights(x_BND: Tensor, size_BN1: Tensor | None) -> Tensor | None:
    """Give what attention's scores get on top, so that a token counts as often as it stands for a patch."""
    return None if size_BN1 is None else size_BN1.log().transpose(1, 2)[:, None].to(_dtype(x_BND))


def _dtype(x: Tensor) -> torch.dtype:
    """What queries are computed in: autocast's type inside of it."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
