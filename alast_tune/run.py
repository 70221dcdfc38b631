"""A run: fine-tuning an epoch at a time, resumable at every step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from alast_tune import checkpoint
from alast_tune.averaging import WeightAverage
from alast_tune.checkpoint import read_report
from alast_tune.class_weights import balanced_weights, part_of_loss, weight_of_batch
from alast_tune.config import TrialConfig, parse, without_places
from alast_tune.cost import STEPS, Meter
from alast_tune.data import (
    Batch,
    Splits,
    check_classes,
    eval_loader,
    load_splits,
    num_classes_of,
    prepare,
    train_loader,
)
from alast_tune.device import AUTOCAST, device_of, precision_of, set_tf32
from alast_tune.ending import is_better, is_evaluated, out_of_patience
from alast_tune.errors import ConfigError
from alast_tune.evaluate import evaluate
from alast_tune.exploration import explore
from alast_tune.failpoints import failpoint
from alast_tune.features import Features, begin_with_features, compute_features
from alast_tune.fingerprints import Fingerprints, fingerprints
from alast_tune.losses import check_pairs, mixed
from alast_tune.methods import Constant, Method, build_method, compile_blocks, with_blocks_chosen
from alast_tune.micro_batches import Splitting, check_limit
from alast_tune.models import check_labels, create_model, input_spec
from alast_tune.models.backbone import Backbone
from alast_tune.optimizers import build_optimizer, rate, update
from alast_tune.parallel import summed, world
from alast_tune.phases import Phase, phases_of
from alast_tune.results import EpochReport
from alast_tune.running_epoch import RunningEpoch
from alast_tune.scores import Evaluation

CHECK_EVERY = 50
"""Steps after which the loss is looked at: each time the host waits for the device."""

_AUGMENTATION = 2
"""What is drawn of an epoch's images, from a stream of its own."""

_UPDATING = {"optimizer", "scheduler", "scaler"}
"""Parts of a run that no epoch needs any more when all are done: two thirds of a checkpoint."""


def load_trial(config: TrialConfig, verify: bool = True) -> tuple[Backbone, Splits]:
    """Build the model, its classifier sized to the dataset, and load the data at its input size.

    Args:
        config: of the run.
        verify: look at every image once; not needed where another process just has.

    Raises:
        ConfigError: whatever cannot work, before any training.
    """
    check_classes(config.data, config.model)
    model_config = config.model.model_copy(update={"num_classes": num_classes_of(config.data)})
    torch.manual_seed(config.train.seed)  # the classifier's first weights
    model = create_model(model_config)
    splits = load_splits(config.data, input_spec(model), verify)
    check_labels(config.model, splits.classes)
    return model, splits


