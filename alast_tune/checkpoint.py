"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from alast_tune.errors import ConfigError

FILE = "state.pt"


def save(state: dict[str, Any], folder: Path) -> None:
    """Write tensors and plain values to ``folder``, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{FILE}.tmp"
    torch.save(state, scratch)
    scratch.replace(folder / FILE)


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


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights alone as safetensors, which timm's ``checkpoint_path`` loads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, scratch)
    scratch.replace(path)
