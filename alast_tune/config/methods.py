"""Every fine-tuning method's settings, one record each."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from alast_tune.config.record import Record, as_plain_values


class Floors(Record):
    """Smallest share of patch tokens that may be kept, one for each third of the depth, in (0, 1]."""

    early: float = Field(0.1, gt=0, le=1)
    middle: float = Field(0.1, gt=0, le=1)
    late: float = Field(0.1, gt=0, le=1)


class FullConfig(Record):
    """Fine-tune everything."""

    name: Literal["full"] = "full"


class HeadConfig(Record):
    """Train the classifier alone (linear probe)."""

    name: Literal["head"] = "head"


class BlockChoice(Record):
    """Which blocks train, the same from the first step to the last."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="numbers of the blocks that train, from 0; unset: found by a short probe of each",
    )
    count: int = Field(3, ge=1, description="how many to find; the paper takes three")
    probe_steps: int = Field(
        8, ge=1, description="steps of training and batches of scoring that each block's probe gets"
    )


class TopKConfig(BlockChoice):
    """Train only the most influential blocks, the final norm and the classifier (the paper's FT top-3)."""

    name: Literal["top_k"] = "top_k"


class BsrConfig(BlockChoice):
    """Block Selective Reprogramming (Sarkar et al. 2024): few blocks train, frozen ones drop tokens."""

    name: Literal["bsr"] = "bsr"
    keep: float = Field(0.7, gt=0, le=1, description="share of the arriving patch tokens that a dropping block lets on")
    drop_after: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="frozen blocks that drop; unset: those nearest to a quarter, half and three quarters"
    )


class TomeConfig(Record):
    """Token Merging (Bolya et al. 2023) during training: every block merges similar tokens."""

    name: Literal["tome"] = "tome"
    merge: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="r, tokens merged away in each block; one number or one a block"
    )
    target_flops: float | None = Field(
        None,
        gt=0,
        le=1,
        description="instead of r: share of full fine-tuning's FLOPs in the blocks; r is the least that reaches it",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.merge is None) == (self.target_flops is None):
            raise ValueError("give either merge (8, say) or target_flops (0.6, say)")
        return self


class Adapters(Record):
    """Low-rank adapters (Hu et al. 2022) on every block's linear layers, through peft."""

    rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0, description="the update is scaled by lora_alpha / rank")
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = Field(("qkv", "proj", "fc1", "fc2"), min_length=1)
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="numbers of the blocks that get adapters, from 0; unset: all"
    )


class LoraConfig(Adapters):
    """Train low-rank adapters and the classifier; every other weight is frozen."""

    name: Literal["lora"] = "lora"


class AplaConfig(Record):
    """APLA (Sorkhei et al. 2025): train attention's output projections and the classifier."""

    name: Literal["apla"] = "apla"
    columns: int | None = Field(
        None, ge=1, description="train so many of each projection's outputs, drawn once; unset: all"
    )


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


class AlastConfig(Record):
    """ALaST (Devoto et al. 2024), every ambiguity of the paper an option, three readings over them."""

    name: Literal["alast"] = "alast"
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
    delta_reduction: Literal["batch_mean", "batch_sum"] = Field(
        "batch_mean", description="class-token delta, equation 5"
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
    selection: Literal["proportional", "softmax", "top_k"] = Field(
        "proportional", description="how the K blocks are drawn"
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
        return self


MethodConfig = Annotated[
    AlastConfig | FullConfig | HeadConfig | TopKConfig | BsrConfig | TomeConfig | LoraConfig | AplaConfig,
    Field(discriminator="name"),
]
"""One fine-tuning method, tagged by ``name``."""
