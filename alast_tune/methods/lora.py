"""Low-rank adapters (Hu et al. 2022) on a timm Vision Transformer, through peft."""

from __future__ import annotations

import copy

from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import Adapters, LoraConfig
from alast_tune.methods.base import Constant, check_blocks


class Lora(Constant):
    """Adapters and classifier train, every other weight is frozen."""

    def __init__(self, config: LoraConfig, model: VisionTransformer) -> None:
        add_adapters(config, model)
        super().__init__(config, model, adapted_blocks(config, model))

    def export(self) -> VisionTransformer:
        """A copy with the adapters merged into the weights."""
        return merge_adapters(self.model)


def adapted_blocks(config: Adapters, model: VisionTransformer) -> list[bool]:
    """Say which blocks get adapters, (L,)."""
    return [config.blocks is None or block in config.blocks for block in range(len(model.blocks))]


def add_adapters(config: Adapters, model: VisionTransformer) -> None:
    """Put adapters beside the blocks' linear layers; they start as no change at all.

    Raises:
        ConfigError: a block that the model does not have.
    """
    import peft  # seconds to import, and only this needs it

    check_blocks(
        "method.blocks" if isinstance(config, LoraConfig) else "method.lora.blocks", config.blocks or (), model
    )
    blocks = "|".join(str(block) for block, adapted in enumerate(adapted_blocks(config, model)) if adapted)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft divides by the rank: any number will do
        target_modules=rf"blocks\.({blocks})\.(attn|mlp)\.({'|'.join(config.targets)})",
    )
    peft.inject_adapter_in_model(settings, model)


def merge_adapters(model: VisionTransformer) -> VisionTransformer:
    """Copy a model with its adapters added to the weights they stand beside: plain timm again."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            plain.set_submodule(name, layer.get_base_layer())
    return plain
