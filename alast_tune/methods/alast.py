"""ALaST (Devoto et al. 2024): adaptive token selection and layer freezing, on a wrapped timm model.

Its settings, and three readings of the paper over them; ``adaptive.py`` has the training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import nn

from alast_tune.config import MethodConfig, Record, TrainConfig, as_plain_values
from alast_tune.errors import ConfigError
from alast_tune.methods.adaptive import Alast, AlastFlow
from alast_tune.methods.base import FirstLook, Flow, Foreseen, Method, StepPlan
from alast_tune.methods.lora import LEARNING_RATE, Adapters
from alast_tune.methods.parameters import adapters, embeddings, outputs
from alast_tune.methods.planner import budget_rate, foresee_plans
from alast_tune.methods.summary import why_no_scores
from alast_tune.models.backbone import Backbone, why_no_halves
from alast_tune.text import short_number


class Floors(Record):
    """Smallest share of patch tokens that may be kept, one for each third of the depth, in (0, 1]."""

    early: float = Field(0.1, gt=0, le=1)
    middle: float = Field(0.1, gt=0, le=1)
    late: float = Field(0.1, gt=0, le=1)


READINGS: dict[str, dict[str, Any]] = {
    "paper": {"floors": {"early": 0.01, "middle": 0.01, "late": 0.01}},
    "authors": {
        "delta_reduction": "batch_sum",
        "initial_budget": 0.9,
        "floors": {"early": 0.5, "middle": 0.5, "late": 0.5},
        "keep_reference": "incoming",
        "selection": "softmax",
        "first_delta": "zero",
        "train_embeddings": True,
    },
    "fast": {
        "initial_budget": "calibrate",
        "budget_timing": "next_step",
        "keep_multiple": 8,
    },
}
"""What each reading sets; everything it leaves out is the field's default."""


