"""ALaST's training step: budgets learn how blocks move the class token, and decide who trains on which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alast_tune.methods.base import StepPlan, entering_tokens, random_drop, run_stages
from alast_tune.methods.budgets import class_delta, relative_magnitude
from alast_tune.methods.dropping import Dropping
from alast_tune.methods.lora import add_adapters, merge_adapters
from alast_tune.methods.parameters import parameters_to_train, set_trainable
from alast_tune.methods.planner import Planner, drawable_blocks
from alast_tune.methods.summary import RandomScores, Scores, scores_of, summarise, summary_updates
from alast_tune.methods.tokens import Tokens
from alast_tune.models.backbone import Backbone, classify, embed, token_count
from alast_tune.parallel import LateTotals, total_over_ranks

if TYPE_CHECKING:
    from alast_tune.methods.alast import AlastConfig

_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's, torch's first choice on an H100 under autocast, which takes long to prepare for each token count."""


class Alast:
    """Every block has a budget, learned from how much it moves the class token.

    A budget is the share of patch tokens that flow on from its block, and the weight with which
    the block is drawn among the K that train at the next step.

    Args:
        config: the reading of the paper.
        model: any accepted timm model; stays as it is.
        alpha: budget learning rate, equation 6.
        seed: of the drawing of blocks, and of tokens where chance ranks them.

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
        self._images = 0  # number of images they are of
        self._late: LateTotals | None = None  # deltas of a step that has not been learned from

        self._parameters = parameters_to_train(config, model)
        set_trainable(model.parameters(), False)
        set_trainable(self._parameters, True)
        chosen = {id(p) for p in self._parameters}
        self._of_block = [[p for p in block.parameters() if id(p) in chosen] for block in model.blocks]
        self._flow = AlastFlow(config, model, seed)

    @property
    def plan(self) -> StepPlan:
        """Of the last step, as it was carried out."""
        return self._planner.plan

    @property
    def budgets(self) -> tuple[float, ...]:
        """One a block, in [its floor, max_budget].

        Raises:
            DivergedError: a delta of the last step that is not finite.
        """
        self._learn()
        return tuple(self._planner.budgets_L.tolist())

    @property
    def deltas(self) -> tuple[float, ...]:
        """Class-token deltas of the last step, one a block; empty before the first."""
        self._learn()
        previous_L = self._planner.previous_L
        return () if previous_L is None else tuple(previous_L.tolist())

    def parameters(self) -> list[nn.Parameter]:
        """What the settings say may train."""
        return self._parameters

    def plan_for(self, image_size: int | None = None, token_keep: float = 1.0) -> StepPlan:
        """Say what enters a step, with no budget and no block decided."""
        tokens, depth = token_count(self.model, image_size), len(self.model.blocks)
        entering = entering_tokens(tokens, int(self.model.num_prefix_tokens), token_keep)
        image_tokens = tokens if entering < tokens else None
        return StepPlan((entering,) * depth, (True,) * depth, image_tokens=image_tokens)

    def begin_step(self, step: int, micro_batches: Sequence[Tensor] = (), token_keep: float = 1.0) -> None:
        """Draw the blocks that train; under ``next_step`` also fix how many tokens each gets.

        Raises:
            DivergedError: a delta of the step before that is not finite.
        """
        self._learn()
        self._deltas, self._images, self._micro_batches = [], 0, micro_batches
        self._planner.enter(self.plan_for(micro_batches[0].shape[-1] if micro_batches else None, token_keep))
        self._flow.begin_step(step)
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
        flowing: Tokens = run_stages(random_drop(self.model, plan), x_BND)
        del x_BND  # a name would hold it until the end
        for index, trains in enumerate(plan.trainable_L):
            tokens.append((flowing[0] if isinstance(flowing, tuple) else flowing).shape[1])
            leaving = planned[index + 1] if planned is not None and index < last else None
            drops = leaving is not None and leaving < tokens[-1]
            listens = drops or (learning and index < last)
            flowing = self._flow.run(index, trains, listens, flowing, choose, leaving)
        if first:
            self._planner.plan = replace(plan, tokens_L=tuple(tokens), calibrated=calibrated)
        self._deltas.append(torch.stack(deltas))
        self._images += len(images_BCHW)
        if len(self._deltas) == len(self._micro_batches):  # the last one: deltas need not wait for its backward
            self._send()
        assert isinstance(flowing, Tensor)
        return classify(self.model, flowing)

    def end_step(self) -> None:
        """Have the deltas sent to the host, if that has not been done: whatever comes next will learn from them."""
        if self._late is None:
            self._send()

    def export(self) -> Backbone:
        """The model itself; with adapters a copy in which they are merged."""
        return self.model if self.config.lora is None else merge_adapters(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Budgets, last deltas, whether to calibrate, and the generator."""
        self._learn()
        return self._planner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._late = None
        self._planner.load_state_dict(state)

    def _send(self) -> None:
        """Let the step's deltas, of all ranks, go to the host: they are there when the device has done its forward."""
        self._late = LateTotals(torch.stack(self._deltas).sum(dim=0), self._images)

    def _learn(self) -> None:
        """Move the budgets by equation 6 (``same_step`` has already), and keep the deltas, of a step that has ended.

        Here the host waits for the device, until its forward is done: the backward and the update go on meanwhile.

        Raises:
            DivergedError: a delta that is not finite.
        """
        if self._late is not None:
            late, self._late = self._late, None
            self._planner.end_step(*late.read())

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

    def __init__(self, config: AlastConfig, model: Backbone, seed: int = 0) -> None:
        self._chance = RandomScores(model, seed) if config.ranking == "random" else None
        scores: Scores = self._chance or scores_of(model)
        before_mlp = config.drop_tokens == "before_mlp"
        super().__init__(config, model, config.frozen_backward == "residual", before_mlp, scores)
        self._learns = config.budget_timing == "same_step"
        self._relative = config.delta_reduction == "relative"

    def begin_step(self, step: int) -> None:
        """Let chance, where it ranks tokens, begin anew."""
        if self._chance is not None:
            self._chance.begin_step(step)

    def listens(self, index: int, drops: bool) -> bool:
        """Say whether a block's attention may be looked at: where budgets learn, nobody knows before it has run."""
        return drops or (self._learns and index < len(self.model.blocks) - 1)

    def delta(self, before_BND: Tensor, after_BND: Tensor) -> Tensor:
        """Say how much a block has moved the summary, equation 5 or relative to it, summed over the batch."""
        before_BD, after_BD = summarise(self.model, before_BND), summarise(self.model, after_BND)
        if self._relative:
            return relative_magnitude(before_BD, after_BD) * len(after_BD)
        return class_delta(before_BD, after_BD, "batch_sum")

    def _stage(self, index: int, trains: bool, listens: bool, tokens: Tokens, leaving: int) -> Tokens:
        def choose(before_BND: Tensor, after_BND: Tensor) -> int:
            self.delta(before_BND, after_BND)
            return leaving

        return self.run(index, trains, listens, tokens, choose, leaving)
