"""Ranking tokens by the class token's attention, and keeping the best. Pure functions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Tokens = Tensor | tuple[Tensor, Tensor]
"""Tokens (B, N, D); with rotary positions, once some have gone, also which of the image's they are, (B, N)."""


def class_attention(q_BHND: Tensor, k_BHND: Tensor, scale: float) -> Tensor:
    """Attention that the class token pays to every other token, mean over the heads.

    The first row of softmax(scale q k^T), class token's own share left out: (B, N-1), entries
    in [0, 1]. Queries past the first are not looked at: O(N D), not O(N^2 D).
    """
    scores_BHN = (q_BHND[:, :, :1] @ k_BHND.transpose(-2, -1)).squeeze(2) * scale
    return scores_BHN.float().softmax(dim=-1).mean(dim=1)[:, 1:]


def attention_received(q_BHND: Tensor, k_BHND: Tensor, scale: float) -> Tensor:
    """Attention that each token receives, mean over all tokens that pay it and over the heads: (B, N), in [0, 1].

    The columns' means of softmax(scale q k^T), head by head: O(N^2 D), and never more than one head's matrix is there.
    """
    received_BN = q_BHND.new_zeros(q_BHND.shape[0], q_BHND.shape[2], dtype=torch.float32)
    for q_BND, k_BND in zip(q_BHND.unbind(1), k_BHND.unbind(1), strict=True):
        received_BN = received_BN + (q_BND @ k_BND.mT * scale).float().softmax(dim=-1).mean(dim=1)
    return received_BN / q_BHND.shape[1]


def keep_tokens(x_BND: Tensor, score_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keep the ``count`` best-scored tokens of each image; those without a score always stay.

    Args:
        x_BND: tokens; the leading N - (scores an image) are the class token and registers.
        score_BN: one score for each of the tokens that may go.
        count: how many of those stay, 1 to all of them. Ties go to the earlier position.

    Returns:
        The kept tokens, class token first and the rest in their order, and the indices into
        the scored tokens, ascending, (B, count).

    Raises:
        ValueError: count out of range.
    """
    scored = score_BN.shape[1]
    if not 1 <= count <= scored:
        raise ValueError(f"count = {count}: must be 1 to {scored}, the tokens that have a score")
    kept_BK = score_BN.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
    return select_tokens(x_BND, kept_BK, x_BND.shape[1] - scored), kept_BK


def select_tokens(x_BND: Tensor, kept_BK: Tensor, prefix: int) -> Tensor:
    """Take the first ``prefix`` tokens of each image, and those of the others that ``kept_BK`` names: (B, P+K, D)."""
    B, N, D = x_BND.shape
    always_BP = torch.arange(prefix, device=x_BND.device).expand(B, -1)
    rows_BK = torch.cat([always_BP, kept_BK + prefix], dim=1)
    rows_BK += torch.arange(0, B * N, N, device=x_BND.device)[:, None]
    # Whole rows by index_select: several times faster than gather, which would also keep x for the backward.
    return x_BND.reshape(-1, D).index_select(0, rows_BK.flatten()).reshape(B, -1, D)


def with_prefix(chosen_BP: Tensor, prefix: int) -> Tensor:
    """Turn indices of patches into those of tokens, (B, N): class token and registers first, then these."""
    first_BF = torch.arange(prefix, device=chosen_BP.device).expand(len(chosen_BP), -1)
    return torch.cat([first_BF, chosen_BP + prefix], dim=1)


def keep_count(
    budget: float,
    image_patches: int,
    arriving: int,
    prefix: int,
    reference: Literal["image", "incoming"],
    multiple: int = 1,
) -> int:
    """Patch tokens that a budget lets flow on, 1 to ``arriving``.

    ``image``: floor(b x patches of the image); ``incoming``: floor(b x tokens that arrive, class
    token and registers counted), which compounds over blocks. Rounded up to ``multiple``.
    """
    tokens = image_patches if reference == "image" else arriving + prefix
    count = math.floor(budget * tokens + 1e-9)  # 0.29 * 100 is 28.999999999999996
    count = -(-count // multiple) * multiple
    return min(max(count, 1), arriving)
