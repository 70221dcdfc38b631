"""Which architecture a checkpoint belongs to: by what a folder says of it, else by the shapes of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import timm
from timm.models import eva, vision_transformer
from torch import Size, Tensor

from alast_tune.config import ModelConfig
from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone
from alast_tune.models.checkpoints import FILES

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
    kernel = _patch_kernel(state)
    if kernel is None:
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


def in_timms_names(state: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """Convert weights to a model's names and image size, as timm does for its own downloads.

    Args:
        state: of a checkpoint, in the names of its family.
        model: may be on the meta device.

    Raises:
        ValueError: patches of another size. timm resizes them, which only FlexiViT's weights are made for.
    """
    flexible = (architecture_name(model) or "").startswith("flexivit")
    kernel, side = _patch_kernel(state), model.patch_embed.patch_size[0]
    if kernel is not None and kernel.shape[-1] != side and not flexible:
        raise ValueError(f"patches of {kernel.shape[-1]} pixels instead of {side}")
    if isinstance(model, eva.Eva):
        return eva.checkpoint_filter_fn(state, model)
    # FlexiViT's grids are resized differently from everybody else's, as timm does for its own downloads.
    resizing: dict[str, Any] = {"interpolation": "bilinear", "antialias": False} if flexible else {}
    return vision_transformer.checkpoint_filter_fn(state, model, adapt_layer_scale=True, **resizing)


def _patch_kernel(state: dict[str, Tensor]) -> Tensor | None:
    """Find what embeds patches, (D, 3, P, P), whatever it is called: nothing else in a checkpoint sees colours."""
    return next((value for value in state.values() if value.ndim == 4 and value.shape[1] == 3), None)


def _shapes(state: dict[str, Tensor]) -> Iterator[tuple[str, Size]]:
    return ((name, value.shape) for name, value in state.items() if not _FREE.search(name))


def named_by(path: Path) -> str | None:
    """Name the architecture that stands in a checkpoint's ``config.json``, as timm and the hub write it."""
    found = read_card(path).get("architecture")
    return found if isinstance(found, str) and timm.is_model(found) else None


def read_card(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint, as timm and the hub write it; empty if there is none.

    Args:
        path: a folder, or a file: beside one of the name that timm and the hub give to weights, it is of these.

    Raises:
        ConfigError: it cannot be read.
    """
    folder = path.parent if path.name in FILES and not path.is_dir() else path
    file = folder / "config.json"
    try:
        card = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        remedy = f"its {file.name} cannot be read ({error}); mend or remove it"
        raise ConfigError("model.checkpoint", path, remedy) from error
    return card if isinstance(card, dict) else {}


def check_labels(config: ModelConfig, classes: Sequence[str]) -> None:
    """Refuse a classifier that is kept where the ``config.json`` beside it names other classes, or in another order.

    Raises:
        ConfigError: they differ from those of the data.
    """
    card = read_card(config.checkpoint) if config.keep_classifier and config.checkpoint is not None else {}
    given = card.get("label_names") or []
    names = [str(name) for name in (given.values() if isinstance(given, dict) else given)]
    for index, (theirs, ours) in enumerate(zip_longest(names, classes, fillvalue="nothing") if names else ()):
        if theirs != ours:
            remedy = f"class {index} is {theirs} by the weights' config.json and {ours} in the data"
            raise ConfigError("model.keep_classifier", True, f"{remedy}; make them agree, or leave it out")


def architecture_name(model: Backbone) -> str | None:
    """Give timm's name of a model's architecture; None of the embedded one, which timm does not know."""
    name: str | None = pretrained_cfg(model).get("architecture")
    return name


def pretrained_cfg(model: Backbone) -> dict[str, Any]:
    """Get what timm hangs onto its models, under a name that torch's typing does not know; made if missing."""
    cfg: dict[str, Any] = model.__dict__.setdefault("pretrained_cfg", {})
    return cfg


def unknown(path: Path, state: dict[str, Tensor]) -> ConfigError:
    """Make the error of a checkpoint whose architecture nobody knows."""
    kernel = _patch_kernel(state)
    shape = "" if kernel is None else f" (width {kernel.shape[0]}, patches of {kernel.shape[-1]} pixels)"
    remedy = f"cannot tell which timm model these weights belong to{shape}; say so: --trial.model.name NAME"
    return ConfigError("model.checkpoint", path, remedy)
