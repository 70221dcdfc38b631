"""Methods that fix once and for all what trains: everything, the classifier alone, or a few blocks.

Which blocks is said by hand or found by exploration: :func:`most_influential` names them from the losses
that a short probe of each block ended with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alast_tune.config import BlockChoice, FullConfig, HeadConfig, MethodConfig, TopKConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods.base import Constant, check_blocks
from alast_tune.models.backbone import Backbone


class Full(Constant):
    """Everything trains."""

    def __init__(self, config: FullConfig, model: Backbone) -> None:
        super().__init__(config, model, [True] * len(model.blocks))


class Head(Constant):
    """The classifier alone trains (linear probe)."""

    def __init__(self, config: HeadConfig, model: Backbone) -> None:
        super().__init__(config, model, [False] * len(model.blocks))


class TopK(Constant):
    """A few blocks train, the final norm and the classifier with them.

    Raises:
        ConfigError: a block that the model does not have.
    """

    def __init__(self, config: TopKConfig, model: Backbone) -> None:
        super().__init__(config, model, chosen_blocks(config, model))


def chosen_blocks(config: BlockChoice, model: Backbone) -> list[bool]:
    """Turn ``blocks`` into a mask over the model's, (L,).

    Raises:
        ConfigError: none chosen yet, or one that the model does not have.
    """
    depth = len(model.blocks)
    if config.blocks is None:
        raise ConfigError("method.blocks", None, "no block is chosen: explore first (fit does), or name some")
    check_blocks("method.blocks", config.blocks, model)
    return [block in config.blocks for block in range(depth)]


def with_blocks_chosen(config: MethodConfig, blocks: Sequence[int] | None = None) -> MethodConfig:
    """Put the blocks that exploration found, or the first ones, where it was left open which train."""
    if not isinstance(config, BlockChoice) or config.blocks is not None:
        return config
    return config.model_copy(update={"blocks": tuple(range(config.count) if blocks is None else blocks)})


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
