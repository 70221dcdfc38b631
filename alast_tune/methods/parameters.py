"""Which parameters may ever train under each method: one table for the methods, the optimizer and the meter."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from alast_tune.config import (
    AlastConfig,
    AplaConfig,
    BsrConfig,
    FullConfig,
    HeadConfig,
    LoraConfig,
    MethodConfig,
    TomeConfig,
    TopKConfig,
)
from alast_tune.models.backbone import Backbone, attention_pool


def trainable_parameters(config: MethodConfig, model: Backbone) -> list[nn.Parameter]:
    """List what may ever train, on a model that its method has prepared (adapters in place)."""
    match config:
        case FullConfig() | TomeConfig():
            return list(model.parameters())
        case HeadConfig():
            return list(model.head.parameters())
        case TopKConfig() | BsrConfig():
            chosen = [model.blocks[block] for block in config.blocks or ()]
            return _outputs(model) + [p for block in chosen for p in block.parameters()]
        case LoraConfig():
            return _adapters(model) + list(model.head.parameters())
        case AplaConfig():
            return _projections(model) + list(model.head.parameters())
        case AlastConfig():
            embeddings = _embeddings(model) if config.train_embeddings else []
            if config.lora is None:
                return _outputs(model) + list(model.blocks.parameters()) + embeddings
            return _adapters(model) + list(model.head.parameters()) + embeddings


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Set ``requires_grad``; a frozen parameter also loses its gradient, so that Adam leaves it alone."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def _outputs(model: Backbone) -> list[nn.Parameter]:
    """What follows the blocks: the final norms, an attention pool, and the classifier."""
    modules = (model.norm, attention_pool(model), model.fc_norm, model.head)
    return [p for module in modules if module is not None for p in module.parameters()]


def _embeddings(model: Backbone) -> list[nn.Parameter]:
    """What comes before the blocks."""
    later = {id(p) for p in (*model.blocks.parameters(), *_outputs(model))}
    return [p for p in model.parameters() if id(p) not in later]


def _adapters(model: Backbone) -> list[nn.Parameter]:
    """peft's low-rank matrices."""
    return [p for name, p in model.blocks.named_parameters() if ".lora_" in name]


def _projections(model: Backbone) -> list[nn.Parameter]:
    """Attention's output projections, of those that were cut the part that trains."""
    return [p for name, p in model.blocks.named_parameters() if ".attn.proj." in name and ".frozen." not in name]
