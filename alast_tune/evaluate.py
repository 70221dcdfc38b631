"""Accuracy and loss over a loader, every token of every image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype | None = None
) -> tuple[float, float]:
    """Share of correct answers in [0, 1] and mean cross-entropy; ``dtype`` is that of autocast, None for none.

    The model is left in the mode, training or not, in which it came; no method state moves.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros((), device=device)
    loss = torch.zeros((), device=device)
    count = 0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(images).float()
        right += (logits.argmax(dim=1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        count += len(labels)
    model.train(was_training)
    return right.item() / count, loss.item() / count
