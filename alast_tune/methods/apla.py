"""APLA (Sorkhei et al. 2025): train attention's output projections alone, or a random part of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Method, check_blocks
from alast_tune.models.backbone import Backbone, blocks_of


class AplaConfig(MethodConfig):
    """APLA (Sorkhei et al. 2025): train attention's output projections and the classifier."""

    name: Literal["apla"] = "apla"
    label = "APLA"
    foremost = "columns"

    columns: int | None = Field(
        None, ge=1, description="train so many of each projection's outputs, drawn once; unset: all"
    )
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="numbers of the blocks whose projections train, from 0; unset: all"
    )

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """Attention's output projections, of those that were cut the part that trains, and the classifier."""
        named = [item for block in self.chosen(model) for item in block.attn.proj.named_parameters()]
        return [p for name, p in named if not name.startswith("frozen.")] + list(model.head.parameters())

    def chosen(self, model: Backbone) -> list[Any]:
        """List the blocks whose projections train: those that are named, or all, from a block on."""
        chosen = range(len(model.blocks)) if self.blocks is None else self.blocks
        return [block for index, block in enumerate(blocks_of(model)) if index >= self.from_block and index in chosen]

    def why_not(self, model: Backbone) -> str:
        """A block without such a projection."""
        blocks = blocks_of(model)
        known = all(hasattr(getattr(block, "attn", None), "proj") for block in blocks)
        return "" if known else f"is built of {type(blocks[0]).__name__}, whose attention has no projection of its own"

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model, whose projections may be cut in two."""
        return Apla(self, model, train.seed)

    def words(self) -> Iterator[tuple[str, str]]:
        """Say how many columns and which blocks, if not all."""
        yield "columns", "" if self.columns is None else f"{self.columns} columns"
        yield "blocks", "" if self.blocks is None else f"blocks {','.join(map(str, self.blocks))}"


class PartialLinear(nn.Module):
    """A linear layer of which some outputs train: rows of its weight, columns of the matrix that x meets.

    The layer is cut in two, so that the frozen part costs neither gradient nor moments; it computes what
    the whole did.

    Args:
        whole: the layer, taken apart.
        trained: the outputs that train, (r,), indices.
    """

    def __init__(self, whole: nn.Linear, trained: Tensor) -> None:
        super().__init__()
        mask = torch.zeros(whole.out_features, dtype=torch.bool)
        mask[trained] = True
        order = torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]])
        self.trained = _rows(whole, order[: len(trained)])
        self.frozen = _rows(whole, order[len(trained) :])
        self.back: Tensor
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor) -> Tensor:
        """Both parts, put back into the whole's order."""
        return torch.cat([self.trained(x), self.frozen(x)], dim=-1).index_select(-1, self.back)

    def as_linear(self) -> nn.Linear:
        """Put the layer together again."""
        weight = torch.cat([self.trained.weight, self.frozen.weight])[self.back]
        layer = nn.Linear(weight.shape[1], weight.shape[0], self.trained.bias is not None, weight.device, weight.dtype)
        layer.weight = nn.Parameter(weight.detach())
        if self.trained.bias is not None:
            layer.bias = nn.Parameter(torch.cat([self.trained.bias, self.frozen.bias])[self.back].detach())
        return layer


def _rows(whole: nn.Linear, rows: Tensor) -> nn.Linear:
    part = nn.Linear(whole.in_features, len(rows), whole.bias is not None, whole.weight.device, whole.weight.dtype)
    part.weight = nn.Parameter(whole.weight.detach()[rows])
    if whole.bias is not None:
        part.bias = nn.Parameter(whole.bias.detach()[rows])
    return part


class Apla(Constant):
    """Attention's output projections and the classifier train.

    Raises:
        ConfigError: more columns than the projections have, a block that the model does not have, or none that trains.
    """

    def __init__(self, config: AplaConfig, model: Backbone, seed: int) -> None:
        check_blocks("method.blocks", config.blocks or (), model, config.from_block)
        if not config.chosen(model):
            raise ConfigError("method.from_block", config.from_block, "leaves no block to train; give a lower one")
        generator = torch.Generator().manual_seed(seed)
        for block in config.chosen(model):
            width = block.attn.proj.out_features
            if config.columns is not None and config.columns >= width:
                raise ConfigError("method.columns", config.columns, f"give fewer than {width}, or none for all")
            if config.columns is not None:
                drawn = torch.randperm(width, generator=generator)[: config.columns]
                block.attn.proj = PartialLinear(block.attn.proj, drawn)
        super().__init__(config, model)

    def export(self) -> Backbone:
        """A copy with whole projections, or the model itself if they were never cut."""
        if not any(isinstance(block.attn.proj, PartialLinear) for block in blocks_of(self.model)):
            return self.model
        plain = copy.deepcopy(self.model)
        for block in blocks_of(plain):
            if isinstance(block.attn.proj, PartialLinear):
                block.attn.proj = block.attn.proj.as_linear()
        return plain
