"""Low-rank adapters (Hu et al. 2022) on a timm Vision Transformer, through peft."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import Adapters, LoraConfig
from alast_tune.methods.base import Constant, Method, check_blocks
from alast_tune.storage import atomic_write


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


def save_adapters(method: Method, folder: Path) -> None:
    """Write adapters and classifier in peft's own format: ``peft.PeftModel.from_pretrained(model, folder)`` loads them.

    Nothing is written for a method without adapters, nor for one that trains more (``train_embeddings``): that format
    has no place for class token and positions, and without them the adapters would be another model's.
    """
    model = method.model
    alone = {name: p for name, p in model.named_parameters() if ".lora_" in name or name.startswith("head.")}
    if not hasattr(model, "peft_config") or {id(p) for p in method.parameters()} != {id(p) for p in alone.values()}:
        return
    named = {f"base_model.model.{name.replace('.default.', '.')}": p for name, p in alone.items()}
    with atomic_write(folder / "adapter_model.safetensors") as scratch:
        scratch.write_bytes(to_safetensors({name: p.detach().cpu().contiguous() for name, p in named.items()}))
    settings: Any = vars(model)["peft_config"]["default"]
    dataclasses.replace(settings, modules_to_save=["head"], inference_mode=True).save_pretrained(str(folder))
