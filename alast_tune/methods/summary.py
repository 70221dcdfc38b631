"""What stands for an image between two blocks, and how much each of its patches matters to that.

A method that adapts asks for both: how far a block has moved the image's summary, and a score for each patch. They
follow from how the model classifies: from its class token, from the mean of its tokens, or through an attention pool.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.diff_attention import DiffAttention
from torch import Tensor, nn

from alast_tune.methods.budgets import class_delta, relative_magnitude
from alast_tune.methods.tap import AttentionTap
from alast_tune.methods.tokens import attention_received, class_attention
from alast_tune.models.backbone import Backbone, attention_pool, blocks_of, rotations, run_block
from alast_tune.parallel import world


def summarise(model: Backbone, x_BND: Tensor) -> Tensor:
    """Summarise tokens between two blocks, (B, D), without a gradient.

    The class token; the mean of the patches; or the mean of the tokens, weighted by the attention that the pool pays.
    """
    x_BND = x_BND.detach()
    if isinstance(attention_pool(model), AttentionPoolLatent):
        pooled_BND, weights_BN = _pooled(model, x_BND)
        summary_BD: Tensor = (pooled_BND * weights_BN[..., None]).sum(dim=1)
        return summary_BD
    return x_BND[:, 0] if model.global_pool == "token" else x_BND[:, int(model.num_prefix_tokens) :].mean(dim=1)


@torch.no_grad()
def summary_updates(model: Backbone, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Look at the update of the summary in each block, all tokens, from what enters the first.

    Returns:
        Relative magnitudes (figure 2), and the deltas summed over the batch (equation 5), (L,) each.
    """
    magnitudes, deltas = [], []
    for index in range(len(model.blocks)):
        y_BND = run_block(model, index, x_BND)
        before_BD, after_BD = summarise(model, x_BND), summarise(model, y_BND)
        magnitudes.append(relative_magnitude(before_BD, after_BD))
        deltas.append(class_delta(before_BD, after_BD, "batch_sum"))
        x_BND = y_BND
    return torch.stack(magnitudes), torch.stack(deltas)


class Scores(Protocol):
    """A score for each patch, from the block just run."""

    def listen(self, on: bool) -> None:
        """Prepare for the block that runs next, or stop."""

    def patches(self, index: int, y_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """Score the patches, (B, P).

        Args:
            index: of the block.
            y_BND: what has left it.
            kept_BN: which of the image's tokens these are; None: all.
        """


class AttentionScores:
    """What each patch gets of the block's attention, mean over heads: from the class token, or from all tokens.

    Args:
        model: its blocks get the hooks of :class:`AttentionTap`.
    """

    def __init__(self, model: Backbone) -> None:
        self._model = model
        self._tap = AttentionTap(model)

    def listen(self, on: bool) -> None:
        """Listen to the attention of the block that runs next, or let go of the last one's."""
        self._tap.forget()
        self._tap.listening = on

    @torch.no_grad()
    def patches(self, index: int, y_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """Score the patches, (B, P)."""
        model, prefix = self._model, int(self._model.num_prefix_tokens)
        attention = blocks_of(model)[index].attn
        q_BHND, k_BHND = self._tap.queries_and_keys(attention, rotations(model, index, kept_BN))
        if model.global_pool == "token":
            return class_attention(q_BHND, k_BHND, attention.scale)[:, prefix - 1 :]
        return attention_received(q_BHND, k_BHND, attention.scale)[:, prefix:]


class PoolScores:
    """What attention the model's pool would pay to each patch, mean over heads."""

    def __init__(self, model: Backbone) -> None:
        self._model = model

    def listen(self, on: bool) -> None:
        """Nothing to prepare: the pool looks at what leaves the block."""

    def patches(self, index: int, y_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """Score the patches, (B, P)."""
        _, weights_BN = _pooled(self._model, y_BND.detach())
        return weights_BN[:, weights_BN.shape[1] - y_BND.shape[1] + int(self._model.num_prefix_tokens) :]


class RandomScores:
    """Chance: each image's tokens are ranked anew in every block, whatever they are.

    A step's ranking follows from seed, step, rank and block alone, so that a resumed run has it too, and an image's
    from its place in the batch, however many micro-batches that is split into.
    """

    def __init__(self, model: Backbone, seed: int) -> None:
        self._prefix = int(model.num_prefix_tokens)
        self._seed, self._step = seed, 0
        self._generators: dict[int, torch.Generator] = {}

    def begin_step(self, step: int) -> None:
        """Start a step's ranking."""
        self._step = step
        self._generators.clear()

    def listen(self, on: bool) -> None:
        """Nothing to prepare."""

    def patches(self, index: int, y_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        """Score the patches, (B, P)."""
        if index not in self._generators:
            words = np.random.SeedSequence([self._seed, self._step, world()[0], index])
            generator = torch.Generator(y_BND.device).manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
            self._generators[index] = generator
        scores_BP = torch.empty(y_BND.shape[0], y_BND.shape[1] - self._prefix, device=y_BND.device)
        return scores_BP.uniform_(generator=self._generators[index])


def scores_of(model: Backbone) -> Scores:
    """Choose by how a model classifies, one for which :func:`why_no_scores` has nothing to say."""
    return AttentionScores(model) if attention_pool(model) is None else PoolScores(model)


def why_no_scores(model: Backbone) -> str:
    """Say why a model's tokens have no scores, in words that follow "the model"; nothing if they have."""
    blocks, pool = blocks_of(model), attention_pool(model)
    if pool is not None:
        known = isinstance(pool, AttentionPoolLatent) and pool.latent_len == 1 and isinstance(pool.k_norm, nn.Identity)
        return "" if known else "has an attention pool of another kind than SigLIP's"
    if not all(hasattr(getattr(block, "attn", None), "q_norm") for block in blocks):
        return f"is built of {type(blocks[0]).__name__}, whose attention scores no tokens"
    return "has differential attention, which scores no tokens" if isinstance(blocks[0].attn, DiffAttention) else ""


@torch.no_grad()
def _pooled(model: Backbone, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Give the tokens that an attention pool looks at, and its attention to them, mean over the heads, (B, N).

    Its scores are linear in a normalised token: query and key matrix make one vector a head. A bias of the keys would
    add the same to every token's score.
    """
    pool = attention_pool(model)
    prefix = int(model.num_prefix_tokens)
    if not getattr(model, "pool_include_prefix", True):
        x_BND = x_BND[:, prefix:]
    query_A = (pool.q.weight * pool.latent[0]).sum(dim=1)
    if pool.q.bias is not None:
        query_A = query_A + pool.q.bias
    key_HdD = pool.kv.weight[: len(query_A)].unflatten(0, (pool.num_heads, -1))
    vector_HD = (key_HdD * query_A.view(pool.num_heads, -1, 1)).sum(dim=1) * pool.scale
    scores_BNH: Tensor = model.norm(x_BND) @ vector_HD.T
    return x_BND, scores_BNH.float().softmax(dim=1).mean(dim=2)
