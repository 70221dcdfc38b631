"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from alast_tune.config import ModelConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Method
from alast_tune.methods.lora import save_adapters
from alast_tune.models import InputSpec, timm_arguments
from alast_tune.results import EpochReport, Measurements
from alast_tune.storage import atomic_write

FILE = "state.pt"
BEST = "model.safetensors"
"""Weights of the epoch with the highest validation accuracy, by the name that timm looks for."""
LAST = "last.safetensors"
"""Weights of the last epoch."""
ADAPTER = "adapter"
"""Folder of the adapters alone, if there are any, of the same epoch as ``BEST``, as peft loads them."""
MODEL_CARD = "config.json"
"""What timm reads beside ``model.safetensors``: architecture, input, class names."""


def save(state: dict[str, Any], folder: Path) -> None:
    """Write tensors and plain values to ``folder``, atomically."""
    with atomic_write(folder / FILE) as scratch:
        torch.save(state, scratch)


def load(folder: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote, onto the CPU, with ``weights_only``.

    Raises:
        ConfigError: nothing there, or not readable as a checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError("checkpoint", folder, f"has no {FILE}; give the folder of a checkpoint") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files
        raise ConfigError("checkpoint", folder, f"cannot be read ({type(error).__name__}); delete it") from None
    return state


def read_report(values: dict[str, Any]) -> EpochReport:
    """Read a report out of a checkpoint."""
    return EpochReport(**{**values, "cost": Measurements(**values["cost"])})


def save_model_card(config: ModelConfig, spec: InputSpec, classes: Sequence[str], folder: Path) -> None:
    """Write timm's ``config.json``: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` then gives the model.

    Args:
        config: of the model, adapters merged.
        spec: of its images, and how evaluation has resized them.
        classes: names, in the order of the labels.
        folder: holds ``model.safetensors``.
    """
    architecture, arguments = timm_arguments(config, spec.image_size)
    card = {
        "architecture": architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": len(classes),
            "input_size": [3, spec.image_size, spec.image_size],
            "fixed_input_size": True,
            **asdict(spec.resizing),
            "mean": list(spec.mean),
            "std": list(spec.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_CARD).write_text(json.dumps(card, indent=2) + "\n")


def save_model(method: Method, folder: Path) -> None:
    """Write what a method has trained: the plain model's weights, and its adapters alone."""
    save_weights(method.export(), folder / BEST)
    save_adapters(method, folder / ADAPTER)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights alone as safetensors, which timm's ``checkpoint_path`` loads."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(path) as scratch:
        scratch.write_bytes(to_safetensors(tensors))  # its own writer makes files that nobody else may read
