"""A training forward in which tokens go after some of the blocks, ranked by their scores in these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alast_tune.config import MethodConfig
from alast_tune.methods.base import Flow, Stage, StepPlan
from alast_tune.methods.summary import scores_of
from alast_tune.methods.tokens import Tokens, keep_tokens, with_prefix
from alast_tune.models.backbone import Backbone, has_rotary_positions, run_block


class Dropping(Flow):
    """Every block, and after it the dropping of tokens.

    Args:
        config: of the method.
        model: as the method has prepared it; each block's attention may get hooks.
        residual: gradients pass a frozen block by its skip connection alone.
    """

    def __init__(self, config: MethodConfig, model: Backbone, residual: bool = False) -> None:
        super().__init__(config, model)
        self._residual = residual
        self._scores = scores_of(model)

    def stages(self, plan: StepPlan) -> list[Stage]:
        """Give a plan's stages, one a block; a block whose tokens do not go is not listened to."""
        leaving_L = [*plan.tokens_L[1:], plan.tokens_L[-1]]
        stages = []
        for index, (arriving, leaving) in enumerate(zip(plan.tokens_L, leaving_L, strict=True)):
            listens = self.listens(index, arriving > leaving)
            run = partial(self._stage, index, plan.trainable_L[index], listens)
            kind = listens, index == len(leaving_L) - 1
            stages.append(Stage(run, arriving, leaving, kind, alone=self.alone(index)))
        return stages

    def listens(self, index: int, drops: bool) -> bool:
        """Say whether a block's attention will be looked at, or may be."""
        return drops

    def run(
        self, index: int, trains: bool, listens: bool, tokens: Tokens, choose: Callable[[Tensor, Tensor], int]
    ) -> Tokens:
        """Run a block; let as many tokens flow on as ``choose`` says, given those before and after the block."""
        x_BND, kept_BN = tokens if isinstance(tokens, tuple) else (tokens, None)
        self._scores.listen(listens)
        y_BND = self._block(index, trains, x_BND, kept_BN)
        leaving, arriving = choose(x_BND, y_BND), x_BND.shape[1]
        if leaving < arriving:
            prefix = int(self.model.num_prefix_tokens)
            scores_BP = self._scores.patches(index, y_BND, kept_BN)
            y_BND, chosen_BP = keep_tokens(y_BND, scores_BP, leaving - prefix)
            if has_rotary_positions(self.model):
                chosen_BN = with_prefix(chosen_BP, prefix)
                kept_BN = chosen_BN if kept_BN is None else kept_BN.gather(1, chosen_BN)
        self._scores.listen(False)
        return y_BND if kept_BN is None or index == len(self.model.blocks) - 1 else (y_BND, kept_BN)

    def _stage(self, index: int, trains: bool, listens: bool, tokens: Tokens, leaving: int) -> Tokens:
        return self.run(index, trains, listens, tokens, lambda before_BND, after_BND: leaving)

    def _block(self, index: int, trains: bool, x_BND: Tensor, kept_BN: Tensor | None) -> Tensor:
        if trains or not self._residual or not x_BND.requires_grad:
            return run_block(self.model, index, x_BND, kept_BN)
        with torch.no_grad():
            y_BND = run_block(self.model, index, x_BND, kept_BN)
        skipped_BND = x_BND if len(y_BND[0]) == len(x_BND[0]) else x_BND[:, : y_BND.shape[1]]
        passed: Tensor = _PassGradient.apply(skipped_BND, y_BND)
        return passed


class _PassGradient(torch.autograd.Function):
    """Forward: y. Backward: the gradient goes to x unchanged, as if y were x + constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
