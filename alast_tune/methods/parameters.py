"""Groups of a model's parameters, of which methods say that they may train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters
from torch import nn

from alast_tune.config import MethodConfig
from alast_tune.models.backbone import Backbone, attention_pool, blocks_of


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Set ``requires_grad``; a frozen parameter also loses its gradient, so that Adam leaves it alone."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def parameters_to_train(config: MethodConfig, model: Backbone) -> list[nn.Parameter]:
    """List what may ever train, the optimizer's and the meter's: what the method says, if it is not below its block."""
    below = embeddings(model) if config.from_block else []
    below += [p for block in blocks_of(model)[: config.from_block] for p in block.parameters()]
    frozen = {id(p) for p in below}
    return [p for p in config.trainable_parameters(model) if id(p) not in frozen]


def outputs(model: Backbone) -> list[nn.Parameter]:
    """What follows the blocks: the final norms, an attention pool, and what classifies."""
    modules: list[Any] = [model.norm, attention_pool(model), model.fc_norm, model.head, getattr(model, "reader", None)]
    return [p for module in modules if module is not None for p in module.parameters()]


def embeddings(model: Backbone) -> list[nn.Parameter]:
    """What comes before the blocks."""
    later = {id(p) for p in (*model.blocks.parameters(), *outputs(model))}
    return [p for p in model.parameters() if id(p) not in later]


def adapters(model: Backbone) -> list[nn.Parameter]:
    """peft's low-rank matrices."""
    return [p for name, p in model.blocks.named_parameters() if ".lora_" in name]


def layer_numbers(model: Backbone) -> dict[str, int]:
    """Number the layers of all parameters as timm does, by name: 0 the embedding, then the blocks, then the classifier.

    The final norm belongs to the last block, and adapters to the block that they are in. Learned rotary frequencies
    are positions of all blocks and belong to the embedding, where timm's matcher misses them.
    """
    numbers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    before = {id(p) for p in embeddings(model)}
    return {name: 0 if id(p) in before else numbers[name] for name, p in model.named_parameters()}


def undecayed(model: Backbone) -> set[int]:
    """Give the ids of the parameters that weight decay spares, as timm does.

    That is biases, norms and LayerScale (1 dimension; the reader's norm is one for each summary), and what the model
    names: class token, registers, positions.
    """
    named = model.no_weight_decay() | {"reg_token", "reader.scale", "reader.shift"}
    return {id(p) for name, p in model.named_parameters() if p.dim() <= 1 or name.endswith(".bias") or name in named}
