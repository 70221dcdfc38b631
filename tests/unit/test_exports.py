"""What a method leaves can be exported, by torch.export and to ONNX, for batches of any size, and computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from alast_tune import models
from alast_tune.config import ModelConfig, TrialConfig
from alast_tune.train import Run

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "top_k": {"name": "top_k", "blocks": (1,)},
    "lora": {"name": "lora", "rank": 2},
    "apla, some columns": {"name": "apla", "columns": 8},
    "tome": {"name": "tome", "merge": 3},
    "tome on adapters": {"name": "tome", "merge_once_in": 0, "lora": {"rank": 2}},
    "reader": {"name": "reader"},
    "attentive reader": {"name": "reader", "read": "attentive"},
    "bsr": {"name": "bsr", "blocks": (0,)},
    "alast": {"name": "alast", "trainable_blocks": 1},
    "alast on adapters": {"name": "alast", "trainable_blocks": 1, "lora": {"rank": 2}},
}
SIZES = (1, 5)
BATCH = {0: Dim.DYNAMIC}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def trained(
    request: pytest.FixtureRequest,
    tiny_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> nn.Module:
    """The embedded backbone's kind of model, two blocks of it, after an epoch."""
    shape = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(models, "EMBEDDED_SHAPE", shape)
    config = tiny_trial(request.param, epochs=1)
    run = Run(config.model_copy(update={"model": ModelConfig(pretrained=False, image_size=64)}))
    run.train_epoch()
    return run.method.export().eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


def test_torch_export_agrees(trained: nn.Module, tmp_path: Path) -> None:
    program = torch.export.export(trained, (images(2),), dynamic_shapes=(BATCH,))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for count in SIZES:
        with torch.no_grad():
            torch.testing.assert_close(loaded(images(count)), trained(images(count)), atol=1e-5, rtol=0)


def test_onnx_agrees(trained: nn.Module, tmp_path: Path) -> None:
    torch.onnx.export(
        trained, (images(2),), tmp_path / "model.onnx", dynamo=True, verbose=False, dynamic_shapes=(BATCH,)
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    for count in SIZES:
        (logits,) = session.run(None, {name: images(count).numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), trained(images(count)), atol=1e-5, rtol=0)
