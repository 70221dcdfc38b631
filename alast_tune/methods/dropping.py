"""A training forward in which tokens go after some of the blocks, ranked by the class token's attention in these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from alast_tune.config import MethodConfig
from alast_tune.methods.base import Flow, Stage, StepPlan, blocks_of
from alast_tune.methods.tap import QkvTap
from alast_tune.methods.tokens import keep_tokens


class Dropping(Flow):
    """Every block, and after it the dropping of tokens.

    Args:
        config: of the method.
        model: as the method has prepared it; each block's ``attn.qkv`` gets a hook.
        residual: gradients pass a frozen block by its skip connection alone.
    """

    def __init__(self, config: MethodConfig, model: VisionTransformer, residual: bool = False) -> None:
        super().__init__(config, model)
        self._residual = residual
        self._tap = QkvTap(model)

    def stages(self, plan: StepPlan) -> list[Stage]:
        """Give a plan's stages, one a block; a block whose tokens do not go is not listened to."""
        leaving_L = [*plan.tokens_L[1:], plan.tokens_L[-1]]
        stages = []
        for index, (arriving, leaving) in enumerate(zip(plan.tokens_L, leaving_L, strict=True)):
            listens = self.listens(index, arriving > leaving)
            run = partial(self._stage, index, plan.trainable_L[index], listens)
            stages.append(Stage(run, arriving, leaving, (listens, index == len(leaving_L) - 1)))
        return stages

    def listens(self, index: int, drops: bool) -> bool:
        """Say whether a block's attention will be looked at, or may be."""
        return drops

    def run(
        self, index: int, trains: bool, listens: bool, x_BND: Tensor, choose: Callable[[Tensor, Tensor], int]
    ) -> Tensor:
        """Run a block; let as many tokens flow on as ``choose`` says, given those before and after the block."""
        block = blocks_of(self.model)[index]
        self._tap.listening = listens
        y_BND = self._block(block, trains, x_BND)
        leaving, arriving = choose(x_BND, y_BND), x_BND.shape[1]
        if leaving < arriving:
            prefix = int(self.model.num_prefix_tokens)
            scores_BN = self._tap.class_scores(block.attn)[:, prefix - 1 :]
            y_BND, _ = keep_tokens(y_BND, scores_BN, leaving - prefix)
        self._tap.forget()
        return y_BND

    def _stage(self, index: int, trains: bool, listens: bool, x_BND: Tensor, leaving: int) -> Tensor:
        return self.run(index, trains, listens, x_BND, lambda before_BND, after_BND: leaving)

    def _block(self, block: Any, trains: bool, x_BND: Tensor) -> Tensor:
        if trains or not self._residual or not x_BND.requires_grad:
            y_BND: Tensor = block(x_BND)
            return y_BND
        with torch.no_grad():
            y_BND = block(x_BND)
        passed: Tensor = _PassGradient.apply(x_BND, y_BND)
        return passed


class _PassGradient(torch.autograd.Function):
    """Forward: y. Backward: the gradient goes to x unchanged, as if y were x + constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
