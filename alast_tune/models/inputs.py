"""What images a model takes: their size, how they come to it, and how they are normalised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone
from alast_tune.models.recognition import pretrained_cfg, read_card

_FIELDS = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
"""What timm's configs say of a model's images, beside their size."""
_OURS = re.compile(r"((dynamic|strict)_)?img_(size|pad)|in_chans|num_classes|(\w+_)?drop_rate|drop_path_rate|\w+_init")
"""Arguments of timm's models that our own settings give, or that say nothing of weights that are there."""


@dataclass(frozen=True)
class Resizing:
    """How a picture of any shape comes to a model's size, in timm's words: squashed, unless said otherwise."""

    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: str = "squash"


@dataclass(frozen=True)
class InputSpec:
    """What images a model takes: square, three channels, normalised."""

    image_size: int
    """Side, pixels."""
    mean: tuple[float, ...]
    """Of each channel, pixels being in [0, 1]."""
    std: tuple[float, ...]
    resizing: Resizing = Resizing()


def input_spec(model: Backbone) -> InputSpec:
    """Say which images a model from :func:`create_model` takes, resized as its own config says."""
    size = model.patch_embed.img_size
    assert size is not None
    resolved = resolve_data_config({"img_size": size[0]}, pretrained_cfg(model))
    return InputSpec(
        image_size=size[0],
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        resizing=Resizing(**{field.name: resolved[field.name] for field in fields(Resizing)}),
    )


def inputs_of(path: Path) -> dict[str, Any]:
    """Get what a checkpoint's ``config.json`` says of images; None, timm's default, of what it leaves out.

    Args:
        path: of a checkpoint.

    Returns:
        As timm's ``pretrained_cfg``; empty if there is no such file, or nothing of images in it.

    Raises:
        ConfigError: the file cannot be read, or normalises by something else than three numbers.
    """
    card = read_card(path)
    cfg = card.get("pretrained_cfg") or card  # older ones have it all at the top
    for name, least in (("mean", 0.0), ("std", 1e-3)):
        if cfg.get(name) is not None and not _are_of_channels(cfg[name], least):
            remedy = f"its config.json has {name} = {cfg[name]}, not three numbers from {least:g} to 1; mend it"
            raise ConfigError("model.checkpoint", path, remedy)
    return {name: cfg.get(name) for name in _FIELDS} if any(name in cfg for name in _FIELDS) else {}


def size_of(path: Path) -> int | None:
    """Get the image size of a checkpoint, pixels, by its ``config.json``; None if there is none, or it does not say.

    Raises:
        ConfigError: the file cannot be read, or has images that are not square.
    """
    card = read_card(path)
    cfg = card.get("pretrained_cfg") or card
    size = (card.get("model_args") or {}).get("img_size") or (cfg.get("input_size") or [None])[1:] or None
    side = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    if not isinstance(side, int | None):
        raise ConfigError("model.checkpoint", path, f"its config.json has images of {size}; set model.image_size")
    return side


def arguments_of(path: Path) -> dict[str, Any]:
    """Get what timm builds a checkpoint's model with, by its ``config.json``, but for what is said here otherwise.

    Raises:
        ConfigError: the file cannot be read.
    """
    given = read_card(path).get("model_args") or {}
    return {name: value for name, value in given.items() if value is not None and not _OURS.fullmatch(name)}


def _are_of_channels(values: Any, least: float) -> bool:
    """Whether these are numbers of three channels, pixels being in [0, 1]."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and least <= value <= 1.0 for value in values)
    )


@lru_cache(maxsize=8)
def resizer(spec: InputSpec) -> Callable[[Image.Image], Image.Image]:
    """Make timm's transform for evaluation, up to the image of a model's size that is then normalised."""
    whole = create_transform(spec.image_size, mean=spec.mean, use_prefetcher=True, **asdict(spec.resizing))
    resize: Callable[[Image.Image], Image.Image] = Compose(whole.transforms[:-1])
    return resize
