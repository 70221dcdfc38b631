"""What ALaST decides at each step: budgets, the blocks that are drawn, how many tokens each gets. Needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods.base import FirstLook, Foreseen, StepPlan
from alast_tune.methods.budgets import sample_layers, scale_to_mean, update_budgets
from alast_tune.methods.lora import Adapters, adapted_blocks
from alast_tune.methods.tokens import keep_count
from alast_tune.models.backbone import Backbone
from alast_tune.parallel import total_over_ranks

if TYPE_CHECKING:
    from alast_tune.config import TrainConfig
    from alast_tune.methods.alast import AlastConfig

DRAWS = 4
"""Plans whose mean FLOPs count for a run's, where blocks are drawn by chance."""


class Planner:
    """Holds the budgets, learns from deltas and gives each step's plan.

    Args:
        config: the reading of the paper.
        patches: patch tokens of an image.
        prefix: class token and registers.
        drawable: which blocks may be drawn, (L,).
        alpha: budget learning rate, equation 6.
        seed: of the drawing of blocks.

    Raises:
        ConfigError: more trainable blocks than may be drawn.
    """

    def __init__(
        self, config: AlastConfig, patches: int, prefix: int, drawable: Sequence[bool], alpha: float, seed: int
    ) -> None:
        depth, most = len(drawable), sum(drawable)
        if config.trainable_blocks > most:
            limits = {"method.lora.blocks": config.lora and config.lora.blocks, "method.from_block": config.from_block}
            set_ = [name for name, limit in limits.items() if limit]
            what = f"{' and '.join(set_)} leave{'s' * (len(set_) < 2)}" if set_ else "the model has"
            raise ConfigError("method.trainable_blocks", config.trainable_blocks, f"{what} {most} blocks")
        self._config = config
        self._patches, self._prefix = patches, prefix
        self._entering = patches
        self._drawable_L = torch.tensor(drawable)
        self._alpha = alpha
        self._generator = torch.Generator().manual_seed(seed)
        thirds = (config.floors.early, config.floors.middle, config.floors.late)
        self._floors_L = torch.tensor([thirds[block * 3 // depth] for block in range(depth)], dtype=torch.float64)
        self.calibrates_next = config.initial_budget == "calibrate"
        """Whether the next forward sets the budgets first."""
        start = config.max_budget if config.initial_budget == "calibrate" else config.initial_budget
        initial = torch.full((depth,), float(start), dtype=torch.float64)
        self.budgets_L = update_budgets(initial, (), None, 0.0, self._floors_L, config.max_budget)
        self.previous_L = torch.zeros(depth, dtype=torch.float64) if config.first_delta == "zero" else None
        """Deltas of the last step."""
        self.plan = StepPlan((patches + prefix,) * depth, (True,) * depth)

    def enter(self, plan: StepPlan) -> None:
        """Say how many tokens an image of the next step has, and how many of them enter the first block: by a plan."""
        entering = plan.tokens_L[0]
        self._patches, self._entering = (plan.image_tokens or entering) - self._prefix, entering - self._prefix
        self.plan = plan

    def decide(self) -> None:
        """Fix who trains and, from the budgets as they are, how many tokens each block gets."""
        mask_L = torch.zeros_like(self._drawable_L)
        mask_L[self._drawable_L] = sample_layers(
            self.budgets_L[self._drawable_L], self._config.trainable_blocks, self._generator, self._config.selection
        )
        tokens_L = self._tokens(self.budgets_L.tolist())
        self.plan = replace(self.plan, tokens_L=tokens_L, trainable_L=tuple(mask_L.tolist()), calibrated=False)

    def keep(self, index: int, arriving: int) -> int:
        """Patch tokens that flow on from a block, by its budget."""
        return self._keep(float(self.budgets_L[index]), arriving)

    def calibrate(self, magnitudes_L: Tensor) -> None:
        """Set the budgets by the relative magnitudes of the blocks' class-token updates."""
        self.budgets_L = scale_to_mean(
            finite(magnitudes_L), self._config.target_budget, self._floors_L, self._config.max_budget
        )
        self.calibrates_next = False

    def learn(self, index: int, sum_: Tensor, images: int) -> None:
        """Equation 6 for one block, inside the forward (``same_step``), from its delta summed over images."""
        block = slice(index, index + 1)
        self.budgets_L[block] = update_budgets(
            self.budgets_L[block],
            self._reduce(*total_over_ranks(sum_.reshape(1), images)),
            None if self.previous_L is None else self.previous_L[block],
            self._alpha,
            self._floors_L[block],
            self._config.max_budget,
        )

    def end_step(self, totals_L: Tensor, images: int) -> None:
        """Move the budgets by equation 6 (``same_step`` has already), and keep the deltas.

        Args:
            totals_L: of the class-token deltas over the images of all ranks.
            images: so many.

        Raises:
            DivergedError: a delta that is not finite.
        """
        deltas_L = self._reduce(totals_L, images)
        if self._config.budget_timing == "next_step":
            self.budgets_L = update_budgets(
                self.budgets_L, deltas_L, self.previous_L, self._alpha, self._floors_L, self._config.max_budget
            )
        self.previous_L = deltas_L

    def foresee(self, magnitudes_L: Tensor, sums_L: Tensor, images: int) -> None:
        """Take the first step's decisions, and learn from it, without running it.

        Args:
            magnitudes_L: relative magnitudes, by which budgets are calibrated.
            sums_L: what the step's deltas, summed over images, are taken for.
            images: so many.
        """
        calibrates = self.calibrates_next
        if calibrates:
            self.calibrate(magnitudes_L)
        self.decide()
        if self._config.budget_timing == "same_step":
            for index in range(len(sums_L)):
                self.learn(index, sums_L[index], images)
            self.plan = replace(self.plan, tokens_L=self._tokens(self.budgets_L.tolist()))
        self.plan = replace(self.plan, calibrated=calibrates)
        self.end_step(*total_over_ranks(sums_L, images))

    def state_dict(self) -> dict[str, Any]:
        """Budgets, last deltas, whether to calibrate, and the generator."""
        return {
            "budgets": self.budgets_L.clone(),  # same_step writes into them
            "previous": self.previous_L,
            "calibrate": self.calibrates_next,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.budgets_L = state["budgets"].clone()
        self.previous_L = state["previous"]
        self.calibrates_next = state["calibrate"]
        self._generator.set_state(state["generator"])

    def _tokens(self, budgets: Sequence[float]) -> tuple[int, ...]:
        """Tokens that each block receives, the class token and registers counted."""
        patches = [self._entering]
        for budget in budgets[:-1]:
            patches.append(self._keep(budget, patches[-1]))
        return tuple(self._prefix + count for count in patches)

    def _keep(self, budget: float, arriving: int) -> int:
        config = self._config
        return keep_count(budget, self._patches, arriving, self._prefix, config.keep_reference, config.keep_multiple)

    def _reduce(self, totals: Tensor, count: int) -> Tensor:
        """Turn deltas summed over the images of all ranks into the reading's, on the CPU.

        Raises:
            DivergedError: one that is not finite.
        """
        deltas = finite(totals.double().cpu())
        return deltas if self._config.delta_reduction == "batch_sum" else deltas / count


def finite(deltas: Tensor) -> Tensor:
    """Give them back if they are numbers: a budget must not be made of anything else.

    Raises:
        DivergedError: one is not.
    """
    if not deltas.isfinite().all():
        raise DivergedError("a class-token delta is not finite: training has diverged; lower train.learning_rate")
    return deltas


def budget_rate(config: AlastConfig, train: TrainConfig) -> float:
    """Give alpha, by default the learning rate.

    Raises:
        ConfigError: micro-batches where budgets learn within a forward, which would see but the first.
    """
    alpha = train.learning_rate if config.alpha is None else config.alpha
    if train.accumulate != 1 and alpha and config.budget_timing == "same_step":
        remedy = "same-step budgets learn from the whole batch; leave it out, or set method.budget_timing: next_step"
        raise ConfigError("train.accumulate", train.accumulate, remedy)
    return alpha


def foresee_plans(
    config: AlastConfig, look: FirstLook, plan: StepPlan, alpha: float, seed: int, batch: int, growth: float
) -> Foreseen:
    """Say which plans ALaST's steps will have: exactly where budgets are calibrated, else from a first look's deltas.

    Args:
        config: the reading of the paper.
        look: at the untouched model, whose deltas are taken for those of the first step.
        plan: of a step, for how many tokens enter.
        alpha: budget learning rate.
        seed: of the drawing of blocks.
        batch: images in a step.
        growth: by how much class-token deltas grow in training, in multiples of the first ones; budgets grow by
            ``alpha`` times that (equation 6), up to ``max_budget``.
    """
    if config.delta_reduction == "batch_sum":
        alpha *= batch / look.images  # a step on a few images moves the budgets as a whole batch would
    if growth:  # a first delta that is compared with nothing is itself the growth
        alpha *= growth
        config = config.model_copy(update={"first_delta": "zero"})
    model = look.model
    drawable_L = drawable_blocks(config, model)
    patches, prefix = int(model.patch_embed.num_patches), int(model.num_prefix_tokens)
    planner = Planner(config, patches, prefix, drawable_L, alpha, seed)
    planner.enter(plan)
    if config.initial_budget == "calibrate" or config.first_delta == "zero":
        relative = config.delta_reduction == "relative"
        sums_L = look.magnitudes_L * look.images if relative else look.deltas_L
        planner.foresee(look.magnitudes_L, sums_L, look.images)
    else:
        planner.decide()
    first, drawn = planner.plan, []
    for _ in range(1 if config.selection == "top_k" else DRAWS):
        planner.decide()
        drawn.append(planner.plan)
    plans = {first, drawn[0]}
    if config.selection != "top_k":
        plans = {_heaviest_draw(plan, drawable_L) for plan in plans}
    return Foreseen(tuple(drawn), frozenset(plans))


def _heaviest_draw(plan: StepPlan, drawable_L: Sequence[bool]) -> StepPlan:
    """Let the earliest blocks train: tokens only ever go, and all that follows waits for the gradient."""
    earliest = [block for block, drawable in enumerate(drawable_L) if drawable][: sum(plan.trainable_L)]
    return replace(plan, trainable_L=tuple(block in earliest for block in range(len(drawable_L))))


def drawable_blocks(config: AlastConfig, model: Backbone) -> list[bool]:
    """Say which blocks may be drawn, (L,): those with adapters, or all, from ``from_block`` on."""
    return adapted_blocks(config.lora or Adapters(), model, config.from_block)
