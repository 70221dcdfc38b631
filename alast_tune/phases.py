"""How training changes from epoch to epoch: the share of tokens that enter, and the size of the images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone, why_one_size


@dataclass(frozen=True)
class Phase:
    """What the steps of an epoch get of each image; epochs that get the same are one phase."""

    image_size: int | None = None
    """Side of the images, pixels; unset: the model's own."""
    token_keep: float = 1.0
    """Share of the patch tokens that enter the first block."""

    def resize(self, images_BCHW: Tensor) -> Tensor:
        """Shrink images to the phase's size."""
        if self.image_size is None:
            return images_BCHW
        return F.interpolate(images_BCHW, (self.image_size, self.image_size), mode="bilinear", antialias=True)


def phases_of(train: TrainConfig, model: Backbone) -> tuple[Phase, ...]:
    """Give the phase of each epoch.

    Raises:
        ConfigError: images that are to grow to the model's size, and do not, or on a model of one size.
    """
    assert model.patch_embed.img_size is not None
    own, patch = int(model.patch_embed.img_size[0]), int(model.patch_embed.patch_size[0])
    first, name = train.image_size_first, "train.image_size_first"
    if first is not None and first >= own:
        raise ConfigError(name, first, f"images grow from it to the model's own size, {own}; give less")
    if first is not None and first < patch:
        raise ConfigError(name, first, f"is less than a patch; give {patch} pixels at least")
    if first is not None and (why := why_one_size(model)):
        raise ConfigError(name, first, f"the model {why}; leave it out")
    phases = []
    for epoch in range(train.epochs):
        side = round(_between(own if first is None else first, own, epoch, train.epochs) / patch) * patch
        share = _between(train.token_keep, train.token_keep_last or train.token_keep, epoch, train.epochs)
        phases.append(Phase(side if first is not None and side < own else None, share))
    return tuple(phases)


def _between(first: float, last: float, epoch: int, epochs: int) -> float:
    """Go evenly from the first epoch's value to the last one's."""
    if first == last:
        return first
    done = epoch / (epochs - 1)
    return first * (1 - done) + last * done