class Run:
    """One fine-tuning run, an epoch at a time, that can be saved and resumed between any two steps.

    A resumed run equals an uninterrupted one bit for bit on a CPU: every epoch draws its order,
    augmentations and dropout from the seed and its own number, and within an epoch a checkpoint says how
    far its dropout has come. In a process group every rank runs
    one, takes its share of each batch, and comes to the same weights; but for dropout they are those of
    one process, since each image is augmented by its number, whichever rank gets it.
    """

    def __init__(self, config: TrialConfig, verify: bool = True) -> None:
        self.config = config
        self.device = device_of(config.train)
        check_limit(config.train)
        set_tf32(config.train)
        self.model, self._splits = load_trial(config, verify)
        check_pairs(config.train, len(self._splits.train), world()[1])
        self._splitting = Splitting(config.train, self.model, self._splits)
        self._class_weights: Tensor | None = None
        if config.data.class_weights == "balanced":
            labels = self._splits.train.labels
            self._class_weights = balanced_weights(labels, self._splits.num_classes).to(self.device)
        self.model.to(self.device)
        self._features: Features | None = None
        self.steps_per_epoch = len(self._loader(0))
        self._phases = phases_of(config.train, self.model)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.precision == "fp16")
        self._dtype = AUTOCAST[precision_of(config.train)]
        self.meter = Meter(self.model, config.train)
        self.report: EpochReport | None = None
        self.best: EpochReport | None = None
        """Of the epoch with the highest ``train.score`` on the validation images, the first of several."""
        self._running: RunningEpoch | None = None
        self._blocks: tuple[int, ...] | None = None  # found by exploration
        self._started = False
        if with_blocks_chosen(config.method) is config.method:
            self._start()

    def _start(self) -> None:
        """Wrap the model in its method, once nothing about that is left open."""
        self.method = build_method(with_blocks_chosen(self.config.method, self._blocks), self.model, self.config.train)
        self.model.to(self.device)  # adapters were made on the CPU
        if self.config.train.compile:
            compile_blocks(self.method)
        self._optimizer = build_optimizer(self.config.train, self.method)
        self._begins_at = begin_with_features(self.method, self.config.data.features)
        self._average = WeightAverage(self.method.parameters(), self.config.train.ema)
        self.meter.keep(self._average.tensors)
        self._scheduler = LambdaLR(self._optimizer, rate(self.config.train, self.steps_per_epoch))
        for phase in dict.fromkeys(self._phases):
            self._parts_of(self.method, self._optimizer, phase)  # one that does not fit says so here
        self._started = True

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.report.epoch if self.report else 0

    @property
    def steps_done(self) -> int:
        """Of the epoch that is running; 0 between two epochs."""
        return self._running.steps if self._running else 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping (``train.patience``) has ended the run."""
        return self.epoch >= self.config.train.epochs or out_of_patience(self.config, self.report, self.best)

    def _keep_features(self) -> None:
        """Compute once what the steps begin with, if they do not begin with images."""
        if not self._begins_at or self._features:
            return
        assert isinstance(self.method, Constant)
        size, count = input_spec(self.model).image_size, self.config.data.views
        views = [self._splits.train.drawn(self._draws(view)) for view in range(count)]
        most = self.micro_batch(self.method, self._optimizer)
        with self.meter.trunk(self.method, self._optimizer, size, most) as batch:
            self._features = compute_features(self.method, views, self._splits.validation, self._dtype, batch)
        if not (self.epoch or self.steps_done):  # otherwise the checkpoint has counted them
            self.meter.add_trunk(self.method, size, len(self._splits.train) * count)

    def train_epoch(self, on_step: Callable[[int], None] | None = None) -> EpochReport:
        """Train one epoch, or what is left of it, validate, and report.

        Args:
            on_step: is called with the steps done in the epoch; may save the run.

        Raises:
            DivergedError: a loss or a class-token delta that is not finite.
        """
        if not self._started:
            with self.meter.clock.training():
                self._blocks = explore(self)
            self._start()
        with self.meter.clock.training():
            self._keep_features()
            self.model.train()
            running = self._running = self._running or self._begin_epoch()
            loader = self._loader(self.epoch, running.steps)
            running.begin(self.config.train.seed)
            for images, labels in loader:
                running.add(self._step(self.method, self._optimizer, images, labels), self.method.plan)
                self._scheduler.step()
                self._average.update()
                failpoint("mid-epoch")
                if on_step:
                    on_step(running.steps)
                if running.steps % CHECK_EVERY == 0:
                    running.mean_loss()
            train_loss = running.mean_loss()
        self.report = EpochReport(
            epoch=self.epoch + 1,
            train_loss=train_loss,
            **self._validate(),
            cost=self.meter.read(),
            budgets=getattr(self.method, "budgets", ()),
            trained=tuple(running.trained_L.tolist()),
            tokens=tuple((running.tokens_L / self.steps_per_epoch).tolist()),
            score=self.config.train.score,
        )
        self._running = None
        # What has trained on the validation images cannot be chosen by them.
        if self.config.data.all_data or is_better(self.report, self.best):
            self.best = self.report
        return self.report

    def _validate(self) -> dict[str, Any]:
        """Measure the epoch that has just been trained, if it is one that is evaluated: what its report has of that."""
        if not is_evaluated(self.config.train, self.epoch + 1):
            return {"accuracy": math.nan, "validation_loss": math.nan}
        found = self.evaluate("validation").metrics()
        return {"validation_loss": found.pop("loss"), **found}

    def _begin_epoch(self) -> RunningEpoch:
        return RunningEpoch(self.epoch, len(self.model.blocks), self.device)

    def _step(self, method: Method, optimizer: Optimizer, images: Tensor | Batch, labels_B: Tensor) -> Tensor:
        """One update from this rank's share of a batch; returns its part of the batch's mean loss."""
        phase = self._phases[self.epoch]
        images_BCHW = phase.resize(prepare(images, self.device))
        labels_B = labels_B.to(self.device, non_blocking=True)
        train, batch = self.config.train, self._splitting.batch
        images_BCHW, labels, share = mixed(train, self.meter.steps, images_BCHW, labels_B)
        weights_K = self._class_weights
        whole = batch if weights_K is None else weight_of_batch(labels_B, weights_K, len(labels_B))
        parts = min(self._parts_of(method, optimizer, phase), len(images_BCHW))
        loss = torch.zeros((), device=self.device)
        images_of_parts = images_BCHW.tensor_split(parts)
        method.begin_step(self.meter.steps, images_of_parts, phase.token_keep)
        with self.meter.step(method, optimizer, images_BCHW, batch, parts):
            for images_of_part, truth in zip(images_of_parts, labels.tensor_split(parts), strict=True):
                with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                    logits = method.forward(images_of_part)
                    part = part_of_loss(logits, truth, whole, weights_K, train.label_smoothing, share)
                is_last = images_of_part is images_of_parts[-1]
                with summed(method.parameters()) if is_last else nullcontext():
                    self._scaler.scale(part).backward()
                loss += part.detach()
            update(train, optimizer, self._scaler, method.parameters())
            optimizer.zero_grad(set_to_none=True)
            method.end_step()
        self._scaler.update()
        return loss

    def evaluate(self, split: str) -> Evaluation:
        """Evaluate the bare model on ``validation`` or ``test``."""
        dataset, start = getattr(self._splits, split), 0
        if dataset is None:
            raise ConfigError("data.dataset", self.config.data.dataset, f"has no {split} images")
        if self._features and split == "validation":
            dataset, start = self._features.validation, self.method.plan.start
        image_size, most = input_spec(self.model).image_size, self.micro_batch(self.method, self._optimizer)
        with self.meter.evaluation(self._optimizer, image_size, most, start) as size:
            loader = eval_loader(dataset, size, self.config.data.workers)
            with self.averaged():
                return evaluate(self.model, loader, self.device, self._dtype, start)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model have, inside, the weights that are evaluated and kept: their average, if there is one."""
        return self._average.in_place()

    def micro_batch(self, method: Method, optimizer: Optimizer) -> int:
        """Most images that one of the forwards of this epoch's steps, or the last epoch's, gets on this rank."""
        phase = self._phases[min(self.epoch, len(self._phases) - 1)]
        return -(-self._splitting.share // self._parts_of(method, optimizer, phase))

    def _parts_of(self, method: Method, optimizer: Optimizer, phase: Phase) -> int:
        """Into how many micro-batches this rank's share of a batch is split; every rank has to ask."""
        costs = self.meter.costs(phase.image_size or input_spec(self.model).image_size)
        return self._splitting.parts(method, costs, optimizer, phase)

    @property
    def fingerprints(self) -> Fingerprints:
        """Of the images and the weights that it starts from."""
        return fingerprints(self._splits, self.config.model)

    @property
    def has_test(self) -> bool:
        """Whether the dataset has test images."""
        return self._splits.test is not None

    def save(self, folder: Path | None) -> None:
        """Write a checkpoint of everything the next step depends on; after the last one, without the optimizer's.

        The lines of its steps are beside it, in ``steps.csv``. Within an epoch every rank has to call it, the first one
        with a folder.
        """
        running = self._running and self._running.state_dict()
        if folder is None:
            return
        parts = {name: part for name, part in self._parts().items() if not self.finished or name not in _UPDATING}
        state = {name: part.state_dict() for name, part in parts.items()} | {
            "blocks": self._blocks,
            "splitting": self._splitting.state_dict(),
            "running": running,
            "report": asdict(self.report) if self.report else None,
            "best": asdict(self.best) if self.best else None,
            "config": self.config.model_dump_json(),
        }
        self.meter.ledger.write(folder / STEPS)  # first: the checkpoint says how much of it is right
        checkpoint.save(state, folder)

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint of the same configuration, wherever its files lie now.

        Raises:
            ConfigError: not a checkpoint, or of a run with other settings, or of another version.
        """
        state = checkpoint.load(folder)
        if without_places(parse(TrialConfig, json.loads(state["config"]))) != without_places(self.config):
            raise ConfigError("checkpoint", folder, "belongs to a run with other settings; use another folder")
        if not self._started:
            self._blocks = state["blocks"]
            self._start()
        self._splitting.load_state_dict(state.get("splitting", {}))  # checkpoints of version 0.1 have none
        self.report = read_report(state["report"]) if state["report"] else None
        best = state.get("best", state["report"])  # checkpoints of version 0.1 do not say
        self.best = read_report(best) if best else None
        self._running = self._begin_epoch() if state.get("running") else None  # nor are these in version 0.1's
        try:
            for name, part in self._parts().items():
                if not (self.finished and name in _UPDATING):
                    part.load_state_dict(state[name])
            if self._running:
                self._running.load_state_dict(state["running"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            remedy = f"was not written by this version ({reason}); train anew, in another folder"
            raise ConfigError("checkpoint", folder, remedy) from error
        self.meter.ledger.restore(folder / STEPS)

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own, in the order in which a resumed run takes it over."""
        return {
            "model": self.model,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "scaler": self._scaler,
            "method": self.method,
            "meter": self.meter,
        } | ({"average": self._average} if self.config.train.ema else {})

    def _loader(self, epoch: int, done: int = 0) -> Any:
        """Load an epoch's batches, but for those that are done."""
        train = self.config.train
        generator = torch.Generator().manual_seed(_epoch_seed(train.seed, epoch))
        if self._features:
            images = self._features.views[epoch % len(self._features.views)]
        else:
            images = self._splits.train.drawn(self._draws(epoch))
        balanced = self.config.data.sampling == "balanced"
        return train_loader(images, train.batch_size, self.config.data.workers, generator, balanced, done)

    def _draws(self, epoch: int) -> np.random.SeedSequence:
        """Seed what is drawn of an epoch's images, or of a view's."""
        return np.random.SeedSequence([self.config.train.seed, epoch, _AUGMENTATION])


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch + 1  # no two (seed, epoch) of a sensible run share it
