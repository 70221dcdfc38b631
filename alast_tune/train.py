"""``fit``: the only training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from alast_tune import checkpoint
from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost import Meter
from alast_tune.data import Splits, check_classes, eval_loader, load_splits, num_classes_of, train_loader
from alast_tune.errors import ConfigError
from alast_tune.evaluate import evaluate
from alast_tune.methods import build_method
from alast_tune.models import VisionTransformer, create_model, input_spec
from alast_tune.results import EpochReport, Measurements

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_trial(config: TrialConfig, verify: bool = True) -> tuple[VisionTransformer, Splits]:
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
    return model, load_splits(config.data, input_spec(model), verify)


class Run:
    """One fine-tuning run, an epoch at a time, that can be saved and resumed at every epoch's end.

    A resumed run equals an uninterrupted one bit for bit on a CPU: every epoch draws its order,
    augmentations and dropout from the seed and its own number.
    """

    def __init__(self, config: TrialConfig, verify: bool = True) -> None:
        self.config = config
        self.device = _device(config.train)
        self.model, self._splits = load_trial(config, verify)
        self.model.to(self.device)
        self.method = build_method(config.method, self.model, config.train)
        self._optimizer = _optimizer(config.train, self.method.parameters())
        self.steps_per_epoch = len(self._loader(0))
        self._scheduler = LambdaLR(self._optimizer, _rate(config.train, self.steps_per_epoch))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.precision == "fp16")
        self._dtype = _AUTOCAST[config.train.precision]
        self.meter = Meter(self.model, config.method, self._optimizer)
        self.report: EpochReport | None = None

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.report.epoch if self.report else 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.config.train.epochs

    def train_epoch(self, on_step: Callable[[int], None] | None = None) -> EpochReport:
        """Train one epoch, validate, and report; ``on_step`` is called with the steps done in the epoch."""
        depth = len(self.model.blocks)
        trained, tokens = [0] * depth, [0] * depth
        losses = torch.zeros((), device=self.device)
        with self.meter.clock.training():
            self.model.train()
            loader = self._loader(self.epoch)
            torch.manual_seed(_epoch_seed(self.config.train.seed, self.epoch))  # dropout, augmentations
            for step, (images, labels) in enumerate(loader):
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
                self.method.begin_step(self.epoch * self.steps_per_epoch + step)
                with self.meter.step(self.method, images):
                    with torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
                        loss = F.cross_entropy(self.method.forward(images), labels)
                    self._scaler.scale(loss).backward()
                    self._scaler.step(self._optimizer)
                    self._optimizer.zero_grad(set_to_none=True)
                self._scaler.update()
                self._scheduler.step()
                self.method.end_step()
                losses += loss.detach()
                plan = self.method.plan
                trained = [n + trains for n, trains in zip(trained, plan.trainable_L, strict=True)]
                tokens = [n + count for n, count in zip(tokens, plan.tokens_L, strict=True)]
                if on_step:
                    on_step(step + 1)
            train_loss = losses.item() / self.steps_per_epoch
        accuracy, validation_loss = self.evaluate("validation")
        self.report = EpochReport(
            epoch=self.epoch + 1,
            train_loss=train_loss,
            validation_loss=validation_loss,
            accuracy=accuracy,
            cost=self.meter.read(),
            budgets=getattr(self.method, "budgets", ()),
            trained=tuple(trained),
            tokens=tuple(count / self.steps_per_epoch for count in tokens),
        )
        return self.report

    def evaluate(self, split: str) -> tuple[float, float]:
        """Accuracy and loss of the bare model on ``validation`` or ``test``."""
        dataset = getattr(self._splits, split)
        if dataset is None:
            raise ConfigError("data.dataset", self.config.data.dataset, f"has no {split} images")
        loader = eval_loader(dataset, self.config.train.batch_size, self.config.data.workers)
        return evaluate(self.model, loader, self.device, self._dtype)

    @property
    def has_test(self) -> bool:
        """Whether the dataset has test images."""
        return self._splits.test is not None

    def save(self, folder: Path) -> None:
        """Write a checkpoint of everything the next epoch depends on."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "method": self.method.state_dict(),
            "meter": self.meter.state_dict(),
            "report": asdict(self.report) if self.report else None,
            "config": self.config.model_dump_json(),
        }
        checkpoint.save(state, folder)

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint of the same configuration.

        Raises:
            ConfigError: not a checkpoint, or of a run with other settings.
        """
        state = checkpoint.load(folder)
        if TrialConfig.model_validate_json(state["config"]) != self.config:
            raise ConfigError("checkpoint", folder, "belongs to a run with other settings; use another folder")
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        self.meter.load_state_dict(state["meter"])
        self.report = _read_report(state["report"]) if state["report"] else None

    def _loader(self, epoch: int) -> Any:
        train = self.config.train
        generator = torch.Generator().manual_seed(_epoch_seed(train.seed, epoch))
        return train_loader(self._splits.train, train.batch_size, self.config.data.workers, generator)


def fit(
    config: TrialConfig, folder: Path | None = None, on_step: Callable[[int], None] | None = None
) -> Iterator[EpochReport]:
    """Fine-tune; yield a report an epoch.

    Args:
        config: everything that determines the run.
        folder: keeps a checkpoint an epoch and resumes from one that is there; the finished
            model ends up in its ``model.safetensors``.
        on_step: called with the steps done in the running epoch.

    Raises:
        ConfigError: whatever cannot work, before any training.
    """
    run = Run(config)
    if folder and (folder / checkpoint.FILE).exists():
        run.load(folder)
    while not run.finished:
        report = run.train_epoch(on_step)
        if folder:
            run.save(folder)
        yield report
    if folder:
        checkpoint.save_weights(run.model, folder / "model.safetensors")


def _read_report(values: dict[str, Any]) -> EpochReport:
    return EpochReport(**{**values, "cost": Measurements(**values["cost"])})


def _epoch_seed(seed: int, epoch: int) -> int:
    return seed * 100_003 + epoch + 1  # no two (seed, epoch) of a sensible run share it


def _device(train: TrainConfig) -> torch.device:
    if train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device", "cuda", "no CUDA device is visible; use auto or cpu")
    if train.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(train.device)


def _optimizer(train: TrainConfig, parameters: list[torch.nn.Parameter]) -> Optimizer:
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, train.learning_rate, momentum=0.9, weight_decay=train.weight_decay)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, train.learning_rate, weight_decay=train.weight_decay)


def _rate(train: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    warmup, total = train.warmup_epochs * steps_per_epoch, train.epochs * steps_per_epoch

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return warm if train.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * step / total))

    return factor
