"""A side reader: the model stays frozen, and a small module classifies by what every block makes of the image.

The linear one is a probe of all layers, as Head2Toe's (Evci et al. 2022) without its choice of features; the attentive
one weighs the layers anew for each image. The model runs without gradients: a step costs little more than ``head``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.base import Constant, Flow, Method, Stage, StepPlan
from alast_tune.models.backbone import Backbone, summaries_of
from alast_tune.models.reading import Read, attach_reader, can_have_reader

LEARNING_RATE = 1e-2
"""Of a reader where none is set."""


class ReaderConfig(MethodConfig):
    """Train a small module that classifies by the summaries of all blocks; the model stays frozen."""

    name: Literal["reader"] = "reader"
    label = "side reader"
    foremost = "read"

    read: Read = Field(
        "linear",
        description="linear: all summaries side by side; attentive: weighed for each image, by learned queries",
    )

    def trainable_parameters(self, model: Backbone) -> list[nn.Parameter]:
        """The reader's."""
        reader: Any = model.reader
        return list(reader.parameters())

    def why_not(self, model: Backbone) -> str:
        """A class of model whose forward is not known here."""
        return "" if can_have_reader(model) else f"is a {type(model).__name__}, not timm's VisionTransformer or Eva"

    def build(self, model: Backbone, train: TrainConfig) -> Method:
        """Wrap a model, whose classifier a reader replaces.

        Raises:
            ConfigError: nobody knows how many classes there are, or some tokens should not enter.
        """
        shares = {"token_keep": train.token_keep, "token_keep_last": train.token_keep_last}
        for name, share in shares.items():
            if share not in {None, 1}:
                raise ConfigError(f"train.{name}", share, "a reader takes all tokens; leave it out")
        if not model.num_classes:
            raise ConfigError(
                "model.num_classes", model.num_classes, "is what a reader needs; give a number of classes"
            )
        attach_reader(model, self.read, int(model.num_classes), torch.Generator().manual_seed(train.seed))
        return Constant(self, model)

    def flow(self, model: Backbone) -> Flow:
        """The whole model runs without gradients, and its summaries alone are left."""
        return Reading(self, model)

    def words(self) -> Iterator[tuple[str, str]]:
        """Say which reader."""
        yield "read", self.read

    def default_learning_rate(self) -> float:
        """Give the rate of a module that starts from nothing."""
        return LEARNING_RATE


class Reading(Flow):
    """No stage at all: what embeds runs every block, and what classifies is the reader."""

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Turn images into their summaries, (B, S, D)."""
        return summaries_of(self.model, images_BCHW)

    def stages(self, plan: StepPlan) -> list[Stage]:
        """Give none."""
        return []

    def classify(self, flowing: Tensor) -> Tensor:
        """Turn summaries into logits, (B, K)."""
        reader: Any = self.model.reader
        logits: Tensor = reader(flowing)
        return logits
