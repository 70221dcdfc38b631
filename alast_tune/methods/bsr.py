"""Block Selective Reprogramming (Sarkar et al. 2024): few blocks train, some of the frozen ones drop tokens.

The paper ranks tokens by the frozen blocks' self-attention, after EViT (Liang et al. 2022): the class token's
row, mean over the heads. Our reading of the rest: a dropping block lets on the share ``keep`` of the patch
tokens that reach it, and as in EViT three blocks drop, about a quarter, half and three quarters of the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Flow, Method, check_blocks
from alast_tune.methods.dropping import Dropping
from alast_tune.methods.freezing import BlockChoice, chosen_blocks
from alast_tune.methods.summary import why_no_scores
from alast_tune.methods.tokens import keep_count
from alast_tune.models.backbone import Backbone
from alast_tune.text import short_number


class BsrConfig(BlockChoice):
    """Block Selective Reprogramming (Sarkar et al. 2024): few blocks train, frozen ones drop tokens."""

    name: Literal["bsr"] = "bsr"
    label = "BSR"
    foremost = "keep"

    keep: float = Field(0.7, gt=0, le=1, description="share of the arriving patch tokens that a dropping block lets on")
    drop_after: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="frozen blocks that drop; unset: those nearest to a quarter, half and three quarters"
    )

    def why_not(self, model: Backbone) -> str:
        """Tokens without scores."""
        return why_no_scores(model)

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model."""
        return Bsr(self, model)

    def flow(self, model: Backbone) -> Flow:
        """Tokens go after some blocks."""
        return Dropping(self, model)

    def words(self) -> Iterator[tuple[str, str]]:
        """Say which blocks, and the share of tokens."""
        yield from super().words()
        yield "keep", f"keep {short_number(self.keep)}"


class Bsr(Constant):
    """A subset of the blocks trains; tokens are dropped by the attention of frozen ones.

    Raises:
        ConfigError: a block that the model does not have, or one to drop after that trains or is the last.
    """

    def __init__(self, config: BsrConfig, model: Backbone) -> None:
        mask_L = chosen_blocks(config, model)
        drop_after = default_drops(mask_L) if config.drop_after is None else config.drop_after
        check_blocks("method.drop_after", drop_after, model)
        for block in drop_after:
            if block == len(mask_L) - 1:
                raise ConfigError("method.drop_after", block, "no block comes after this one; give earlier ones")
            if mask_L[block]:
                raise ConfigError("method.drop_after", block, "this block trains; only frozen blocks drop tokens")
        self._keep, self._drop_after = config.keep, drop_after
        super().__init__(config, model, mask_L)

    def tokens(self, entering: int, start: int = 0) -> list[int]:
        """Say how many tokens each block receives, from a block on."""
        prefix = int(self.model.num_prefix_tokens)
        tokens = [entering]
        for block in range(start, len(self.model.blocks) - 1):
            patches = tokens[-1] - prefix
            kept = keep_count(self._keep, patches, patches, prefix, "image") if block in self._drop_after else patches
            tokens.append(prefix + kept)
        return tokens


def default_drops(mask_L: Sequence[bool]) -> tuple[int, ...]:
    """Name the frozen blocks nearest to a quarter, half and three quarters of the depth; the last never drops."""
    frozen = [block for block, trains in enumerate(mask_L[:-1]) if not trains]
    marks = (len(mask_L) * quarter / 4 for quarter in (1, 2, 3))
    return tuple(sorted({min(frozen, key=lambda block: abs(block - mark)) for mark in marks})) if frozen else ()
