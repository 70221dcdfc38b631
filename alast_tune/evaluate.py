"""What a model answers over batches, every token of every image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.data import Batch, prepare
from alast_tune.models.backbone import Backbone, predict
from alast_tune.parallel import total_over_ranks
from alast_tune.scores import TOP, Evaluation


@torch.no_grad()
def evaluate(
    model: Backbone,
    batches: Iterable[tuple[Tensor | Batch, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None = None,
    start: int = 0,
) -> Evaluation:
    """Count right and wrong answers by class, over the images of all ranks; the host waits once, at the end.

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
    classes = int(model.num_classes)
    confusion = torch.zeros(classes**2, dtype=torch.int64, device=device)
    in_top = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), device=device)
    for images, labels in batches:
        images, labels = prepare(images, device), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = predict(model, images, start).float()
        # Not torch.bincount, for which the host would wait.
        confusion.index_add_(0, labels * classes + logits.argmax(dim=1), torch.ones_like(labels))
        if classes > TOP:
            in_top += (logits.topk(TOP, dim=1).indices == labels[:, None]).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
    model.train(was_training)
    sums, _ = total_over_ranks(torch.cat([confusion.double(), torch.stack([in_top.double(), loss.double()])]), 0)
    *counts, found, summed_loss = sums.tolist()
    images_seen = sum(counts)
    confusion_KK = np.array(counts, dtype=np.int64).reshape(classes, classes)
    return Evaluation(confusion_KK, summed_loss / images_seen, found / images_seen if classes > TOP else None)
