"""ALaST (Devoto et al. 2024): adaptive token selection and layer freezing, on a wrapped timm model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from alast_tune.config import AlastConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods.base import StepPlan, blocks_of, classify, embed, token_count
from alast_tune.methods.budgets import class_delta, relative_magnitudes, sample_layers, scale_to_mean, update_budgets
from alast_tune.methods.lora import adapted_blocks, add_adapters, merged
from alast_tune.methods.parameters import may_train, set_trainable
from alast_tune.methods.tap import QkvTap
from alast_tune.methods.tokens import keep_count, keep_tokens
from alast_tune.parallel import total_over_ranks


class Alast:
    """Every block has a budget, learned from how much it moves the class token.

    A budget is the share of patch tokens that flow on from its block, and the weight with which
    the block is drawn among the K that train at the next step.

    Args:
        config: the reading of the paper.
        model: any timm Vision Transformer with a class token; stays as it is.
        alpha: budget learning rate, equation 6.
        seed: of the drawing of blocks.

    Raises:
        ConfigError: more trainable blocks than the model has.
    """

    def __init__(self, config: AlastConfig, model: VisionTransformer, alpha: float, seed: int) -> None:
        depth = len(model.blocks)
        if config.lora is not None:
            add_adapters(config.lora, model)
        self._drawable_L = torch.tensor([True] * depth if config.lora is None else adapted_blocks(config.lora, model))
        drawable = int(self._drawable_L.sum())
        if config.trainable_blocks > drawable:
            what = "the model has" if drawable == depth else "method.lora.blocks leaves"
            raise ConfigError("method.trainable_blocks", config.trainable_blocks, f"{what} {drawable} blocks")
        self.model = model
        self.config = config
        self._alpha = alpha
        self._generator = torch.Generator().manual_seed(seed)
        thirds = (config.floors.early, config.floors.middle, config.floors.late)
        self._floors_L = torch.tensor([thirds[block * 3 // depth] for block in range(depth)], dtype=torch.float64)

        self._calibrate_next = config.initial_budget == "calibrate"
        start = config.max_budget if config.initial_budget == "calibrate" else config.initial_budget
        initial = torch.full((depth,), float(start), dtype=torch.float64)
        self._budgets_L = update_budgets(initial, (), None, 0.0, self._floors_L, config.max_budget)
        self._previous_L = torch.zeros(depth, dtype=torch.float64) if config.first_delta == "zero" else None
        self._micro_batches: Sequence[Tensor] = ()
        self._deltas: list[Tensor] = []  # (L,) of each micro-batch, summed over
        self._images = 0  # so many images

        self._all_tokens = token_count(model)
        self._tokens_L: tuple[int, ...] = (self._all_tokens,) * depth
        self._plan = StepPlan(self._tokens_L, (True,) * depth)

        self._parameters = may_train(config, model)
        set_trainable(model.parameters(), False)
        set_trainable(self._parameters, True)
        chosen = {id(p) for p in self._parameters}
        self._of_block = [[p for p in block.parameters() if id(p) in chosen] for block in model.blocks]
        self._tap = QkvTap(model)

    @property
    def plan(self) -> StepPlan:
        """Of the last step, as it was carried out."""
        return self._plan

    @property
    def budgets(self) -> tuple[float, ...]:
        """One a block, in [its floor, max_budget]."""
        return tuple(self._budgets_L.tolist())

    @property
    def deltas(self) -> tuple[float, ...]:
        """Class-token deltas of the last step, one a block; empty before the first."""
        return () if self._previous_L is None else tuple(self._previous_L.tolist())

    def parameters(self) -> list[nn.Parameter]:
        """Classifier, and final norm and all blocks or their adapters; embeddings where they train."""
        return self._parameters

    def begin_step(self, step: int, micro_batches: Sequence[Tensor] = ()) -> None:
        """Draw the blocks that train; under ``next_step`` also fix how many tokens each gets."""
        self._deltas, self._images, self._micro_batches = [], 0, micro_batches
        if not self._calibrate_next:  # otherwise the forward decides, once it has seen the images
            self._decide()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: every block on the tokens that its predecessors' budgets let through.

        The step's first one calibrates on all its micro-batches. Those that follow have its plan: budgets that learn
        within a step do so from the first alone, which is why these are refused with micro-batches (``build_method``).
        """
        x_BND = embed(self.model, images_BCHW)
        first = not self._deltas
        calibrated = self._calibrate_next
        if calibrated:
            self._calibrate(x_BND.detach())
            self._decide()
        learning = first and self.config.budget_timing == "same_step"
        planned = None if learning else self._plan.tokens_L
        prefix = int(self.model.num_prefix_tokens)
        tokens: list[int] = []
        deltas: list[Tensor] = []
        last = len(self.model.blocks) - 1
        for index, block in enumerate(blocks_of(self.model)):
            tokens.append(x_BND.shape[1])
            arriving = x_BND.shape[1] - prefix
            before_BD = x_BND[:, 0].detach()
            self._tap.listening = index < last and (planned is None or planned[index + 1] < tokens[-1])
            x_BND = self._run(block, self._plan.trainable_L[index], x_BND)
            deltas.append(class_delta(before_BD, x_BND[:, 0].detach(), "batch_sum"))
            if learning:
                self._update(index, deltas[-1], len(images_BCHW))
            if index < last:
                flow_on = self._keep(index, arriving) if planned is None else planned[index + 1] - prefix
                if flow_on < arriving:
                    scores_BN = self._tap.class_scores(block.attn)[:, prefix - 1 :]
                    x_BND, _ = keep_tokens(x_BND, scores_BN, flow_on)
            self._tap.forget()
        if first:
            self._plan = StepPlan(tuple(tokens), self._plan.trainable_L, calibrated)
        self._deltas.append(torch.stack(deltas))
        self._images += len(images_BCHW)
        return classify(self.model, x_BND)

    def end_step(self) -> None:
        """Move the budgets by equation 6 (``same_step`` has already), and keep the deltas.

        Raises:
            DivergedError: a delta that is not finite.
        """
        deltas_L = self._reduce(torch.stack(self._deltas).sum(dim=0), self._images)
        if self.config.budget_timing == "next_step":
            self._budgets_L = update_budgets(
                self._budgets_L, deltas_L, self._previous_L, self._alpha, self._floors_L, self.config.max_budget
            )
        self._previous_L = deltas_L

    def export(self) -> VisionTransformer:
        """The model itself; with adapters a copy in which they are merged."""
        return self.model if self.config.lora is None else merged(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Budgets, last deltas, whether to calibrate, and the generator."""
        return {
            "budgets": self._budgets_L.clone(),  # same_step writes into them
            "previous": self._previous_L,
            "calibrate": self._calibrate_next,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._budgets_L = state["budgets"].clone()
        self._previous_L = state["previous"]
        self._calibrate_next = state["calibrate"]
        self._generator.set_state(state["generator"])

    def _decide(self) -> None:
        """Fix who trains and, from the budgets as they are, how many tokens each block gets."""
        config = self.config
        mask_L = torch.zeros_like(self._drawable_L)
        mask_L[self._drawable_L] = sample_layers(
            self._budgets_L[self._drawable_L], config.trainable_blocks, self._generator, config.selection
        )
        for parameters, trains in zip(self._of_block, mask_L.tolist(), strict=True):
            set_trainable(parameters, trains)
        prefix = int(self.model.num_prefix_tokens)
        tokens = [self._all_tokens]
        for index in range(len(self.model.blocks) - 1):
            tokens.append(prefix + self._keep(index, tokens[-1] - prefix))
        self._tokens_L = tuple(tokens)
        self._plan = StepPlan(self._tokens_L, tuple(mask_L.tolist()))

    def _keep(self, index: int, arriving: int) -> int:
        """Patch tokens that flow on from a block, by its budget."""
        patches = self._all_tokens - int(self.model.num_prefix_tokens)
        return keep_count(
            float(self._budgets_L[index]),
            patches,
            arriving,
            int(self.model.num_prefix_tokens),
            self.config.keep_reference,
            self.config.keep_multiple,
        )

    def _update(self, index: int, delta: Tensor, images: int) -> None:
        """Equation 6 for one block, inside the forward."""
        block = slice(index, index + 1)
        self._budgets_L[block] = update_budgets(
            self._budgets_L[block],
            self._reduce(delta.reshape(1), images),
            None if self._previous_L is None else self._previous_L[block],
            self._alpha,
            self._floors_L[block],
            self.config.max_budget,
        )

    def _reduce(self, sums: Tensor, images: int) -> Tensor:
        """Turn deltas summed over this rank's images into the reading's, on the CPU: here the host waits.

        Raises:
            DivergedError: one that is not finite.
        """
        totals, count = total_over_ranks(sums, images)
        deltas = _finite(totals.double().cpu())
        return deltas / count if self.config.delta_reduction == "batch_mean" else deltas

    def _calibrate(self, x_BND: Tensor) -> None:
        """Set budgets from the relative magnitude of each block's class-token update, all tokens of all micro-batches.

        Args:
            x_BND: what enters the first block, of the first micro-batch.
        """
        sums_L, seen = relative_magnitudes(self.model.blocks, x_BND) * len(x_BND), len(x_BND)
        for images_BCHW in self._micro_batches[1:]:
            with torch.no_grad():
                x_BND = embed(self.model, images_BCHW)
            sums_L += relative_magnitudes(self.model.blocks, x_BND) * len(x_BND)
            seen += len(x_BND)
        sums_L, images = total_over_ranks(sums_L, seen)
        self._budgets_L = scale_to_mean(
            _finite(sums_L.cpu() / images), self.config.target_budget, self._floors_L, self.config.max_budget
        )
        self._calibrate_next = False

    def _run(self, block: nn.Module, trains: bool, x_BND: Tensor) -> Tensor:
        """Run a block; frozen and ``residual``: without a graph, gradients pass by the skip connection."""
        if trains or self.config.frozen_backward == "exact" or not x_BND.requires_grad:
            y_BND: Tensor = block(x_BND)
            return y_BND
        with torch.no_grad():
            y_BND = block(x_BND)
        passed: Tensor = _PassGradient.apply(x_BND, y_BND)
        return passed


def _finite(deltas: Tensor) -> Tensor:
    """Give them back if they are numbers: a budget must not be made of anything else."""
    if not deltas.isfinite().all():
        raise DivergedError("a class-token delta is not finite: training has diverged; lower train.learning_rate")
    return deltas


class _PassGradient(torch.autograd.Function):
    """Forward: y. Backward: the gradient goes to x unchanged, as if y were x + constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
