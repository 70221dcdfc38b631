"""Groups of a model's parameters, of which methods say that they may train."""

from __future__ import annotations

from collections.abc import Iterable

from timm.models.vision_transformer import VisionTransformer
from torch import nn


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Set ``requires_grad``; a frozen parameter also loses its gradient, so that Adam leaves it alone."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def outputs(model: VisionTransformer) -> list[nn.Parameter]:
    """What follows the blocks: the final norms and the classifier."""
    return [p for module in (model.norm, model.fc_norm, model.head) for p in module.parameters()]


def embeddings(model: VisionTransformer) -> list[nn.Parameter]:
    """What comes before the blocks."""
    later = {id(p) for p in (*model.blocks.parameters(), *outputs(model))}
    return [p for p in model.parameters() if id(p) not in later]


def adapters(model: VisionTransformer) -> list[nn.Parameter]:
    """peft's low-rank matrices."""
    return [p for name, p in model.blocks.named_parameters() if ".lora_" in name]
