"""Methods that fix once and for all what trains: everything, the classifier alone, or a few blocks.

Which blocks is said by hand or found by exploration: :func:`most_influential` names them from the losses
that a short probe of each block ended with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods.base import Constant, Method, check_blocks
from alast_tune.methods.parameters import outputs
from alast_tune.models.backbone import Backbone


class FullConfig(MethodConfig):
    """Fine-tune everything."""

    name: Literal["full"] = "full"
    label = "full fine-tuning"

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """All."""
        return list(model.parameters())

    def trains_backbone(self) -> bool:
        """All of it."""
        return True


class HeadConfig(MethodConfig):
    """Train the classifier alone (linear probe)."""

    name: Literal["head"] = "head"
    label = "classifier only"

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """The classifier's."""
        return list(model.head.parameters())


class BlockChoice(MethodConfig):
    """Which blocks train, the same from the first step to the last."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        description="numbers of the blocks that train, from 0; unset: found by a short probe of each",
    )
    count: int = Field(3, ge=1, description="how many to find; the paper takes three")
    probe_steps: int = Field(
        8, ge=1, description="steps of training and batches of scoring that each block's probe gets"
    )

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """Those of the chosen blocks, of the final norm and of the classifier."""
        chosen = [model.blocks[block] for block in self.blocks or ()]
        return outputs(model) + [p for block in chosen for p in block.parameters()]

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model.

        Raises:
            ConfigError: a block that the model does not have, or blocks that are still to be explored.
        """
        return Constant(self, model, chosen_blocks(self, model))

    def trains_backbone(self) -> bool:
        """The blocks that are chosen."""
        return True

    def words(self) -> Iterator[tuple[str, str]]:
        """Say which blocks, or how many."""
        yield "count", f"{self.count} blocks" if self.blocks is None else ""
        yield "blocks", "" if self.blocks is None else f"blocks {','.join(map(str, self.blocks))}"


class TopKConfig(BlockChoice):
    """Train only the most influential blocks, the final norm and the classifier (the paper's FT top-3)."""

    name: Literal["top_k"] = "top_k"
    label = "top-k blocks"


def chosen_blocks(config: BlockChoice, model: Backbone) -> list[bool]:
    """Turn ``blocks`` into a mask over the model's, (L,).

    Raises:
        ConfigError: none chosen yet, or one that the model does not have.
    """
    if config.blocks is None:
        raise ConfigError("method.blocks", None, "no block is chosen: explore first (fit does), or name some")
    check_blocks("method.blocks", config.blocks, model, config.from_block)
    return [block in config.blocks for block in range(len(model.blocks))]


def with_blocks_chosen(config: MethodConfig, blocks: Sequence[int] | None = None) -> MethodConfig:
    """Put the blocks that exploration found, or the first ones that may, where it was left open which train."""
    if not isinstance(config, BlockChoice) or config.blocks is not None:
        return config
    first = range(config.from_block, config.from_block + config.count)
    return config.model_copy(update={"blocks": tuple(first if blocks is None else blocks)})


def most_influential(losses_L: Sequence[float], count: int) -> tuple[int, ...]:
    """Name the blocks whose probes ended with the lowest loss, in order of depth; ties go to the earlier block.

    A probe that diverged comes last.

    Raises:
        DivergedError: all of them did.
    """
    if not any(math.isfinite(loss) for loss in losses_L):
        raise DivergedError("every block's probe has diverged; lower train.learning_rate")
    ranked = sorted(range(len(losses_L)), key=lambda block: (not math.isfinite(losses_L[block]), losses_L[block]))
    return tuple(sorted(ranked[:count]))
