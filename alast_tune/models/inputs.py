"""What images a model takes: their size, how they come to it, and how they are normalised."""

from __future__ import annotations

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
