"""Which architecture a checkpoint belongs to: by what a folder says of it, else by the shapes of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from timm.models import eva, vision_transformer
from torch import Size, Tensor

from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone

SIZES = {192: "tiny", 384: "small", 512: "medium", 768: "base", 1024: "large", 1280: "huge"}
"""What timm calls a model by its width."""

_FREE = re.compile(r"(head|fc_norm|reader)\.|pos_embed$")
"""Weights whose shapes depend on the classes or on the image size."""


def candidates(state: dict[str, Tensor], modules: tuple[str, ...]) -> list[str]:
    """Name the architectures that may have such weights by width and patch size; the likeliest first.

    Of equal ones those come first whose images are of the size that the position grid was trained at, then DeiT's,
    whose normalisation most checkpoints share, then the shortest name.

    Args:
        state: of a checkpoint.
        modules: of timm, in which to look.
    """
    kernel = next((state[name] for name in ("patch_embed.proj.weight", "visual.conv1.weight") if name in state), None)
    if kernel is None or kernel.ndim != 4:
        return []
    width, patch = kernel.shape[0], kernel.shape[-1]
    known = [name for module in modules for name in timm.list_models(module=module)]
    fitting = [name for name in known if f"_{SIZES.get(width)}_patch{patch}_" in name]
    positions = next(
        (value for name, value in state.items() if name.endswith(("pos_embed", "positional_embedding"))), None
    )
    side = 0 if positions is None else int((positions.numel() // width) ** 0.5) * patch
    return sorted(fitting, key=lambda name: (not name.endswith(f"_{side}"), not name.startswith("deit_"), len(name)))


def has_shapes_of(model: Backbone, state: dict[str, Tensor]) -> bool:
    """Whether weights are a model's, by all names and shapes but those of the classifier and the position grid.

    Args:
        model: may be on the meta device.
        state: of a checkpoint, in the names of its family.
    """
    try:
        found = in_timms_names(dict(state), model)
    except Exception:  # the conversions assume a family of models and fail in many ways on others
        return False
    return dict(_shapes(found)) == dict(_shapes(model.state_dict()))


def in_timms_names(state: dict[str, Tensor], model: Backbone, **resizing: Any) -> dict[str, Tensor]:
    """Convert weights to a model's names and image size, as timm does for its own downloads.

    Args:
        state: of a checkpoint, in the names of its family.
        model: may be on the meta device.
        resizing: how position grids are resized, where not as usual.
    """
    if isinstance(model, eva.Eva):
        return eva.checkpoint_filter_fn(state, model, **resizing)
    return vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True, **resizing)


def _shapes(state: dict[str, Tensor]) -> Iterator[tuple[str, Size]]:
    return ((name, value.shape) for name, value in state.items() if not _FREE.search(name))


def named_by(path: Path) -> str | None:
    """Name the architecture that stands in a folder's ``config.json``, as timm and the hub write it."""
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text()).get("architecture")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and timm.is_model(found) else None


def unknown(path: Path, state: dict[str, Tensor]) -> ConfigError:
    """Make the error of a checkpoint whose architecture nobody knows."""
    kernel = state.get("patch_embed.proj.weight")
    shape = "" if kernel is None else f" (width {kernel.shape[0]}, patches of {kernel.shape[-1]} pixels)"
    remedy = f"cannot tell which timm model these weights belong to{shape}; say so: --trial.model.name NAME"
    return ConfigError("model.checkpoint", path, remedy)
