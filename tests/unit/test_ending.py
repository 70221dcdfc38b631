"""Which epochs are evaluated, and when a run ends early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alast_tune.config import SweepConfig, TrainConfig, TrialConfig, apply_params, parse
from alast_tune.ending import is_evaluated
from alast_tune.errors import ConfigError
from alast_tune.results import EpochReport
from alast_tune.run import Run
from alast_tune.train import fit
from tests.unit.tiny import evaluation

TinyTrial = Callable[..., TrialConfig]


class Scripted(Run):
    """Has the accuracies that are written here, by epoch."""

    accuracies: tuple[float, ...] = (0.5, 0.6, 0.6, 0.4, 0.9, 0.9)

    def evaluate(self, split: str) -> Any:
        return evaluation(self.accuracies[self.epoch])


def ended(config: TrialConfig, again: Path | None = None) -> list[EpochReport]:
    """Train to the end; with a folder, by a new process for each epoch."""
    run, reports = Scripted(config), []
    while not run.finished:
        reports.append(run.train_epoch())
        if again:
            run.save(again)
            run = Scripted(config)
            run.load(again)
    return reports


def test_a_run_ends_after_so_many_epochs_without_a_better_accuracy(tiny_trial: TinyTrial, tmp_path: Path) -> None:
    config = tiny_trial({"name": "head"}, epochs=6, patience=2)
    assert [report.epoch for report in ended(config)] == [1, 2, 3, 4]  # as good as before is no better
    assert [report.accuracy for report in ended(config, tmp_path)] == [0.5, 0.6, 0.6, 0.4]
    assert len(ended(apply_params(config, {"train/patience": 3}))) == 6
    run = Scripted(config)
    run.load(tmp_path)
    assert run.finished and run.best is not None and run.best.epoch == 2


def test_with_patience_all_epochs_are_trained_where_there_is_no_validation(tiny_trial: TinyTrial) -> None:
    config = apply_params(tiny_trial({"name": "head"}, epochs=6, patience=1), {"data/all_data": True})
    assert len(ended(config)) == 6


def test_only_epochs_that_are_evaluated_have_an_accuracy_and_can_be_the_best(
    tiny_trial: TinyTrial, tmp_path: Path
) -> None:
    config = tiny_trial({"name": "head"}, epochs=5, eval_every=2)
    assert [is_evaluated(config.train, epoch) for epoch in range(1, 6)] == [False, True, False, True, True]
    assert is_evaluated(TrainConfig(), 1)
    reports = list(fit(config, tmp_path))
    assert ["accuracy" in report.metrics() for report in reports] == [False, True, False, True, True]
    assert ["validation_loss" in report.metrics() for report in reports] == [False, True, False, True, True]
    run = Run(config)
    run.load(tmp_path)
    evaluated = {report.epoch: report.accuracy for report in reports if "accuracy" in report.metrics()}
    assert run.best is not None and run.best.accuracy == max(evaluated.values()) == evaluated[run.best.epoch]


def test_it_ends_only_at_an_epoch_that_is_evaluated(tiny_trial: TinyTrial, tmp_path: Path) -> None:
    config = tiny_trial({"name": "head"}, epochs=6, eval_every=2, patience=1)
    assert [report.epoch for report in ended(config, tmp_path)] == [1, 2, 3, 4]


def test_a_sweep_looks_after_every_epoch(tiny_trial: TinyTrial) -> None:
    values = {"name": "x", "trial": tiny_trial({"name": "full"}, eval_every=2).given_values()}
    values["space"] = {"train/learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3, "log": True}}
    with pytest.raises(ConfigError, match=r"trial.train.eval_every = above 1: a sweep compares after every epoch"):
        parse(SweepConfig, values)
    seldom = {"method": {"name": "head"}, "train/eval_every": 2}
    values |= {"trial": {}, "space": {"method": {"type": "variants", "variants": {"often": {}, "seldom": seldom}}}}
    with pytest.raises(ConfigError, match=r"= seldom: sets train.eval_every, and a sweep compares after every epoch"):
        parse(SweepConfig, values)


def test_the_averaged_weights_are_evaluated_and_kept(tiny_trial: TinyTrial, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = tiny_trial({"name": "full"}, epochs=1, ema=0.5)
    (report,) = fit(config, tmp_path)
    run = Run(config)
    run.load(tmp_path)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    kept = load_file(tmp_path / "model.safetensors")
    with run.averaged():
        assert all(torch.equal(kept[name], tensor) for name, tensor in run.model.state_dict().items())
    assert not torch.equal(kept["head.weight"], weights["head.weight"])
    last = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in kept.items())
    assert run.evaluate("validation").loss == pytest.approx(report.validation_loss)
    plain = next(fit(apply_params(config, {"train/ema": None})))
    assert plain.train_loss == report.train_loss and plain.validation_loss != report.validation_loss
