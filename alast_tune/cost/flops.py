"""FLOPs of one training step, in closed form; equal to torch's ``FlopCounterMode`` to the last FLOP.

A multiply-add counts 2; only matrix products, convolutions and attention count, as there. With
W the sum of in x out over a block's linear layers, N tokens, width A of the attention:

    forward            B (2 N W + 4 N^2 A)
    backward, frozen   B (2 N W + 10 N^2 A)     gradients pass through, exactly
    backward, trained  B (4 N W + 10 N^2 A)     and reach the weights
    class-token row    B 2 N A                  where tokens are dropped after the block
"""

from __future__ import annotations

from typing import Any

from torch import nn

from alast_tune.config import AlastConfig, HeadConfig, MethodConfig
from alast_tune.methods.base import StepPlan, blocks_of
from alast_tune.models import VisionTransformer


def step_flops(
    model: VisionTransformer, method_config: MethodConfig, plan: StepPlan, image_size: int, batch: int
) -> int:
    """Count forward and backward of one training step under a plan, for ``batch`` images.

    Evaluation, the optimizer's update and element-wise work are not counted.
    """
    patches = (image_size // model.patch_embed.patch_size[0]) * (image_size // model.patch_embed.patch_size[1])
    projection = int(2 * patches * model.patch_embed.proj.weight.numel())
    total = projection + _classifier(model)
    if isinstance(method_config, HeadConfig):
        # Nothing below the classifier gets a gradient; the classifier's own inputs do not either.
        forward = sum(_forward(block, tokens) for block, tokens in zip(blocks_of(model), plan.tokens_L, strict=True))
        return batch * (total + forward + _classifier(model))

    alast = method_config if isinstance(method_config, AlastConfig) else None
    embeddings_train = alast is None or alast.train_embeddings
    if embeddings_train:
        total += projection
    total += 2 * _classifier(model)
    residual = alast is not None and alast.frozen_backward == "residual"
    graph = embeddings_train  # whether a gradient has to reach the block's input
    per_block = zip(blocks_of(model), plan.tokens_L, plan.trainable_L, strict=True)
    for index, (block, tokens, trains) in enumerate(per_block):
        total += _forward(block, tokens)
        if trains:
            total += 4 * tokens * _weights(block) + 10 * tokens**2 * block.attn.attn_dim
        elif graph and not residual:
            total += 2 * tokens * _weights(block) + 10 * tokens**2 * block.attn.attn_dim
        graph = graph or trains
        if index + 1 < len(plan.tokens_L) and plan.tokens_L[index + 1] < tokens:
            total += 2 * tokens * block.attn.attn_dim
        if plan.calibrated:
            total += _forward(block, plan.tokens_L[0])
    return batch * total


def forward_flops(model: VisionTransformer, image_size: int, batch: int) -> int:
    """Count one forward with every token, as evaluation does it."""
    patches = (image_size // model.patch_embed.patch_size[0]) * (image_size // model.patch_embed.patch_size[1])
    tokens = int(patches + model.num_prefix_tokens)
    blocks = sum(_forward(block, tokens) for block in blocks_of(model))
    return int(batch * (2 * patches * model.patch_embed.proj.weight.numel() + blocks + _classifier(model)))


def _weights(block: nn.Module) -> int:
    """Weights of a block's linear layers, each of which meets every token once."""
    return sum(module.weight.numel() for module in block.modules() if isinstance(module, nn.Linear))


def _forward(block: Any, tokens: int) -> int:
    return int(2 * tokens * _weights(block) + 4 * tokens**2 * block.attn.attn_dim)


def _classifier(model: VisionTransformer) -> int:
    """One pass through the classifier, which sees one pooled token an image."""
    return 2 * int(model.head.weight.numel()) if isinstance(model.head, nn.Linear) else 0
