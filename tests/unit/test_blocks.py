"""What a checkpoint tells about its run's blocks, on real runs of the embedded backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alast_tune import blocks
from alast_tune.blocks import report_blocks
from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import blocks_of, embed
from alast_tune.train import Run


def finished(folder: Path, method: dict[str, Any]) -> Run:
    """Train for two steps, and save."""
    config = TrialConfig.model_validate(
        {
            "data": {"dataset": "digits", "train_images": 64},
            "method": method,
            "train": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "device": "cpu"},
        }
    )
    run = Run(config)
    run.train_epoch()
    run.save(folder)
    return run


def test_steps_come_from_the_ledger_and_magnitudes_from_the_weights(tmp_path: Path) -> None:
    run = finished(tmp_path, {"name": "alast", "reading": "fast", "trainable_blocks": 3, "target_budget": 0.3})
    report = report_blocks(run.config, tmp_path)
    records = run.meter.ledger.records
    assert len(records) == 2
    assert report.steps_S.tolist() == [0, 1]
    assert report.budgets_SL.tolist() == [list(record.budgets) for record in records]
    assert report.trained_L.sum() == 3
    assert report.trained_L.tolist() == [count / 2 for count in run.meter.ledger.trained()]
    assert report.tokens_L.tolist() == np.mean([record.plan.tokens_L for record in records], axis=0).tolist()
    assert report.tokens_L[-1] < report.all_tokens == 65
    assert not np.allclose(report.before_L, report.after_L)
    assert ((report.before_L > 0) & (report.before_L < 2)).all()


def test_attention_is_the_class_tokens_row_of_the_unfused_softmax(tmp_path: Path) -> None:
    run = finished(tmp_path, {"name": "full"})
    report = report_blocks(run.config, tmp_path)
    assert report.attended == (2, 6, 10)
    assert report.attention_AIhw.shape == (3, blocks.SHOWN, 8, 8)
    assert report.images_IHWC.shape == (blocks.SHOWN, 32, 32, 3)
    pixels_BCHW = torch.from_numpy(report.images_IHWC).permute(0, 3, 1, 2) / 255
    run.model.eval()
    with torch.no_grad():
        x_BND = embed(run.model, (pixels_BCHW - 0.5) / 0.5)
        for index, block in enumerate(blocks_of(run.model)):
            if index == 6:
                B, N, D = x_BND.shape
                q, k, _ = block.attn.qkv(block.norm1(x_BND)).reshape(B, N, 3, 5, D // 5).permute(2, 0, 3, 1, 4)
                row_BN = (q @ k.transpose(-2, -1) * block.attn.scale).softmax(-1).mean(1)[:, 0, 1:]
            x_BND = block(x_BND)
    # Pixels were rounded to a byte on their way.
    assert np.allclose(report.attention_AIhw[1].reshape(len(row_BN), -1), row_BN.numpy(), atol=0.01)


def test_blocks_that_never_trained_stay_and_a_method_without_budgets_has_none(tmp_path: Path) -> None:
    report = report_blocks(finished(tmp_path, {"name": "head"}).config, tmp_path)
    assert report.before_L.tolist() == report.after_L.tolist()
    assert report.budgets_SL.shape == (0, 12)
    assert report.trained_L.tolist() == [0] * 12


@pytest.mark.parametrize(
    "method",
    [
        {"name": "alast", "reading": "fast", "lora": {}},
        {"name": "apla", "columns": 8},
        {"name": "bsr", "blocks": [3, 4, 5]},
        {"name": "top_k", "count": 2, "probe_steps": 1},
    ],
    ids=lambda method: method["name"],
)
def test_adapters_cut_layers_and_exploration_are_looked_into_as_well(method: dict[str, Any], tmp_path: Path) -> None:
    report = report_blocks(finished(tmp_path, method).config, tmp_path)
    assert len(report.steps_S) == 2  # without the probes of exploration
    assert not np.allclose(report.before_L, report.after_L, rtol=1e-4)


def test_long_runs_are_averaged_over_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path, {"name": "alast", "reading": "fast"})
    monkeypatch.setattr(blocks, "COLUMNS", 1)
    report = report_blocks(run.config, tmp_path)
    assert report.steps_S.tolist() == [0.5]
    assert np.allclose(report.budgets_SL[0], np.mean([record.budgets for record in run.meter.ledger.records], axis=0))


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        report_blocks(TrialConfig(), tmp_path)