class AlastConfig(MethodConfig):
    """ALaST (Devoto et al. 2024), every ambiguity of the paper an option, three readings over them."""

    name: Literal["alast"] = "alast"
    label = "ALaST"
    foremost = "trainable_blocks"

    reading: Literal["paper", "authors", "fast"] = Field(
        "fast", description="defaults of the options below: the paper's text, a co-author's code, or ours"
    )
    trainable_blocks: int = Field(9, ge=0, description="K, blocks that train at a step")
    alpha: float | None = Field(None, ge=0, description="budget learning rate; unset: the learning rate, as the paper")
    floors: Floors = Field(default_factory=Floors, description="token-keep floors: early, middle, late third")
    max_budget: float = Field(1.0, gt=0, le=1, description="budgets are clipped to [floor, max_budget]")
    initial_budget: Annotated[float, Field(gt=0, le=1)] | Literal["calibrate"] = Field(
        1.0, description="calibrate: from the relative magnitude of each block's class-token update"
    )
    target_budget: float = Field(0.6, gt=0, le=1, description="mean budget that calibrate aims at")
    delta_reduction: Literal["batch_mean", "batch_sum", "relative"] = Field(
        "batch_mean",
        description="class-token delta, equation 5, mean or sum over the batch; relative: |f(x)| / |f(x) + x|, mean "
        "over the batch, so that one alpha means the same on every model",
    )
    first_delta: Literal["skip", "zero"] = Field(
        "skip", description="before the first step: no update, or a delta of 0"
    )
    budget_timing: Literal["same_step", "next_step"] = Field(
        "same_step", description="when a new budget counts; next_step needs no host synchronisation in the forward"
    )
    keep_reference: Literal["image", "incoming"] = Field(
        "image", description="share of the image's patch tokens, or of those that arrive (compounds over blocks)"
    )
    keep_multiple: int = Field(1, ge=1, description="round the number kept up to a multiple of this")
    ranking: Literal["attention", "random"] = Field(
        "attention", description="tokens that stay: those attended to most, or any (to see what attention is worth)"
    )
    drop_tokens: Literal["after_block", "before_mlp"] = Field(
        "after_block", description="before_mlp: between a block's attention and its MLP, as EViT does"
    )
    selection: Literal["proportional", "softmax", "top_k", "uniform"] = Field(
        "proportional", description="how the K blocks are drawn; uniform: each with the same chance"
    )
    train_embeddings: bool = Field(False, description="train patch and position embeddings as well")
    frozen_backward: Literal["exact", "residual"] = Field(
        "exact", description="residual: gradients pass a frozen block by its skip connection alone (approximation)"
    )
    lora: Adapters | None = Field(
        None,
        description="train adapters in place of the blocks' weights: budgets and freezing act on them (appendix C)",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _fill_reading(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        preset = READINGS.get(values.get("reading", "fast"), {})
        own = as_plain_values(values.get("floors", {}))
        floors = {**preset.get("floors", {}), **own} if isinstance(own, dict) else own
        config = handler({**preset, **values, "floors": floors})
        # What the reading filled in is not "set": another reading may still replace it (apply_params).
        config.model_fields_set.intersection_update(values)
        config.floors.model_fields_set.intersection_update(own)
        return config

    @model_validator(mode="after")
    def _check(self) -> Self:
        for third, floor in self.floors.model_dump().items():
            if floor > self.max_budget:
                raise ValueError(f"floors.{third} = {floor} is above max_budget = {self.max_budget}")
        if self.drop_tokens == "before_mlp" and self.budget_timing == "same_step":
            remedy = "drops before the block's delta is known; set method.budget_timing: next_step, or after_block here"
            raise ConfigError("method.drop_tokens", self.drop_tokens, remedy)
        return self

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """Classifier, and final norm and all blocks or their adapters; embeddings where they train."""
        before = embeddings(model) if self.train_embeddings else []
        if self.lora is None:
            return outputs(model) + list(model.blocks.parameters()) + before
        return adapters(model) + list(model.head.parameters()) + before

    def why_not(self, model: Backbone) -> str:
        """Tokens without scores, blocks that cannot be gone between, or no layers for the adapters."""
        why = why_no_scores(model) or (why_no_halves(model) if self.splits_blocks() else "")
        return why or (self.lora.why_not(model) if self.lora else "")

    def splits_blocks(self) -> bool:
        """Where tokens go before the MLP."""
        return self.drop_tokens == "before_mlp"

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model; ``train`` gives alpha's default (its learning rate) and the seed."""
        return Alast(self, model, budget_rate(self, train), train.seed)

    def flow(self, model: Backbone) -> Flow:
        """Tokens go after blocks that look how much they have moved the class token."""
        return AlastFlow(self, model)

    def full_label(self) -> str:
        """Say whether adapters take the place of weights."""
        return f"{self.label} with LoRA" if self.lora else self.label

    def words(self) -> Iterator[tuple[str, str]]:
        """Say the reading, K, and the budgets where they are aimed at."""
        yield "reading", "" if self.reading == "fast" else self.reading
        yield "trainable_blocks", f"K{self.trainable_blocks}"
        calibrates = self.initial_budget == "calibrate"
        yield "target_budget", f"keep {short_number(self.target_budget)}" if calibrates else ""
        yield "lora/rank", "" if self.lora is None else f"lora r{self.lora.rank}"

    def default_learning_rate(self) -> float | None:
        """Give that of adapters, where there are some."""
        return None if self.lora is None else LEARNING_RATE

    def trains_backbone(self) -> bool:
        """Without adapters."""
        return self.lora is None

    def learns(self) -> bool:
        """Budgets do, unless alpha is 0."""
        return self.alpha != 0

    def cost_settings(self) -> MethodConfig:
        """Leave out all but adapters, embeddings, and how frozen blocks, budgets and ranks take part in the forward."""
        return AlastConfig(
            from_block=self.from_block,
            lora=self.lora,
            train_embeddings=self.train_embeddings,
            frozen_backward=self.frozen_backward,
            budget_timing=self.budget_timing,
            delta_reduction="relative" if self.delta_reduction == "relative" else "batch_mean",
            ranking=self.ranking,
            drop_tokens=self.drop_tokens,
            trainable_blocks=0,
            alpha=0.0,
        )

    def foresee(self, look: FirstLook, plan: StepPlan, train: TrainConfig, batch: int, growth: float) -> Foreseen:
        """Let the planner take the first step's decisions, and draw blocks a few times."""
        return foresee_plans(self, look, plan, budget_rate(self, train), train.seed, batch, growth)
