"""Weights say by their shapes which model they are of."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alast_tune import models
from alast_tune.config import ModelConfig
from alast_tune.errors import ConfigError
from alast_tune.models import EMBEDDED_WEIGHTS, architecture_of, outline


def read_as(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    """Let any checkpoint hold these weights, which need no memory."""
    monkeypatch.setattr(models, "read_checkpoint", lambda path, key=None: state)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_base_patch16_384",
        "deit3_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_base_patch14_reg4_dinov2",
        "vit_base_patch32_clip_224",
        "vit_small_patch32_384",
        "vit_large_patch14_dinov2",
    ],
)
@pytest.mark.parametrize("classes", [0, 7])
def test_an_architecture_is_told_by_its_shapes(name: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = outline(ModelConfig(name=name, num_classes=classes or None))
    state = {key: value for key, value in model.state_dict().items() if classes or not key.startswith("head.")}
    read_as(monkeypatch, state)
    assert architecture_of(Path("weights.pth")) == name


def test_of_models_with_the_same_shapes_the_one_with_the_usual_normalisation_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_as(monkeypatch, outline(ModelConfig(name="vit_small_patch16_224")).state_dict())
    assert architecture_of(Path("weights.pth")) == "deit_small_patch16_224"


def test_the_embedded_backbone_knows_itself() -> None:
    assert architecture_of(EMBEDDED_WEIGHTS) == "embedded"


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),  # by their shapes alone they would be DeiT's
        ("embedded", "embedded"),  # what it exports has this architecture, and arguments besides
        ("vit_small_patch32_224", "vit_small_patch32_224"),
    ],
)
def test_a_folder_says_what_it_holds_where_the_shapes_agree(
    weights: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = "vit_small_patch16_224" if "small" in weights else "vit_tiny_patch16_224"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": named}))
    read_as(monkeypatch, outline(ModelConfig(name=weights)).state_dict())
    assert architecture_of(tmp_path) == name


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{")
    read_as(monkeypatch, outline(ModelConfig()).state_dict())
    with pytest.raises(ConfigError, match=r"its config.json cannot be read \(.*; mend or remove it"):
        architecture_of(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        {"layer.weight": torch.zeros(3, 3)},
        {"patch_embed.proj.weight": torch.zeros(192, 3, 16, 16)},
        {"patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)},
    ],
    ids=["no transformer", "half of one", "of no size that timm has a name for"],
)
def test_weights_of_no_known_model_are_refused(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    read_as(monkeypatch, state)
    with pytest.raises(ConfigError, match=r"^model.checkpoint = w.pth: cannot tell which.*say so: --trial.model.name"):
        architecture_of(Path("w.pth"))
