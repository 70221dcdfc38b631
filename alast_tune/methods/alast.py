"""ALaST (Devoto et al. 2024): adaptive token selection and layer freezing, on a wrapped timm model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alast_tune.config import MethodConfig, Record, TrainConfig, as_plain_values
from alast_tune.methods.base import FirstLook, Flow, Foreseen, Method, StepPlan
from alast_tune.methods.budgets import class_delta
from alast_tune.methods.dropping import Dropping, Tokens
from alast_tune.methods.lora import LEARNING_RATE, Adapters, add_adapters, merge_adapters
from alast_tune.methods.parameters import adapters, embeddings, outputs, parameters_to_train, set_trainable
from alast_tune.methods.planner import Planner, budget_rate, drawable_blocks, foresee_plans
from alast_tune.methods.summary import summarise, summary_updates, why_no_scores
from alast_tune.models.backbone import Backbone, classify, embed
from alast_tune.parallel import total_over_ranks
from alast_tune.text import short_number

_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, torch's first choice on an H100 under autocast, which takes long to prepare for each token count."""


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

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """Classifier, and final norm and all blocks or their adapters; embeddings where they train."""
        before = embeddings(model) if self.train_embeddings else []
        if self.lora is None:
            return outputs(model) + list(model.blocks.parameters()) + before
        return adapters(model) + list(model.head.parameters()) + before

    def why_not(self, model: Backbone) -> str:
        """Tokens without scores, or no layers for the adapters."""
        return why_no_scores(model) or (self.lora.why_not(model) if self.lora else "")

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

    def learns(self) -> bool:
        """Budgets do, unless alpha is 0."""
        return self.alpha != 0

    def cost_settings(self) -> MethodConfig:
        """Leave out all but adapters, embeddings, and how frozen blocks and budgets take part in the forward."""
        return AlastConfig(
            from_block=self.from_block,
            lora=self.lora,
            train_embeddings=self.train_embeddings,
            frozen_backward=self.frozen_backward,
            budget_timing=self.budget_timing,
            trainable_blocks=0,
            alpha=0.0,
        )

    def foresee(self, look: FirstLook, plan: StepPlan, train: TrainConfig, batch: int, growth: float) -> Foreseen:
        """Let the planner take the first step's decisions, and draw blocks a few times."""
        return foresee_plans(self, look, budget_rate(self, train), train.seed, batch, growth)


