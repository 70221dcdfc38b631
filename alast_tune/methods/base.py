"""What a fine-tuning method is: it decides each step who trains and which tokens flow."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alast_tune.config import MethodConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.parameters import embeddings, parameters_to_train, set_trainable
from alast_tune.methods.tokens import Tokens, keep_tokens, with_prefix
from alast_tune.models.backbone import (
    Backbone,
    classify,
    embed,
    has_rotary_positions,
    needs_class_token_alone,
    run_block,
    token_count,
)


@dataclass(frozen=True)
class StepPlan:
    """What one training step does; its cost follows from it alone."""

    tokens_L: tuple[int, ...]
    """Tokens each block receives, class token (and registers) counted."""
    trainable_L: tuple[bool, ...]
    """Which blocks get gradients."""
    calibrated: bool = False
    """Whether the step began with one no-grad pass of its images, all tokens, to set the budgets."""
    start: int = 0
    """First block that the step runs, on what entered it in a pass over all images, made once (``features.py``)."""
    image_tokens: int | None = None
    """Tokens of an image, of which those that enter block ``start`` are drawn at random; unset: all of them enter."""

    @property
    def computed_tokens(self) -> tuple[int, ...]:
        """Tokens that each block computes in the step."""
        return (0,) * self.start + self.tokens_L[self.start :]


@dataclass(frozen=True)
class FirstLook:
    """What is known of a model and its images before anything trains."""

    model: Backbone
    """Untouched, on the meta device: no weights."""
    images: int
    """A few real ones, with all tokens, of which the model has told:"""
    magnitudes_L: Tensor
    """Relative magnitudes of the class token's updates."""
    deltas_L: Tensor
    """The updates' squared lengths, summed over the images."""


@dataclass(frozen=True)
class Foreseen:
    """The plans that a trial's steps are expected to have."""

    drawn: tuple[StepPlan, ...]
    """So that their mean FLOPs are those of the run's steps."""
    heaviest: frozenset[StepPlan]
    """Of these one has the highest peak of all steps."""


@dataclass(frozen=True)
class Stage:
    """What a training forward does at one block; the method runs it, and so does the meter, without data."""

    run: Callable[[Any, int], Any]
    """Takes what flows, tokens (B, N, D) or a tuple that begins with them, and how many tokens are to leave."""
    arriving: int
    """Tokens, class token and registers counted."""
    leaving: int
    kind: Hashable = None
    """What decides the cost besides the block, whether it trains, and the tokens."""
    scales: bool = True
    """Whether every tensor's size is a product with token counts (or patch counts) for factors."""
    alone: bool = False
    """Whether the class token leaves by itself, for nobody looks at the others."""


class Flow:
    """A method's training forward between embedding and classifier; by default every block as it is.

    Args:
        config: of the method.
        model: as the method has prepared it.
    """

    def __init__(self, config: MethodConfig, model: Backbone) -> None:
        self.config = config
        self.model = model

    def embed(self, images_BCHW: Tensor) -> Any:
        """Turn images into what enters the first stage, or the classifier where there are no stages."""
        return embed(self.model, images_BCHW)

    def classify(self, flowing: Any) -> Tensor:
        """Turn what leaves the last stage into logits, (B, K)."""
        return classify(self.model, flowing)

    def stages(self, plan: StepPlan) -> list[Stage]:
        """Give a plan's stages, one a block; none where :meth:`embed` goes through all blocks."""
        return [
            Stage(partial(self._run, index), count, count, index == len(plan.tokens_L) - 1, alone=self.alone(index))
            for index, count in enumerate(plan.tokens_L)
        ]

    def alone(self, index: int) -> bool:
        """Say whether the class token alone leaves a block."""
        return index == len(self.model.blocks) - 1 and needs_class_token_alone(self.model)

    def _run(self, index: int, tokens: Tokens, leaving: int) -> Tokens:
        x_BND, kept_BN = tokens if isinstance(tokens, tuple) else (tokens, None)
        del tokens
        x_BND = run_block(self.model, index, x_BND, kept_BN)
        return x_BND if kept_BN is None or index == len(self.model.blocks) - 1 else (x_BND, kept_BN)


def random_drop(model: Backbone, plan: StepPlan) -> list[Stage]:
    """Give the stage before the blocks at which patch tokens go at random, each image's own; none if none go.

    PatchDropout (Liu et al. 2022, arXiv:2208.07220), drawn by torch's global generator of the device.
    """
    if plan.image_tokens is None:
        return []
    prefix, rotary = int(model.num_prefix_tokens), has_rotary_positions(model)

    def run(x_BND: Tensor, entering: int) -> Tokens:
        chances_BP = torch.rand(len(x_BND), x_BND.shape[1] - prefix, device=x_BND.device)
        x_BND, kept_BP = keep_tokens(x_BND, chances_BP, entering - prefix)
        return (x_BND, with_prefix(kept_BP, prefix)) if rotary else x_BND

    return [Stage(run, plan.image_tokens, plan.tokens_L[plan.start], "random")]


def entering_tokens(tokens: int, prefix: int, token_keep: float) -> int:
    """Count those of an image's tokens that enter: class token and registers, and a share of the rest, one at least."""
    return prefix + max(1, round(token_keep * (tokens - prefix)))


def run_stages(stages: Iterable[Stage], tokens: Any) -> Any:
    """Run stages one after the other; nothing but the next one has what a stage has made."""
    for stage in stages:
        tokens = stage.run(tokens, stage.leaving)
    return tokens


