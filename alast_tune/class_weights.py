"""A loss in which rare classes weigh as much as others, whatever the parts in which it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from alast_tune.losses import training_loss
from alast_tune.parallel import total_over_ranks


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weigh each class by images / (classes with images * its images), as scikit-learn's "balanced".

    Args:
        labels: (n,) of the training images.
        classes: K, how many there are.

    Returns:
        (K,) float32; 0 for a class without images.
    """
    images_K = torch.bincount(labels, minlength=classes).double()
    weights_K = len(labels) / ((images_K > 0).sum() * images_K)
    return torch.where(images_K > 0, weights_K, 0.0).float()


def weight_of_batch(labels_B: Tensor, weights_K: Tensor, images: int) -> Tensor:
    """Add up the weights of a batch's images over all ranks, on the device: no host waits for it with one rank.

    Args:
        labels_B: of this rank's images.
        weights_K: of the classes.
        images: of this rank.
    """
    return total_over_ranks(weights_K[labels_B].sum(), images)[0]


def part_of_loss(
    logits_BK: Tensor,
    labels: Tensor,
    whole: Tensor | int,
    weights_K: Tensor | None = None,
    smoothing: float = 0.0,
    share: float = 1.0,
) -> Tensor:
    """Compute what a part of a batch adds to the batch's mean cross-entropy: all parts make up the mean.

    Of images that are mixed in pairs each is the other of one pair: their other labels weigh as much as their own.

    Args:
        logits_BK: of the part.
        labels: of the part, (B,) or mixed (B, 2).
        whole: images of the batch, or with weights, their weights added up, over all ranks.
        weights_K: of the classes; None: all weigh the same.
        smoothing: as :func:`~alast_tune.losses.training_loss` takes it.
        share: as there.
    """
    if weights_K is None:
        return training_loss(logits_BK, labels, smoothing, share) * (len(labels) / whole)
    return training_loss(logits_BK, labels, smoothing, share, weights_K) / whole
