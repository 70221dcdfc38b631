"""ALaST (Devoto et al. 2024): adaptive token selection and layer freezing, on a wrapped timm model."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from alast_tune.config import AlastConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import StepPlan, blocks_of, embed, output_parameters, set_trainable, token_count
from alast_tune.methods.budgets import class_delta, relative_magnitude, sample_layers, scale_to_mean, update_budgets
from alast_tune.methods.tokens import class_attention, keep_count, keep_tokens


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
        if config.trainable_blocks > depth:
            raise ConfigError("method.trainable_blocks", config.trainable_blocks, f"the model has {depth} blocks")
        self.model = model
        self._config = config
        self._alpha = alpha
        self._generator = torch.Generator().manual_seed(seed)
        thirds = (config.floors.early, config.floors.middle, config.floors.late)
        self._floors_L = torch.tensor([thirds[block * 3 // depth] for block in range(depth)], dtype=torch.float64)

        self._calibrate_next = config.initial_budget == "calibrate"
        start = config.max_budget if config.initial_budget == "calibrate" else config.initial_budget
        initial = torch.full((depth,), float(start), dtype=torch.float64)
        self._budgets_L = update_budgets(initial, (), None, 0.0, self._floors_L, config.max_budget)
        self._previous_L = torch.zeros(depth, dtype=torch.float64) if config.first_delta == "zero" else None
        self._deltas: list[Tensor] = []

        self._all_tokens = token_count(model)
        self._tokens_L: tuple[int, ...] = (self._all_tokens,) * depth
        self._plan = StepPlan(self._tokens_L, (True,) * depth)

        outputs = output_parameters(model)
        blocks = list(model.blocks.parameters())
        known = {id(p) for p in (*outputs, *blocks)}
        embeddings = [p for p in model.parameters() if id(p) not in known]
        self._parameters = outputs + blocks + (embeddings if config.train_embeddings else [])
        set_trainable(embeddings, config.train_embeddings)
        set_trainable(outputs, True)

        self._recording = False  # the hooks stay quiet in evaluation and calibration
        self._qkv: Tensor | None = None
        for block in blocks_of(model):
            block.attn.qkv.register_forward_hook(self._remember_qkv)

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
        """Final norm, classifier and all blocks; embeddings where they train."""
        return self._parameters

    def begin_step(self, step: int) -> None:
        """Draw the blocks that train; under ``next_step`` also fix how many tokens each gets."""
        if not self._calibrate_next:  # otherwise the forward decides, once it has seen the images
            self._decide()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: every block on the tokens that its predecessors' budgets let through."""
        x_BND = embed(self.model, images_BCHW)
        calibrated = self._calibrate_next
        if calibrated:
            self._calibrate(x_BND.detach())
            self._decide()
        same_step = self._config.budget_timing == "same_step"
        prefix = int(self.model.num_prefix_tokens)
        tokens: list[int] = []
        self._deltas = []
        last = len(self.model.blocks) - 1
        self._recording = True
        for index, block in enumerate(blocks_of(self.model)):
            tokens.append(x_BND.shape[1])
            arriving = x_BND.shape[1] - prefix
            before_BD = x_BND[:, 0].detach()
            x_BND = self._run(block, self._plan.trainable_L[index], x_BND)
            self._deltas.append(class_delta(before_BD, x_BND[:, 0].detach(), self._config.delta_reduction))
            if same_step:
                self._update(index)
            if index < last:
                flow_on = self._keep(index, arriving) if same_step else self._tokens_L[index + 1] - prefix
                if flow_on < arriving:
                    x_BND, _ = keep_tokens(x_BND, self._score(block.attn)[:, prefix - 1 :], flow_on)
        self._recording, self._qkv = False, None
        self._plan = StepPlan(tuple(tokens), self._plan.trainable_L, calibrated)
        logits: Tensor = self.model.forward_head(self.model.norm(x_BND))
        return logits

    def end_step(self) -> None:
        """Move the budgets by equation 6 (``same_step`` has already), and keep the deltas."""
        deltas_L = torch.stack(self._deltas).double().cpu()  # the step's one host synchronisation
        if self._config.budget_timing == "next_step":
            self._budgets_L = update_budgets(
                self._budgets_L, deltas_L, self._previous_L, self._alpha, self._floors_L, self._config.max_budget
            )
        self._previous_L = deltas_L

    def state_dict(self) -> dict[str, Any]:
        """Budgets, last deltas, whether to calibrate, and the generator."""
        return {
            "budgets": self._budgets_L,
            "previous": self._previous_L,
            "calibrate": self._calibrate_next,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._budgets_L = state["budgets"]
        self._previous_L = state["previous"]
        self._calibrate_next = state["calibrate"]
        self._generator.set_state(state["generator"])

    def _decide(self) -> None:
        """Fix who trains and, from the budgets as they are, how many tokens each block gets."""
        config = self._config
        mask_L = sample_layers(self._budgets_L, config.trainable_blocks, self._generator, config.selection)
        for block, trains in zip(self.model.blocks, mask_L.tolist(), strict=True):
            set_trainable(block.parameters(), trains)
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
            self._config.keep_reference,
            self._config.keep_multiple,
        )

    def _update(self, index: int) -> None:
        """Equation 6 for one block, inside the forward."""
        block = slice(index, index + 1)
        self._budgets_L[block] = update_budgets(
            self._budgets_L[block],
            self._deltas[index].double().cpu().reshape(1),
            None if self._previous_L is None else self._previous_L[block],
            self._alpha,
            self._floors_L[block],
            self._config.max_budget,
        )

    @torch.no_grad()
    def _calibrate(self, x_BND: Tensor) -> None:
        """Set budgets from the relative magnitude of each block's class-token update, all tokens."""
        magnitudes = []
        for block in self.model.blocks:
            y_BND = block(x_BND)
            magnitudes.append(relative_magnitude(x_BND[:, 0], y_BND[:, 0]))
            x_BND = y_BND
        magnitudes_L = torch.stack(magnitudes).cpu()
        self._budgets_L = scale_to_mean(
            magnitudes_L, self._config.target_budget, self._floors_L, self._config.max_budget
        )
        self._calibrate_next = False

    def _run(self, block: nn.Module, trains: bool, x_BND: Tensor) -> Tensor:
        """Run a block; frozen and ``residual``: without a graph, gradients pass by the skip connection."""
        if trains or self._config.frozen_backward == "exact" or not x_BND.requires_grad:
            y_BND: Tensor = block(x_BND)
            return y_BND
        with torch.no_grad():
            y_BND = block(x_BND)
        passed: Tensor = _PassGradient.apply(x_BND, y_BND)
        return passed

    def _remember_qkv(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep a block's queries and keys, which fused attention does not give away."""
        if self._recording:
            self._qkv = output.detach()

    @torch.no_grad()
    def _score(self, attention: Any) -> Tensor:
        """Class token's attention row of the block just run, (B, N-1), from its remembered qkv."""
        assert self._qkv is not None, "scores are asked for right after the block has run"
        B, N, _ = self._qkv.shape
        q_BHND, k_BHND, _ = self._qkv.reshape(B, N, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return class_attention(attention.q_norm(q_BHND[:, :, :1]), attention.k_norm(k_BHND), attention.scale)


class _PassGradient(torch.autograd.Function):
    """Forward: y. Backward: the gradient goes to x unchanged, as if y were x + constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
