"""What a trial will cost, known before it trains."""

from __future__ import annotations

import copy
import ctypes
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from torch.optim import Optimizer

from alast_tune.config import BlockChoice, DataConfig, MethodConfig, ModelConfig, TopKConfig, TrainConfig, TrialConfig
from alast_tune.cost import StepCosts
from alast_tune.data import Splits, batch_count
from alast_tune.device import precision_of
from alast_tune.errors import MemoryLimitError
from alast_tune.features import Wish, features_start
from alast_tune.losses import mixes
from alast_tune.methods import Constant, Method, build_method, with_blocks_chosen
from alast_tune.methods.base import FirstLook
from alast_tune.micro_batches import GROWTH, first_look, micro_batches
from alast_tune.models import input_spec
from alast_tune.models.backbone import Backbone
from alast_tune.optimizers import build_optimizer
from alast_tune.phases import Phase, phases_of
from alast_tune.run import load_trial


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

    look: FirstLook
    image_size: int
    images: int
    """To train on."""


@dataclass(frozen=True)
class _Prepared:
    """A model that a method has prepared, and what updates it."""

    method: Method
    optimizer: Optimizer
    train: TrainConfig
    by_size: dict[int, StepCosts]
    """Of images of so many pixels a side."""

    def costs(self, image_size: int) -> StepCosts:
        """Give the costs of images of a size."""
        if image_size not in self.by_size:
            self.by_size[image_size] = StepCosts(self.method.model, image_size, self.train)
        return self.by_size[image_size]


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
        phases = phases_of(config.train, self._look_at(config).look.model)
        *probes, last = _stages(config.method)
        exploring = config.model_copy(update={"train": config.train.model_copy(update={"ema": None})})
        stages = [self._costs(exploring, probe, growth, phases[:1], "none") for probe in probes]
        stages.append(self._costs(config, last, growth, phases, config.data.features))
        return Costs(stages[-1].train_flops, max(stage.peak_bytes for stage in stages))

    def look_at(self, config: TrialConfig, model: Backbone, splits: Splits) -> None:
        """See how a model moves the summary of a few images; it loses its weights, for they are not needed again.

        Args:
            config: of trials with this model and data.
            model: with its weights, untouched.
            splits: of the data.
        """
        look = first_look(model, splits)
        model.to("meta")
        start = _Start(look, input_spec(model).image_size, len(splits.train))
        self._starts[config.model, _images_of(config.data)] = start
        _give_back_memory()

    def _costs(
        self, config: TrialConfig, method_config: MethodConfig, growth: float, phases: Sequence[Phase], features: Wish
    ) -> Costs:
        """Predict the costs of epochs, whose phases these are."""
        start, train = self._look_at(config), config.train
        prepared = self._prepare(config, method_config, start)
        method, optimizer, precision = prepared.method, prepared.optimizer, precision_of(train)
        batch = min(train.batch_size, start.images)
        whole, flops, peak = prepared.costs(start.image_size), 0.0, 0
        first = features_start(method, features)
        if isinstance(method, Constant):
            method.begin_at(first)
        micro = []
        for place, (phase, epochs) in enumerate(Counter(phases).items()):
            side = phase.image_size or start.image_size
            costs, plan = prepared.costs(side), method.plan_for(side, phase.token_keep)
            foresee = partial(method_config.foresee, start.look, plan, train, batch)
            plans = foresee(growth)
            grown = () if train.max_memory is None else foresee(GROWTH).heaviest  # the same parts, whatever the growth
            try:
                parts = micro_batches(train, costs, method_config, grown, batch, optimizer)
            except MemoryLimitError as error:
                parts, peak = batch, max(peak, error.peak_bytes)
            micro.append(-(-batch // parts))
            image_flops = sum(costs.image_flops(method_config, plan) for plan in plans.drawn) / len(plans.drawn)
            flops += image_flops * batch * batch_count(start.images, train.batch_size) * epochs
            if place == 0:  # the first step alone may calibrate
                looks = [costs.look_flops(method_config, plan) for plan in plans.heaviest if plan.calibrated]
                flops += max(looks, default=0) * batch
            steps = [costs.step(method_config, plan, batch, optimizer, precision, parts) for plan in plans.heaviest]
            peak = max(peak, *(step.peak_bytes for step in steps))
        if first:
            peak = max(peak, whole.trunk_batch(method_config, method.plan, micro[0], optimizer, precision)[1])
            flops += whole.trunk_flops(method_config, method.plan) * start.images * config.data.views
        _, evaluation = whole.evaluation_batch(micro[-1], peak, optimizer, precision, first)
        return Costs(flops, max(peak, evaluation))

    def _look_at(self, config: TrialConfig) -> _Start:
        key = config.model, _images_of(config.data)
        if key not in self._starts:
            self.look_at(config, *load_trial(config, verify=False))
        return self._starts[key]

    def _prepare(self, config: TrialConfig, method_config: MethodConfig, start: _Start) -> _Prepared:
        """Let a method prepare a copy without weights, the same for all settings of the same costs."""
        setup = method_config.cost_settings()
        train = config.train
        loss = train.label_smoothing > 0, mixes(train)
        held = train.optimizer, train.ema is None, loss, train.checkpoint_blocks, train.activations
        key = config.model, _images_of(config.data), setup, held
        if key not in self._prepared:
            method = build_method(setup, copy.deepcopy(start.look.model), config.train)
            optimizer = build_optimizer(config.train, method)
            self._prepared[key] = _Prepared(method, optimizer, train, {})
        return self._prepared[key]


def _images_of(data: DataConfig) -> DataConfig:
    """Leave out of the settings of the data what makes no other images of them."""
    return data.model_copy(update={"features": "none", "views": 1, "augment": "none", "random_erasing": 0.0})


def _give_back_memory() -> None:
    """Let glibc return what weights took to the system, which it would keep for later; other libraries do."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _stages(config: MethodConfig) -> list[MethodConfig]:
    """What a run trains in turn: if it explores, the heaviest probe and the first blocks, else just the method."""
    explores = isinstance(config, BlockChoice) and config.blocks is None
    return [TopKConfig(blocks=(config.from_block,)), with_blocks_chosen(config)] if explores else [config]
