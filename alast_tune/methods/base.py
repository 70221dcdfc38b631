"""What a fine-tuning method is: it decides each step who trains and which tokens flow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class StepPlan:
    """What one training step does; its cost follows from it alone."""

    tokens_L: tuple[int, ...]
    """Tokens each block processes, class token (and registers) counted."""
    trainable_L: tuple[bool, ...]
    """Which blocks get gradients."""
    calibrated: bool = False
    """Whether the step began with one no-grad pass of its images, all tokens, to set the budgets."""


class Method(Protocol):
    """Wraps a model for training; evaluation sees the bare model, all its tokens."""

    model: VisionTransformer
    """What the optimizer and the evaluation see."""

    @property
    def plan(self) -> StepPlan:
        """Of the last step, as it was carried out."""

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that may ever train: the optimizer's, from the first step to the last."""

    def begin_step(self, step: int) -> None:
        """Decide what the step will do and set ``requires_grad`` accordingly."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Training forward: images to logits (B, K)."""

    def end_step(self) -> None:
        """Learn from the step, after its backward; completes ``plan``."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model: tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


def embed(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Turn images into the tokens (B, N, D) that enter the first block, by timm's own modules."""
    x_BND = model.patch_embed(images_BCHW)
    x_BND = model._pos_embed(x_BND)
    x_BND = model.patch_drop(x_BND)
    tokens: Tensor = model.norm_pre(x_BND)
    return tokens


def blocks_of(model: VisionTransformer) -> list[Any]:
    """List the transformer blocks; untyped, as timm leaves their parts (``attn.qkv``, ``mlp.fc1``) to the reader."""
    return list(model.blocks)


def token_count(model: VisionTransformer) -> int:
    """Count the tokens of an image: patches, class token and registers."""
    return int(model.patch_embed.num_patches) + int(model.num_prefix_tokens)


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Set ``requires_grad``; a frozen parameter also loses its gradient, so that Adam leaves it alone."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def output_parameters(model: VisionTransformer) -> list[nn.Parameter]:
    """List what follows the blocks: the final norms and the classifier."""
    return [p for module in (model.norm, model.fc_norm, model.head) for p in module.parameters()]
