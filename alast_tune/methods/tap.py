"""Queries and keys of the block just run, which fused attention does not give away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alast_tune.models.backbone import Backbone, blocks_of, rotate


class AttentionTap:
    """Listens at every block's attention while it is told to; fused attention stays on.

    Args:
        model: of each block's ``attn``, ``q_norm`` and ``k_norm`` get a forward hook.
    """

    def __init__(self, model: Backbone) -> None:
        self.listening = False
        self._heard: dict[str, Tensor] = {}
        for block in blocks_of(model):
            block.attn.q_norm.register_forward_hook(self._remember("q"))
            block.attn.k_norm.register_forward_hook(self._remember("k"))

    def _remember(self, name: str) -> Any:
        def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self.listening:
                self._heard[name] = output.detach()

        return remember

    def forget(self) -> None:
        """Let go of the last block's, and stop listening."""
        self.listening = False
        self._heard.clear()

    @torch.no_grad()
    def queries_and_keys(self, attention: Any, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give those that the block just run has compared, (B, H, N, d) each; then forget.

        Args:
            attention: the block's.
            rope: rotary positions that the block has got.
        """
        q_BHND, k_BHND = (rotate(attention, x_BHND, rope) for x_BHND in self._take())
        if (groups := getattr(attention, "num_kv_groups", 1)) > 1:
            k_BHND = k_BHND.repeat_interleave(groups, dim=1)
        return q_BHND, k_BHND

    @torch.no_grad()
    def mean_keys(self) -> Tensor:
        """Give the keys of the block just run, without positions, mean over heads, (B, N, d); then forget."""
        mean_BNd: Tensor = self._take()[1].mean(dim=1)
        return mean_BNd

    def _take(self) -> tuple[Tensor, Tensor]:
        assert self._heard, "asked for right after the block's attention has run, while listening"
        heard = self._heard["q"], self._heard["k"]
        self.forget()
        return heard
