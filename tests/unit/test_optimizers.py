"""Moments of 8 bits: what they save, that the meter knows it, and that a run with them can be resumed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from alast_tune.config import FullConfig, TrainConfig
from alast_tune.cost import StepCosts
from alast_tune.cost.memory import track_live_bytes
from alast_tune.cost.updates import moment_bytes
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.optimizers import build_optimizer
from alast_tune.run import Run
from tests.integration.harness import ROOT
from tests.unit import tiny
from tests.unit.every_method import vit

EIGHT: dict[str, Any] = {"optimizer": "adamw8bit", "weight_decay": 0.1}


@pytest.mark.parametrize("size", [2, 48])
def test_moments_of_8_bits_are_there_and_counted(size: int) -> None:
    """With few images the update is the heaviest, with many the backward."""
    train, model = TrainConfig(**EIGHT), vit({"embed_dim": 128})
    method = build_method(FullConfig(), model, train)
    optimizer = build_optimizer(train, method.parameters())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number in range(3):
        images, labels = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
        with track_live_bytes(model, optimizer, images) as measured:
            F.cross_entropy(method.forward(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        predicted = StepCosts(model, 32).step(method.config, method.plan, size, optimizer).peak_bytes
        assert number == 0 or predicted == pytest.approx(measured[0], rel=0.01)
    kept = {t.data_ptr(): t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}
    assert moment_bytes(optimizer) == sum(t.nbytes for t in kept.values())
    numbers = sum(p.numel() for p in method.parameters())
    assert moment_bytes(optimizer) < 0.3 * 8 * numbers  # biases and norms keep theirs whole
    assert not any(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_they_learn_as_adamw_does_and_a_resumed_run_equals_an_uninterrupted_one(
    two_classes: Path, tmp_path: Path
) -> None:
    config = tiny.trial(two_classes, **EIGHT)
    whole, resumed = Run(config), Run(config)
    plain = Run(tiny.trial(two_classes, **EIGHT | {"optimizer": "adamw"}))
    reports = [whole.train_epoch()]
    whole.save(tmp_path)
    resumed.load(tmp_path)
    reports.append(whole.train_epoch())
    assert resumed.train_epoch().train_loss == reports[1].train_loss
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert any(
        t.dtype == torch.uint8
        for state in whole._optimizer.state.values()
        for t in state.values()
        if torch.is_tensor(t)
    )
    assert [report.train_loss for report in reports] == pytest.approx(
        [plain.train_epoch().train_loss for _ in range(2)], rel=0.02
    )


def test_adapters_say_nothing_of_a_kernel_that_is_not_needed() -> None:
    """peft imports bitsandbytes wherever it is installed, which would warn at each process's first adapter."""
    command = [sys.executable, "-c", "import alast_tune, peft.tuners.lora"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr == ""


def test_without_the_package_they_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(ConfigError) as refused:
        build_optimizer(TrainConfig(**EIGHT), [torch.nn.Parameter(torch.ones(2))])
    said = str(refused.value)
    assert said.startswith("train.optimizer = adamw8bit: needs the package bitsandbytes (")
    assert said.endswith("pip install 'alast-tune[8bit]'")
