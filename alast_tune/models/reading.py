"""A reader in place of a timm model's classifier: it reads what stands for an image after every block.

This file needs torch and timm alone: it travels with a model that is served where there is no alast-tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

Read = Literal["linear", "attentive"]
PREFIX = "reader."
"""Of a reader's weights among the model's."""
HEADS = 8
"""Of an attentive reader; each attends by itself."""


class Reader(nn.Module):
    """Classifies an image by its summaries, (B, S, D) to (B, K), which are normalised one by one.

    ``linear``: a linear layer over all of them side by side. ``attentive``: each summary has a scale and a shift of its
    own; a learned query a head says how much the head takes of each, and a linear layer classifies from what the
    heads have taken of the summaries' values.

    Args:
        read: which of the two.
        summaries: S.
        width: D.
        classes: K.
        generator: draws the first weights.
    """

    def __init__(
        self, read: Read, summaries: int, width: int, classes: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.read = read
        if read == "attentive":
            self.scale = nn.Parameter(torch.ones(summaries, width))
            self.shift = nn.Parameter(torch.zeros(summaries, width))
            self.query = _linear(width, HEADS, generator)
            self.value = _linear(width, HEADS * -(-2 * width // HEADS), generator)
        seen = summaries * width if read == "linear" else self.value.out_features
        self.classifier = _linear(seen, classes, generator)

    def forward(self, summaries_BSD: Tensor) -> Tensor:
        """Logits, (B, K)."""
        z_BSD = F.layer_norm(summaries_BSD, summaries_BSD.shape[-1:])
        if self.read == "linear":
            logits_BK: Tensor = self.classifier(z_BSD.flatten(1))
            return logits_BK
        z_BSD = z_BSD * self.scale + self.shift
        weights_BHS = self.query(z_BSD).softmax(dim=1).transpose(1, 2)
        values_BHSd = F.gelu(self.value(z_BSD)).unflatten(2, (HEADS, -1)).transpose(1, 2)
        taken_BHd = (weights_BHS[:, :, None].type_as(values_BHSd) @ values_BHSd).squeeze(2)
        attended_BK: Tensor = self.classifier(taken_BHd.flatten(1))
        return attended_BK


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="cpu")
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def block_summaries(model: Any, x_BND: Tensor) -> list[Tensor]:
    """Summarise what leaves a block, (B, D) each: the class token where it classifies, and the mean of the patches."""
    mean_BD = x_BND[:, int(model.num_prefix_tokens) :].mean(dim=1)
    # A view of the class token would keep all the others.
    return [x_BND[:, 0].clone(), mean_BD] if model.global_pool == "token" else [mean_BD]


def summary_count(model: Any) -> int:
    """Count the summaries of an image: those of every block but the last, and what the model classifies from."""
    return (len(model.blocks) - 1) * (2 if model.global_pool == "token" else 1) + 1


class _WithReader:
    """A timm model whose reader classifies; in training and evaluation ``predict`` computes the same, and less."""

    def forward(self: Any, images_BCHW: Tensor) -> Tensor:
        """Logits, (B, K)."""
        normed_BND, found = self.forward_intermediates(images_BCHW, output_fmt="NLC", return_prefix_tokens=True)
        tokens = [torch.cat(one[::-1], dim=1) if isinstance(one, tuple) else one for one in found[:-1]]
        summaries = [one for x_BND in tokens for one in block_summaries(self, x_BND)]
        summaries.append(self.forward_head(normed_BND, pre_logits=True))
        logits_BK: Tensor = self.reader(torch.stack(summaries, dim=1))
        return logits_BK


class VisionTransformerWithReader(_WithReader, VisionTransformer):  # type: ignore[misc]  # fewer arguments
    """timm's ``VisionTransformer``, but for what classifies."""


class EvaWithReader(_WithReader, Eva):  # type: ignore[misc]  # fewer arguments
    """timm's ``Eva``, but for what classifies."""


_KINDS: dict[type, type] = {VisionTransformer: VisionTransformerWithReader, Eva: EvaWithReader}


def has_reader(model: nn.Module) -> bool:
    """Say whether a reader classifies."""
    return isinstance(model, _WithReader)


def can_have_reader(model: nn.Module) -> bool:
    """Say whether the model is of a class that a reader is known for."""
    return type(model) in _KINDS


def attach_reader(model: Any, read: Read, classes: int, generator: torch.Generator | None = None) -> None:
    """Put a reader in the place of a model's classifier, by which it becomes a model of another class."""
    width, device = int(model.embed_dim), next(model.parameters()).device
    model.reader = Reader(read, summary_count(model), width, classes, generator).to(device)
    model.head = nn.Identity()
    model.num_classes = classes
    model.__class__ = _KINDS[type(model)]


def load_with_reader(model: Any, state: Mapping[str, Tensor]) -> None:
    """Load weights whose classifier is a reader into timm's model of the same architecture, which gets that reader.

    Raises:
        ValueError: there is no reader among the weights.
        RuntimeError: they are another model's.
    """
    reader = read_of(state)
    if reader is None:
        raise ValueError("these weights have no reader; timm loads them by itself")
    attach_reader(model, *reader)
    model.load_state_dict(state, strict=True)


def read_of(state: Mapping[str, Tensor]) -> tuple[Read, int] | None:
    """Say what kind of reader weights are of, and its classes; None if they are of a model without."""
    bias = state.get(f"{PREFIX}classifier.bias")
    if bias is None:
        return None
    return ("attentive" if f"{PREFIX}query.weight" in state else "linear"), len(bias)
