"""What a training step's loss is: labels smoothed, images mixed in pairs.

Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), a draw a batch, as timm's
``Mixup`` in its mode ``batch`` has them but for two things: the draw follows from the seed and the step's number alone,
so that a resumed run has it too, and the two images of a pair are neighbours in the batch, so that they come to the
same rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError

_MIXING = 3
"""The stream of what is drawn here; dropout and augmentation have others."""


@dataclass(frozen=True)
class Mixture:
    """How the two images of each pair are mixed in a step."""

    share: float
    """Of each image's own pixels, and so of its own label, in [0, 1]."""
    box: tuple[float, float, float] | None = None
    """CutMix: the side of the box that comes from the other image and its centre, as shares of the image's side."""


def mixes(train: TrainConfig) -> bool:
    """Whether images are mixed at all."""
    return train.mixup > 0 or train.cutmix > 0


def mixed(train: TrainConfig, step: int, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mix a step's images as is asked for; without that, give them and their labels as they are."""
    if not mixes(train):
        return images_BCHW, labels_B, 1.0
    return mix(draw_mixture(train, step), images_BCHW, labels_B)


def draw_mixture(train: TrainConfig, step: int) -> Mixture:
    """Draw how images are mixed in a step, the same on all ranks: where both may be, half of the steps are CutMix's."""
    draw = np.random.default_rng(np.random.SeedSequence([train.seed, step, _MIXING]))
    cuts = train.cutmix > 0 and (train.mixup == 0 or draw.random() < 0.5)
    alpha = train.cutmix if cuts else train.mixup
    share = float(draw.beta(alpha, alpha))
    if not cuts:
        return Mixture(share)
    return Mixture(share, (float(np.sqrt(1 - share)), float(draw.random()), float(draw.random())))


def mix(mixture: Mixture, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mix the images of each pair; an odd batch's last one stays as it is.

    Args:
        mixture: of the step.
        images_BCHW: stay as they are.
        labels_B: of the images.

    Returns:
        Mixed images; labels (B, 2), each image's own and its partner's; and the share of the own one.
    """
    partner_B = partners(len(images_BCHW), images_BCHW.device)
    labels_B2 = torch.stack([labels_B, labels_B[partner_B]], dim=1)
    if mixture.box is None:
        return torch.lerp(images_BCHW[partner_B], images_BCHW, mixture.share), labels_B2, mixture.share
    height, width = images_BCHW.shape[-2:]
    top, bottom, left, right = box_of(mixture.box, height, width)
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[..., top:bottom, left:right] = images_BCHW[partner_B][..., top:bottom, left:right]
    return mixed_BCHW, labels_B2, 1 - (bottom - top) * (right - left) / (height * width)


def partners(count: int, device: torch.device | None = None) -> Tensor:
    """Pair neighbours: 0 with 1, 2 with 3, ...; (B,), indices."""
    partner_B = torch.arange(count, device=device) ^ 1
    return partner_B.clamp_(max=count - 1)


def box_of(box: tuple[float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Turn a box into pixels as timm's ``rand_bbox`` does: top, bottom, left, right, clipped to the image."""
    side, down, along = box
    edges: list[int] = []
    for length, centre in ((height, int(down * height)), (width, int(along * width))):
        cut = int(length * side)
        edges += [max(centre - cut // 2, 0), min(centre + (cut + 1) // 2, length)]
    return edges[0], edges[1], edges[2], edges[3]


def training_loss(
    logits_BK: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    share: float = 1.0,
    weights_K: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy, of smoothed labels; with weights of classes not the mean, but the weighted sum.

    Args:
        logits_BK: of the model.
        labels: (B,), or of mixed images (B, 2), of which the first ones have the share ``share``.
        smoothing: share of the truth that is spread evenly over all classes.
        share: of an image's own label.
        weights_K: of the classes; None: all weigh the same.
    """
    if labels.dim() == 1:
        reduction = "mean" if weights_K is None else "sum"
        return F.cross_entropy(logits_BK, labels, weights_K, label_smoothing=smoothing, reduction=reduction)
    own, other = (training_loss(logits_BK, each, smoothing, weights_K=weights_K) for each in labels.unbind(1))
    return share * own + (1 - share) * other


def check_pairs(train: TrainConfig, images: int, ranks: int) -> None:
    """Refuse batches that ranks cannot share without parting two images that are mixed.

    Args:
        train: the training loop.
        images: to train on.
        ranks: that share each batch.

    Raises:
        ConfigError: this.
    """
    batch = min(train.batch_size, images)
    if mixes(train) and ranks > 1 and batch % (2 * ranks):
        remedy = (
            f"its {batch} images are mixed in pairs, which {ranks} ranks cannot share; give a multiple of {2 * ranks}"
        )
        raise ConfigError("train.batch_size", train.batch_size, remedy)