class Alast:
    """Every block has a budget, learned from how much it moves the class token.

    A budget is the share of patch tokens that flow on from its block, and the weight with which
    the block is drawn among the K that train at the next step.

    Args:
        config: the reading of the paper.
        model: any accepted timm model; stays as it is.
        alpha: budget learning rate, equation 6.
        seed: of the drawing of blocks.

    Raises:
        ConfigError: more trainable blocks than the model has.
    """

    def __init__(self, config: AlastConfig, model: Backbone, alpha: float, seed: int) -> None:
        if config.lora is not None:
            add_adapters(config.lora, model, config.from_block)
        self.model = model
        self.config = config
        self._planner = Planner(
            config,
            int(model.patch_embed.num_patches),
            int(model.num_prefix_tokens),
            drawable_blocks(config, model),
            alpha,
            seed,
        )
        self._micro_batches: Sequence[Tensor] = ()
        self._deltas: list[Tensor] = []  # (L,) of each micro-batch, summed over
        self._images = 0  # so many images

        self._parameters = parameters_to_train(config, model)
        set_trainable(model.parameters(), False)
        set_trainable(self._parameters, True)
        chosen = {id(p) for p in self._parameters}
        self._of_block = [[p for p in block.parameters() if id(p) in chosen] for block in model.blocks]
        self._flow = AlastFlow(config, model)

    @property
    def plan(self) -> StepPlan:
        """Of the last step, as it was carried out."""
        return self._planner.plan

    @property
    def budgets(self) -> tuple[float, ...]:
        """One a block, in [its floor, max_budget]."""
        return tuple(self._planner.budgets_L.tolist())

    @property
    def deltas(self) -> tuple[float, ...]:
        """Class-token deltas of the last step, one a block; empty before the first."""
        previous_L = self._planner.previous_L
        return () if previous_L is None else tuple(previous_L.tolist())

    def parameters(self) -> list[nn.Parameter]:
        """What the settings say may train."""
        return self._parameters

    def begin_step(self, step: int, micro_batches: Sequence[Tensor] = ()) -> None:
        """Draw the blocks that train; under ``next_step`` also fix how many tokens each gets."""
        self._deltas, self._images, self._micro_batches = [], 0, micro_batches
        if not self._planner.calibrates_next:  # otherwise the forward decides, once it has seen the images
            self._decide()

    @sdpa_kernel(_ANY_LENGTH)
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: every block on the tokens that its predecessors' budgets let through.

        The step's first one calibrates on all its micro-batches. Those that follow have its plan: budgets that learn
        within a step do so from the first alone, which is why these are refused with micro-batches (``build_method``).
        """
        x_BND = embed(self.model, images_BCHW)
        first = not self._deltas
        calibrated = self._planner.calibrates_next
        if calibrated:
            self._calibrate(x_BND.detach())
            self._decide()
        learning = first and self.config.budget_timing == "same_step"
        plan = self.plan
        planned = None if learning else plan.tokens_L
        tokens: list[int] = []
        deltas: list[Tensor] = []

        def choose(before_BND: Tensor, after_BND: Tensor) -> int:
            index, arriving = len(deltas), before_BND.shape[1]
            tokens.append(arriving)
            deltas.append(self._flow.delta(before_BND, after_BND))
            if learning:
                self._planner.learn(index, deltas[-1], len(images_BCHW))
            if index == last:
                return arriving
            if planned is not None:
                return planned[index + 1]
            prefix = int(self.model.num_prefix_tokens)
            return prefix + self._planner.keep(index, arriving - prefix)

        last = len(self.model.blocks) - 1
        flowing: Tokens = x_BND
        del x_BND  # a name would hold it until the end
        for index, trains in enumerate(plan.trainable_L):
            drops = planned is not None and index < last and planned[index + 1] < planned[index]
            listens = drops or (learning and index < last)
            flowing = self._flow.run(index, trains, listens, flowing, choose)
        if first:
            self._planner.plan = StepPlan(tuple(tokens), plan.trainable_L, calibrated)
        self._deltas.append(torch.stack(deltas))
        self._images += len(images_BCHW)
        assert isinstance(flowing, Tensor)
        return classify(self.model, flowing)

    def end_step(self) -> None:
        """Move the budgets by equation 6 (``same_step`` has already), and keep the deltas.

        Raises:
            DivergedError: a delta that is not finite.
        """
        self._planner.end_step(torch.stack(self._deltas).sum(dim=0), self._images)

    def export(self) -> Backbone:
        """The model itself; with adapters a copy in which they are merged."""
        return self.model if self.config.lora is None else merge_adapters(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Budgets, last deltas, whether to calibrate, and the generator."""
        return self._planner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._planner.load_state_dict(state)

    def _decide(self) -> None:
        """Let the planner decide, and set who trains."""
        self._planner.decide()
        for parameters, trains in zip(self._of_block, self.plan.trainable_L, strict=True):
            set_trainable(parameters, trains)

    def _calibrate(self, x_BND: Tensor) -> None:
        """Set budgets from the relative magnitude of each block's class-token update, all tokens of all micro-batches.

        Args:
            x_BND: what enters the first block, of the first micro-batch.
        """
        sums_L, seen = summary_updates(self.model, x_BND)[0] * len(x_BND), len(x_BND)
        for images_BCHW in self._micro_batches[1:]:
            with torch.no_grad():
                x_BND = embed(self.model, images_BCHW)
            sums_L += summary_updates(self.model, x_BND)[0] * len(x_BND)
            seen += len(x_BND)
        sums_L, images = total_over_ranks(sums_L, seen)
        self._planner.calibrate(sums_L.cpu() / images)


class AlastFlow(Dropping):
    """Blocks of which each looks how much it has moved the class token, and drops tokens."""

    def __init__(self, config: AlastConfig, model: Backbone) -> None:
        super().__init__(config, model, residual=config.frozen_backward == "residual")
        self._learns = config.budget_timing == "same_step"

    def listens(self, index: int, drops: bool) -> bool:
        """Say whether a block's attention may be looked at: where budgets learn, nobody knows before it has run."""
        return drops or (self._learns and index < len(self.model.blocks) - 1)

    def delta(self, before_BND: Tensor, after_BND: Tensor) -> Tensor:
        """Say how much a block has moved the summary, equation 5, summed over the batch."""
        return class_delta(summarise(self.model, before_BND), summarise(self.model, after_BND), "batch_sum")

    def _stage(self, index: int, trains: bool, listens: bool, tokens: Tokens, leaving: int) -> Tokens:
        def choose(before_BND: Tensor, after_BND: Tensor) -> int:
            self.delta(before_BND, after_BND)
            return leaving

        return self.run(index, trains, listens, tokens, choose)
