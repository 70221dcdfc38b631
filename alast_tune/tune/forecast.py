"""What a trial will cost, known before it trains."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alast_tune.config import AlastConfig, BlockChoice, DataConfig, MethodConfig, ModelConfig, TopKConfig, TrialConfig
from alast_tune.cost import evaluation_batch, step_flops, step_peak_bytes
from alast_tune.methods import Alast, Method, StepPlan, build_method, settled
from alast_tune.methods.lora import adapted_blocks
from alast_tune.models import VisionTransformer
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


class Forecast:
    """Predicts trials' costs; keeps an untouched model and a few images of each model and data set it meets.

    Where chance decides, the peak is the most that can come of it: of ALaST's blocks the earliest are drawn, and
    exploration finds the first ones. ALaST's first budgets come from the method itself, run once without a graph on
    a few real images.

    How budgets move after the first step is not predicted: where they grow, so do the costs. ``growth`` asks what
    there would be then. Nor is what a compiler saves, nor anything that is no tensor of a training step.
    """

    def __init__(self) -> None:
        self._loaded: dict[tuple[ModelConfig, DataConfig], tuple[VisionTransformer, Tensor, int]] = {}

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

    def _costs(self, config: TrialConfig, method_config: MethodConfig, growth: float) -> Costs:
        pristine, images_BCHW, count = self._load(config)
        train, batch = config.train, min(config.train.batch_size, count)
        if isinstance(method_config, AlastConfig):
            method_config = _probing(method_config, train.learning_rate, batch, growth)
        model = copy.deepcopy(pristine)  # a method leaves hooks and adapters behind
        method = build_method(method_config, model, train)
        optimizer = build_optimizer(train, method.parameters())
        side, parts = images_BCHW.shape[-1], min(train.accumulate, batch)
        plans, heaviest = _plans(method, images_BCHW)
        image_flops = sum(step_flops(model, method_config, plan, side, 1) for plan in plans) / len(plans)
        peaks = [
            step_peak_bytes(model, method_config, plan, side, batch, optimizer, train.precision, parts)
            for plan in heaviest
        ]
        training = max(peaks)
        _, evaluation = evaluation_batch(model, side, -(-batch // parts), training, optimizer, train.precision)
        return Costs(image_flops * count * train.epochs, max(training, evaluation))

    def _load(self, config: TrialConfig) -> tuple[VisionTransformer, Tensor, int]:
        """Model, a few images as it wants them, and the number of images to train on."""
        key = config.model, config.data
        if key not in self._loaded:
            model, splits = load_trial(config, verify=False)
            spread = torch.linspace(0, len(splits.validation) - 1, IMAGES).int().tolist()
            images_BCHW, _ = splits.validation.__getitems__(spread)  # these are never augmented
            self._loaded[key] = model, images_BCHW, len(splits.train)
        return self._loaded[key]


def _stages(config: MethodConfig) -> list[MethodConfig]:
    """What a run trains in turn: if it explores, the heaviest probe and the first blocks, else just the method."""
    explores = isinstance(config, BlockChoice) and config.blocks is None
    return [TopKConfig(blocks=(0,)), settled(config)] if explores else [config]


def _probing(config: AlastConfig, learning_rate: float, batch: int, growth: float) -> AlastConfig:
    """Let one step on a few images move the budgets as a whole batch would, or as if deltas had grown since."""
    alpha = learning_rate if config.alpha is None else config.alpha
    if config.delta_reduction == "batch_sum":
        alpha *= batch / IMAGES
    if growth:  # a first delta that is compared with nothing is itself the growth
        return config.model_copy(update={"alpha": alpha * growth, "first_delta": "zero"})
    return config.model_copy(update={"alpha": alpha})


def _plans(method: Method, images_BCHW: Tensor) -> tuple[list[StepPlan], set[StepPlan]]:
    """Give plans as they are drawn after the first step, and the heaviest of that step and of those after it."""
    if not isinstance(method, Alast):
        return [method.plan], {method.plan}
    method.begin_step(0)
    if method.config.initial_budget == "calibrate" or method.config.first_delta == "zero":
        with torch.inference_mode():
            method.forward(images_BCHW)
            method.end_step()
    first, drawn = method.plan, []
    for step in range(1, 2 if method.config.selection == "top_k" else DRAWS + 1):
        method.begin_step(step)
        drawn.append(method.plan)
    return drawn, {_heaviest_draw(method, plan) for plan in (first, drawn[0])}


def _heaviest_draw(method: Alast, plan: StepPlan) -> StepPlan:
    """Let the earliest blocks train: tokens only ever go, and all that follows waits for the gradient."""
    if method.config.selection == "top_k":  # nothing is drawn
        return plan
    lora = method.config.lora
    drawable_L = [True] * len(plan.trainable_L) if lora is None else adapted_blocks(lora, method.model)
    earliest = [block for block, drawable in enumerate(drawable_L) if drawable][: sum(plan.trainable_L)]
    return replace(plan, trainable_L=tuple(block in earliest for block in range(len(drawable_L))))
