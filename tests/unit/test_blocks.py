"""What a checkpoint tells about its run's blocks, on real runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alast_tune import blocks
from alast_tune.blocks import report_blocks
from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.models.backbone import blocks_of, embed
from alast_tune.run import Run, load_trial
from tests.unit.tiny import DEPTH, STEPS, TOKENS

TinyTrial = Callable[..., TrialConfig]


def finished(folder: Path, config: TrialConfig) -> Run:
    """Train for an epoch, and save."""
    run = Run(config)
    run.train_epoch()
    run.save(folder)
    return run


def test_steps_come_from_the_ledger_and_magnitudes_from_the_weights(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    run = finished(tmp_path, tiny_trial())
    report = report_blocks(run.config, tmp_path)
    records = list(run.meter.ledger.read())
    assert len(records) == STEPS
    assert report.steps_S.tolist() == list(range(STEPS))
    assert report.budgets_SL.tolist() == [list(record.budgets_L) for record in records]
    assert report.trained_L.sum() == 3
    assert run.report and report.trained_L.tolist() == [count / STEPS for count in run.report.trained]
    assert report.tokens_L.tolist() == np.mean([record.tokens_L for record in records], axis=0).tolist()
    assert report.tokens_L[-1] < report.all_tokens == TOKENS
    images_BCHW = torch.stack([run._splits.validation[index][0] for index in range(16)])
    for model, magnitudes_L in ((load_trial(run.config)[0], report.before_L), (run.model, report.after_L)):
        with torch.no_grad():
            x_BND = embed(model.eval(), images_BCHW)
            for block, magnitude in zip(blocks_of(model), magnitudes_L, strict=True):
                y_BND = block(x_BND)
                update_B, after_B = (y_BND - x_BND)[:, 0].norm(dim=-1), y_BND[:, 0].norm(dim=-1)
                assert magnitude == pytest.approx((update_B / after_B).mean().item(), rel=1e-4)
                x_BND = y_BND
    assert not np.allclose(report.before_L, report.after_L)


def test_attention_is_the_class_tokens_row_of_the_unfused_softmax(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SHOWN", 3)
    run = finished(tmp_path, tiny_trial({"name": "full"}, epochs=1))
    report = report_blocks(run.config, tmp_path)
    assert report.attended == (1, 3, 5)
    assert report.attention_AIhw.shape == (3, 3, 4, 4)
    assert report.images_IHWC.shape == (3, 64, 64, 3)
    # The first of each of the two classes, and then whoever comes first.
    labels = run._splits.validation.labels.tolist()
    chosen = [0, labels.index(1), 1]
    images_BCHW = torch.stack([run._splits.validation[index][0] for index in chosen])
    pixels_BCHW = torch.from_numpy(report.images_IHWC).permute(0, 3, 1, 2) / 255
    assert torch.allclose((pixels_BCHW - 0.5) / 0.5, images_BCHW, atol=1 / 255)
    run.model.eval()
    with torch.no_grad():
        x_BND = embed(run.model, images_BCHW)
        for index, block in enumerate(blocks_of(run.model)):
            if index == 3:
                B, N, D = x_BND.shape
                q, k, _ = block.attn.qkv(block.norm1(x_BND)).reshape(B, N, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
                row_BN = (q @ k.transpose(-2, -1) * block.attn.scale).softmax(-1).mean(1)[:, 0, 1:]
            x_BND = block(x_BND)
    assert np.allclose(report.attention_AIhw[1].reshape(len(row_BN), -1), row_BN.numpy(), atol=1e-6)


def test_blocks_that_never_trained_stay_and_a_method_without_budgets_has_none(
    tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    report = report_blocks(finished(tmp_path, tiny_trial({"name": "head"})).config, tmp_path)
    assert report.before_L.tolist() == report.after_L.tolist()
    assert report.budgets_SL.shape == (0, DEPTH)
    assert report.trained_L.tolist() == [0] * DEPTH


@pytest.mark.parametrize(
    "method", [{"name": "lora"}, {"name": "top_k", "count": 2, "probe_steps": 1}], ids=lambda method: method["name"]
)
def test_adapters_and_exploration_are_looked_into_as_well(
    method: dict[str, Any], tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    report = report_blocks(finished(tmp_path, tiny_trial(method)).config, tmp_path)
    assert len(report.steps_S) == STEPS  # without the probes of exploration
    assert report.trained_L.sum() == (2 if method["name"] == "top_k" else DEPTH)
    assert not np.allclose(report.before_L, report.after_L, rtol=1e-4)


def test_long_runs_are_averaged_over_stretches(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tmp_path, tiny_trial())
    monkeypatch.setattr(blocks, "COLUMNS", 2)
    report = report_blocks(run.config, tmp_path)
    assert report.steps_S.tolist() == [0.5, 2.5]
    budgets = np.array([record.budgets_L for record in run.meter.ledger.read()])
    assert np.allclose(report.budgets_SL, [budgets[:2].mean(axis=0), budgets[2:].mean(axis=0)])


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        report_blocks(TrialConfig(), tmp_path)