class Method(Protocol):
    """Wraps a model for training; evaluation sees the bare model, all its tokens.

    A step is ``begin_step``, one ``forward`` for each of its micro-batches (usually one), and
    ``end_step``; all its micro-batches follow one plan, and come to what the whole batch would.
    """

    model: Backbone
    """What the optimizer and the evaluation see."""

    @property
    def config(self) -> MethodConfig:
        """Its settings, nothing left open."""

    @property
    def plan(self) -> StepPlan:
        """Of the last step, as it was carried out."""

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that may ever train: the optimizer's, from the first step to the last."""

    def plan_for(self, image_size: int | None = None, token_keep: float = 1.0) -> StepPlan:
        """Say what enters a step, and whatever else is known before any step has been decided; moves no state.

        Args:
            image_size: side of the images, pixels; unset: the model's own.
            token_keep: share of each image's patch tokens, drawn at random, that enter the first block.
        """

    def begin_step(self, step: int, micro_batches: Sequence[Tensor] = (), token_keep: float = 1.0) -> None:
        """Decide what the step will do and set ``requires_grad`` accordingly.

        Args:
            step: its number.
            micro_batches: the images that its forwards will get, for what has to look at all of them first.
            token_keep: share of each image's patch tokens, drawn at random, that enter the first block.
        """

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: images to logits (B, K)."""

    def end_step(self) -> None:
        """Learn from the step, after its backward; completes ``plan``."""

    def export(self) -> Backbone:
        """Give the model as plain timm, adapters merged; the model itself where nothing was added to it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


class Constant:
    """A method that does the same at every step; by default the model's own forward, all tokens.

    Args:
        config: its settings.
        model: any accepted timm model.
        trainable_L: the blocks in which something trains; unset: those with parameters that may train.
        flow: how they receive tokens; unset: as the settings say.
    """

    def __init__(
        self,
        config: MethodConfig,
        model: Backbone,
        trainable_L: Sequence[bool] | None = None,
        flow: Flow | None = None,
    ) -> None:
        self.config: MethodConfig = config
        self.model = model
        self._parameters = parameters_to_train(config, model)
        if trainable_L is None:
            trains = {id(p) for p in self._parameters}
            trainable_L = [any(id(p) in trains for p in block.parameters()) for block in model.blocks]
        self._trainable_L = tuple(trainable_L)
        self._start = 0
        self._plan = self.plan_for()
        self._flow = flow or config.flow(model)
        set_trainable(model.parameters(), False)
        set_trainable(self._parameters, True)

    @property
    def plan(self) -> StepPlan:
        """The same for every step on as many tokens."""
        return self._plan

    def tokens(self, entering: int, start: int = 0) -> Sequence[int]:
        """Count the tokens of each block from ``start`` on, given those that enter it; by default they stay as many."""
        return [entering] * (len(self.model.blocks) - start)

    @property
    def lowest(self) -> int:
        """Give the first block that trains; as many as there are blocks: none does; 0 also where the embedding does."""
        trains = {id(p) for p in self._parameters}
        if any(id(p) in trains for p in embeddings(self.model)):
            return 0
        return (*self._plan.trainable_L, True).index(True)

    def are_tokens_at(self, block: int) -> bool:
        """Whether tokens alone enter a block, without anything that goes with them."""
        return True

    def begin_at(self, start: int) -> None:
        """From now on get, in place of images, what :meth:`trunk` makes of them."""
        self._start = start
        self._plan = self.plan_for()

    @torch.no_grad()
    def trunk(self, images_BCHW: Tensor) -> Any:
        """Run what lies below the block at which the steps begin, the embedding too: images to tokens (B, N, D)."""
        stages = self._flow.stages(self.plan_for())[: self._start]
        return run_stages(stages, self._flow.embed(images_BCHW))

    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return self._parameters

    def begin_step(self, step: int, micro_batches: Sequence[Tensor] = (), token_keep: float = 1.0) -> None:
        """Count the tokens that enter."""
        self._plan = self.plan_for(micro_batches[0].shape[-1] if micro_batches else None, token_keep)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: embedding, all stages, classifier; or stages from ``plan.start`` on, given what enters."""
        flow, start = self._flow, self._plan.start
        stages = [*random_drop(self.model, self._plan), *flow.stages(self._plan)[start:]]
        # Without a name for the embedded tokens, which would hold them until the end.
        return flow.classify(run_stages(stages, images_BCHW if start else flow.embed(images_BCHW)))

    def end_step(self) -> None:
        """Nothing to learn."""

    def export(self) -> Backbone:
        """The model itself."""
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""

    def plan_for(self, image_size: int | None = None, token_keep: float = 1.0) -> StepPlan:
        """Plan a step on images of a size, of which a share of the patch tokens enters."""
        start, below_L = self._start, self.tokens(token_count(self.model))
        if start == len(below_L):  # nothing is left to run but the classifier
            return StepPlan(tuple(below_L), self._trainable_L, start=start)
        arriving = below_L[start] if start else token_count(self.model, image_size)
        entering = entering_tokens(arriving, int(self.model.num_prefix_tokens), token_keep)
        tokens_L = (*below_L[:start], *self.tokens(entering, start))
        drawn_from = arriving if entering < arriving else None
        return StepPlan(tokens_L, self._trainable_L, start=start, image_tokens=drawn_from)


def check_blocks(field: str, blocks: Sequence[int], model: Backbone, from_block: int = 0) -> None:
    """Refuse numbers of blocks that there are not, that come twice, or below the first that may train.

    Raises:
        ConfigError: the first such number.
    """
    if twice := [block for block in blocks if blocks.count(block) > 1]:
        raise ConfigError(field, twice[0], "is there twice; name each block once")
    for block in blocks:
        if not 0 <= block < len(model.blocks):
            raise ConfigError(field, block, f"the model has blocks 0 to {len(model.blocks) - 1}")
        if block < from_block:
            remedy = f"nothing trains below method.from_block = {from_block}; give later blocks"
            raise ConfigError(field, block, remedy)
