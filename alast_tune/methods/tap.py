"""Queries and keys of the block just run, which fused attention does not give away."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from alast_tune.methods.base import blocks_of
from alast_tune.methods.tokens import class_attention


class QkvTap:
    """Listens at every block's ``qkv`` while it is told to; fused attention stays on.

    Args:
        model: its ``attn.qkv`` modules get a forward hook each.
    """

    def __init__(self, model: VisionTransformer) -> None:
        self.listening = False
        self._qkv: Tensor | None = None
        for block in blocks_of(model):
            block.attn.qkv.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.listening:
            self._qkv = output.detach()

    def forget(self) -> None:
        """Let go of the last block's, and stop listening."""
        self.listening, self._qkv = False, None

    @torch.no_grad()
    def class_scores(self, attention: Any) -> Tensor:
        """Class token's attention row of the block just run, mean over heads, (B, N-1); then forgets."""
        q_BHND, k_BHND, _ = self._take(attention)
        return class_attention(attention.q_norm(q_BHND[:, :, :1]), attention.k_norm(k_BHND), attention.scale)

    @torch.no_grad()
    def mean_keys(self, attention: Any) -> Tensor:
        """Keys of the block just run, mean over heads, (B, N, d); then forgets."""
        _, k_BHND, _ = self._take(attention)
        mean: Tensor = attention.k_norm(k_BHND).mean(dim=1)
        return mean

    def _take(self, attention: Any) -> tuple[Tensor, ...]:
        assert self._qkv is not None, "asked for right after the block's attention has run, while listening"
        B, N, _ = self._qkv.shape
        q_k_v = self._qkv.reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        self.forget()
        return q_k_v
