"""What a trial will cost, known before it trains."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from alast_tune.config import AlastConfig, BlockChoice, DataConfig, MethodConfig, ModelConfig, TopKConfig, TrialConfig
from alast_tune.cost import StepCosts
from alast_tune.data import Splits
from alast_tune.methods import StepPlan, budget_rate, build_method, drawable_blocks, with_blocks_chosen
from alast_tune.methods.planner import Planner
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import Backbone, embed
from alast_tune.optimizers import build_optimizer
from alast_tune.train import load_trial

IMAGES = 4
"""Real images from which ALaST's first budgets are found."""

DRAWS = 4
"""Plans whose mean FLOPs count for a run's, where blocks are drawn by chance."""

GROWTH = 2.0
"""Of the class-token deltas while training, for a peak that is seldom exceeded."""


@dataclass(frozen=True)
class Costs:
    """What a trial is predicted to cost."""

    train_flops: float
    """Of all its epochs, if budgets stay what they are at first; exploration not counted."""
    peak_bytes: int
    """Of its largest training step or evaluation, bytes of live tensors: weights, gradients, moments, activations."""


@dataclass(frozen=True)
class _Start:
    """What is known of a model and a data set: shapes, and how the untouched model moves the images' summary."""

    model: Backbone
    """On the meta device: no weights."""
    image_size: int
    images: int
    """To train on."""
    magnitudes_L: Tensor
    """Relative magnitudes of the summary's updates, on a few images with all tokens."""
    deltas_L: Tensor
    """Their squared lengths, summed over these images."""


@dataclass(frozen=True)
class _Prepared:
    """A model that a method has prepared, and what updates it."""

    costs: StepCosts
    plan: StepPlan
    """Of every step, unless the method learns."""
    optimizer: Optimizer


