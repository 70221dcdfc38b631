"""Low-rank adapters (Hu et al. 2022) on a timm Vision Transformer, through peft."""

from __future__ import annotations

import copy

from alast_tune.config import Adapters, LoraConfig
from alast_tune.methods.base import Constant, check_blocks
from alast_tune.methods.summary import cannot
from alast_tune.models.backbone import Backbone, blocks_of

_LAYERS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
"""What timm's kinds of block call the layers that adapters stand beside."""


class Lora(Constant):
    """Adapters and classifier train, every other weight is frozen."""

    def __init__(self, config: LoraConfig, model: Backbone) -> None:
        add_adapters(config, model)
        super().__init__(config, model, adapted_blocks(config, model))

    def export(self) -> Backbone:
        """A copy with the adapters merged into the weights."""
        return merge_adapters(self.model)


def adapted_blocks(config: Adapters, model: Backbone) -> list[bool]:
    """Say which blocks get adapters, (L,)."""
    return [config.blocks is None or block in config.blocks for block in range(len(model.blocks))]


def add_adapters(config: Adapters, model: Backbone) -> None:
    """Put adapters beside the blocks' linear layers; they start as no change at all.

    Raises:
        ConfigError: a block that the model does not have.
    """
    import peft  # seconds to import, and only this needs it

    method = "lora" if isinstance(config, LoraConfig) else "alast"
    check_blocks("method.blocks" if method == "lora" else "method.lora.blocks", config.blocks or (), model)
    wanted = {name for target in config.targets for name in _LAYERS[target]}
    found = []
    for index, adapted in enumerate(adapted_blocks(config, model)):
        layers = [f"blocks.{index}.{name}" for name, _ in blocks_of(model)[index].named_modules() if name in wanted]
        found += layers if adapted else []
        if adapted and not layers:
            raise cannot(method, f"has none of the layers {', '.join(config.targets)} in its blocks")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft divides by the rank: any number will do
        target_modules=found,
    )
    peft.inject_adapter_in_model(settings, model)
    for block in blocks_of(model):
        if getattr(getattr(block, "attn", None), "q_bias", None) is not None:
            block.attn.qkv_bias_separate = True  # else timm's EvaAttention takes the weight from beside the adapter


def merge_adapters(model: Backbone) -> Backbone:
    """Copy a model with its adapters added to the weights they stand beside: plain timm again."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            plain.set_submodule(name, layer.get_base_layer())
    return plain
