"""The loop on the embedded backbone and the digits: exact resumption, exact cost, plain models out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alast_tune import checkpoint
from alast_tune.config import ModelConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.models import create_model
from alast_tune.results import EpochReport
from alast_tune.train import Run, fit


def trial(method: dict[str, Any] | None = None, **train: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {"train_images": 96},
            "method": method or {"name": "alast", "alpha": 0.5, "trainable_blocks": 4, "target_budget": 0.4},
            "train": {"epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "warmup_epochs": 0.5, "device": "cpu"}
            | train,
        }
    )


def without_time(report: EpochReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics().items() if "seconds" not in name}


@pytest.mark.parametrize(
    ("method", "train"),
    [
        (None, {}),
        ({"name": "alast", "reading": "authors"}, {"schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.1}),
        ({"name": "alast", "reading": "paper", "frozen_backward": "residual"}, {"precision": "bf16"}),
        ({"name": "full"}, {"optimizer": "sgd"}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, method: dict[str, Any] | None, train: dict[str, Any]
) -> None:
    config = trial(method, **train)
    whole = Run(config)
    expected = [whole.train_epoch() for _ in range(3)]
    resumed: list[EpochReport] = []
    for _ in range(3):  # a new process each epoch, as far as the run can tell
        run = Run(config)
        if run_exists(tmp_path):
            run.load(tmp_path)
        resumed.append(run.train_epoch())
        run.save(tmp_path)
    assert [without_time(r) for r in resumed] == [without_time(r) for r in expected]
    for one, other in zip(whole.model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert resumed[-1].cost.wall_seconds > resumed[0].cost.wall_seconds


def run_exists(folder: Path) -> bool:
    return (folder / checkpoint.FILE).exists()


def test_reported_flops_equal_those_counted_over_the_whole_training() -> None:
    run = Run(trial(epochs=1))
    run._splits = type(run._splits)(  # validation is not training: none here, so that only training is counted
        train=run._splits.train, validation=[], test=None, classes=run._splits.classes
    )
    run.evaluate = lambda split: (0.0, 0.0)  # type: ignore[method-assign]
    with FlopCounterMode(display=False) as counter:
        report = run.train_epoch()
    assert report.cost.train_flops == counter.get_total_flops()


def test_fit_yields_an_epoch_at_a_time_resumes_and_leaves_a_plain_timm_model(tmp_path: Path) -> None:
    config = trial(epochs=2)
    first = next(iter(fit(config, tmp_path)))
    assert first.epoch == 1
    (second,) = fit(config, tmp_path)
    assert second.epoch == 2
    assert list(fit(config, tmp_path)) == []
    model = create_model(ModelConfig(num_classes=10, checkpoint=tmp_path / "model.safetensors"))
    run = Run(config)
    run.load(tmp_path)
    for one, other in zip(model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_report_says_what_blocks_did() -> None:
    report = Run(trial()).train_epoch()
    assert sum(report.trained) == 4 * 3  # K blocks at each of three steps
    assert report.tokens[0] == 65
    assert list(report.tokens) == sorted(report.tokens, reverse=True)
    assert len(report.budgets) == 12
    assert 0 < report.cost.train_seconds <= report.cost.wall_seconds
    assert report.cost.peak_bytes >= report.cost.steady_peak_bytes > 0


def test_it_learns() -> None:
    config = TrialConfig.model_validate(
        {"train": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "device": "cpu", "warmup_epochs": 0.2}}
    )
    (report,) = fit(config)
    assert report.accuracy > 0.6


@pytest.mark.gpu
def test_on_a_gpu_the_allocator_measures_and_mixed_precision_learns() -> None:
    report = Run(trial(precision="bf16", device="cuda", epochs=1)).train_epoch()
    assert report.cost.peak_bytes >= report.cost.steady_peak_bytes > 0


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.trainable_blocks = 13: the model has 12 blocks"):
        Run(trial({"name": "alast", "trainable_blocks": 13}))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"train.device = cuda: no CUDA device"):
            Run(trial(device="cuda"))
    run = Run(trial())
    with pytest.raises(ConfigError, match=r"has no state.pt"):
        run.load(tmp_path / "nowhere")
    run.save(tmp_path)
    with pytest.raises(ConfigError, match=r"belongs to a run with other settings"):
        Run(trial(epochs=9)).load(tmp_path)
    (tmp_path / checkpoint.FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\); delete it"):
        run.load(tmp_path)
