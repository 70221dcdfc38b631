"""Low-rank adapters (Hu et al. 2022) on a timm Vision Transformer, through peft."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator
from itertools import chain, compress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from safetensors.torch import save as to_safetensors
from torch import nn

from alast_tune.config import MethodConfig, Record, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Method, check_blocks
from alast_tune.methods.parameters import adapters
from alast_tune.models.backbone import Backbone, blocks_of
from alast_tune.storage import atomic_write

_LAYERS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
"""What timm's kinds of block call the layers that adapters stand beside."""

LEARNING_RATE = 1e-3
"""Of low-rank adapters where none is set (the ALaST paper's appendix E)."""


class Adapters(Record):
    """Low-rank adapters (Hu et al. 2022) on every block's linear layers, through peft."""

    rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0, description="the update is scaled by lora_alpha / rank")
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = Field(("qkv", "proj", "fc1", "fc2"), min_length=1)
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="numbers of the blocks that get adapters, from 0; unset: all"
    )

    def layers(self, model: Backbone) -> list[list[str]]:
        """Name the layers that adapters may stand beside, block by block."""
        wanted = {name for target in self.targets for name in _LAYERS[target]}
        return [
            [f"blocks.{index}.{name}" for name, _ in block.named_modules() if name in wanted]
            for index, block in enumerate(blocks_of(model))
        ]

    def why_not(self, model: Backbone) -> str:
        """Blocks without such layers."""
        found = zip(self.layers(model), adapted_blocks(self, model), strict=True)
        missing = any(adapted and not layers for layers, adapted in found)
        return f"has none of the layers {', '.join(self.targets)} in its blocks" if missing else ""


class LoraConfig(Adapters, MethodConfig):
    """Train low-rank adapters and the classifier; every other weight is frozen."""

    name: Literal["lora"] = "lora"
    label = "LoRA"
    foremost = "rank"

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """The adapters' and the classifier's."""
        return adapters(model) + list(model.head.parameters())

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model, which gets adapters."""
        return Lora(self, model)

    def words(self) -> Iterator[tuple[str, str]]:
        """Say the rank."""
        yield "rank", f"r{self.rank}"
        yield "blocks", ""

    def default_learning_rate(self) -> float:
        """Give that of adapters."""
        return LEARNING_RATE


class Lora(Constant):
    """Adapters and classifier train, every other weight is frozen."""

    def __init__(self, config: LoraConfig, model: Backbone) -> None:
        add_adapters(config, model, config.from_block)
        super().__init__(config, model)

    def export(self) -> Backbone:
        """A copy with the adapters merged into the weights."""
        return merge_adapters(self.model)


def adapted_blocks(config: Adapters, model: Backbone, from_block: int = 0) -> list[bool]:
    """Say which blocks get adapters, (L,): those that are named, or all, from a block on."""
    chosen = range(len(model.blocks)) if config.blocks is None else config.blocks
    return [block >= from_block and block in chosen for block in range(len(model.blocks))]


def add_adapters(config: Adapters, model: Backbone, from_block: int) -> None:
    """Put adapters beside the blocks' linear layers, from a block on; they start as no change at all.

    Raises:
        ConfigError: a block that the model does not have or that does not train, or none that gets adapters.
    """
    # peft imports bitsandbytes where it is, which names a kernel that nothing here needs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import peft  # seconds to import, and only this needs it

    field = "method.blocks" if isinstance(config, LoraConfig) else "method.lora.blocks"
    check_blocks(field, config.blocks or (), model, from_block)
    adapted_L = adapted_blocks(config, model, from_block)
    if not any(adapted_L):
        raise ConfigError("method.from_block", from_block, "leaves no block for adapters; give a lower one")
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft divides by the rank: any number will do
        target_modules=list(chain.from_iterable(compress(config.layers(model), adapted_L))),
    )
    peft.inject_adapter_in_model(settings, model)
    for block in blocks_of(model):
        if _has_own_bias(block):
            block.attn.qkv_bias_separate = True  # else timm's EvaAttention takes the weight from beside the adapter


def _has_own_bias(block: Any) -> bool:
    """Whether timm's EvaAttention adds a bias to queries and values that ``attn.qkv`` does not know."""
    return getattr(getattr(block, "attn", None), "q_bias", None) is not None


def merge_adapters(model: Backbone) -> Backbone:
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

    Nothing is written where what is loaded would be another model: for a method without adapters; for one that trains
    more (``train_embeddings``), as that format has no place for class token and positions; and where a fresh timm model
    would pass by an adapter (see :func:`add_adapters`).
    """
    model = method.model
    alone = {name: p for name, p in model.named_parameters() if ".lora_" in name or name.startswith("head.")}
    if not hasattr(model, "peft_config") or {id(p) for p in method.parameters()} != {id(p) for p in alone.values()}:
        return
    if any(_has_own_bias(block) and hasattr(block.attn.qkv, "lora_A") for block in blocks_of(model)):
        return
    named = {f"base_model.model.{name.replace('.default.', '.')}": p for name, p in alone.items()}
    with atomic_write(folder / "adapter_model.safetensors") as scratch:
        scratch.write_bytes(to_safetensors({name: p.detach().cpu().contiguous() for name, p in named.items()}))
    settings: Any = vars(model)["peft_config"]["default"]
    dataclasses.replace(settings, modules_to_save=["head"], inference_mode=True).save_pretrained(str(folder))