class Forecast:
    """Predicts trials' costs from shapes and plans; a model's weights are looked at once for each data set.

    Where chance decides, the peak is the most that can come of it: of ALaST's blocks the earliest are drawn, and
    exploration finds the first ones. ALaST's first budgets come from one look at a few real images: exactly where they
    are calibrated; where they learn from the first step's deltas, these are taken for those of the untouched model
    with all its tokens.

    How budgets move after the first step is not predicted: where they grow, so do the costs. ``growth`` asks what
    there would be then. Nor is what a compiler saves, nor anything that is no tensor of a training step.
    """

    def __init__(self) -> None:
        self._starts: dict[tuple[ModelConfig, DataConfig], _Start] = {}
        self._prepared: dict[tuple[object, ...], _Prepared] = {}

    def costs(self, config: TrialConfig, growth: float = 0.0) -> Costs:
        """Predict a trial's costs.

        Args:
            config: of the trial.
            growth: by how much class-token deltas grow in training, in multiples of the first ones; ALaST's budgets
                grow by ``alpha`` times that (equation 6), up to ``max_budget``.

        Raises:
            ConfigError: a configuration that cannot work.
        """
        stages = [self._costs(config, method_config, growth) for method_config in _stages(config.method)]
        return Costs(stages[-1].train_flops, max(stage.peak_bytes for stage in stages))

    def look_at(self, config: TrialConfig, model: Backbone, splits: Splits) -> None:
        """See how a model moves its class token on a few images; it loses its weights, for they are not needed again.

        Args:
            config: of trials with this model and data.
            model: with its weights, untouched.
            splits: of the data.
        """
        spread = torch.linspace(0, len(splits.validation) - 1, IMAGES).int().tolist()
        images_BCHW, _ = splits.validation.__getitems__(spread)  # these are never augmented
        with torch.inference_mode():
            magnitudes_L, deltas_L = summary_updates(model, embed(model, images_BCHW))
        side, images = images_BCHW.shape[-1], len(splits.train)
        self._starts[config.model, config.data] = _Start(model.to("meta"), side, images, magnitudes_L, deltas_L)
        _give_back_memory()

    def _costs(self, config: TrialConfig, method_config: MethodConfig, growth: float) -> Costs:
        start, train = self._look_at(config), config.train
        prepared = self._prepare(config, method_config, start)
        batch = min(train.batch_size, start.images)
        drawn, heaviest = [prepared.plan], {prepared.plan}
        if isinstance(method_config, AlastConfig):
            method_config = _probing(method_config, budget_rate(method_config, train), batch, growth)
            drawn, heaviest = _plans(method_config, start, train.seed)
        parts = min(train.accumulate, batch)
        costs, optimizer, precision = prepared.costs, prepared.optimizer, train.precision
        image_flops = sum(costs.image_flops(method_config, plan) for plan in drawn) / len(drawn)
        training = max(
            costs.step(method_config, plan, batch, optimizer, precision, parts).peak_bytes for plan in heaviest
        )
        _, evaluation = costs.evaluation_batch(-(-batch // parts), training, optimizer, precision)
        return Costs(image_flops * start.images * train.epochs, max(training, evaluation))

    def _look_at(self, config: TrialConfig) -> _Start:
        key = config.model, config.data
        if key not in self._starts:
            self.look_at(config, *load_trial(config, verify=False))
        return self._starts[key]

    def _prepare(self, config: TrialConfig, method_config: MethodConfig, start: _Start) -> _Prepared:
        """Let a method prepare a copy without weights; ALaST's are the same but for adapters and embeddings."""
        if isinstance(method_config, AlastConfig):
            setup: MethodConfig = AlastConfig(
                lora=method_config.lora, train_embeddings=method_config.train_embeddings, trainable_blocks=0, alpha=0.0
            )
        else:
            setup = method_config
        key = config.model, config.data, setup, config.train.optimizer
        if key not in self._prepared:
            method = build_method(setup, copy.deepcopy(start.model), config.train)
            optimizer = build_optimizer(config.train, method.parameters())
            self._prepared[key] = _Prepared(StepCosts(method.model, start.image_size), method.plan, optimizer)
        return self._prepared[key]


def _give_back_memory() -> None:
    """Let glibc return what weights took to the system, which it would keep for later; other libraries do."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _stages(config: MethodConfig) -> list[MethodConfig]:
    """What a run trains in turn: if it explores, the heaviest probe and the first blocks, else just the method."""
    explores = isinstance(config, BlockChoice) and config.blocks is None
    return [TopKConfig(blocks=(0,)), with_blocks_chosen(config)] if explores else [config]


def _probing(config: AlastConfig, alpha: float, batch: int, growth: float) -> AlastConfig:
    """Let one step on a few images move the budgets as a whole batch would, or as if deltas had grown since."""
    if config.delta_reduction == "batch_sum":
        alpha *= batch / IMAGES
    if growth:  # a first delta that is compared with nothing is itself the growth
        return config.model_copy(update={"alpha": alpha * growth, "first_delta": "zero"})
    return config.model_copy(update={"alpha": alpha})


def _plans(config: AlastConfig, start: _Start, seed: int) -> tuple[list[StepPlan], set[StepPlan]]:
    """Give plans as they are drawn after the first step, and the heaviest of that step and of those after it."""
    model = start.model
    drawable_L = drawable_blocks(config, model)
    patches, prefix = int(model.patch_embed.num_patches), int(model.num_prefix_tokens)
    assert config.alpha is not None
    planner = Planner(config, patches, prefix, drawable_L, config.alpha, seed)
    if config.initial_budget == "calibrate" or config.first_delta == "zero":
        planner.foresee(start.magnitudes_L, start.deltas_L, IMAGES)
    else:
        planner.decide()
    first, drawn = planner.plan, list(_draw(planner, 1 if config.selection == "top_k" else DRAWS))
    plans = {first, drawn[0]}
    return drawn, plans if config.selection == "top_k" else {_heaviest_draw(plan, drawable_L) for plan in plans}


def _draw(planner: Planner, count: int) -> Iterator[StepPlan]:
    for _ in range(count):
        planner.decide()
        yield planner.plan


def _heaviest_draw(plan: StepPlan, drawable_L: list[bool]) -> StepPlan:
    """Let the earliest blocks train: tokens only ever go, and all that follows waits for the gradient."""
    earliest = [block for block, drawable in enumerate(drawable_L) if drawable][: sum(plan.trainable_L)]
    return replace(plan, trainable_L=tuple(block in earliest for block in range(len(drawable_L))))
