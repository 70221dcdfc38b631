"""Accuracy and loss over batches, every token of every image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.data import Batch, prepare
from alast_tune.models.backbone import Backbone, predict
from alast_tune.parallel import total_over_ranks


@torch.no_grad()
def evaluate(
    model: Backbone,
    batches: Iterable[tuple[Tensor | Batch, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None = None,
    start: int = 0,
) -> tuple[float, float]:
    """Share of correct answers in [0, 1] and mean cross-entropy.

    The model is left in the mode, training or not, in which it came; no method state moves.

    Args:
        model: to evaluate.
        batches: images, prepared or not, or what enters block ``start``, and labels.
        device: to compute on.
        dtype: of autocast; None for none.
        start: first block that runs.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros((), device=device)
    loss = torch.zeros((), device=device)
    count = 0
    for images, labels in batches:
        images, labels = prepare(images, device), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = predict(model, images, start).float()
        right += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        count += len(labels)
    model.train(was_training)
    sums, count = total_over_ranks(torch.stack([right, loss]), count)
    return sums[0].item() / count, sums[1].item() / count
