"""What every accepted timm model is made of: an embedding, blocks in a row, and a classifier.

timm's own modules run, one after the other. Rotary positions follow the tokens that are kept, and where the classifier
sees the class token alone, the last block computes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.layers.format import Format
from timm.layers.pos_embed_sincos import apply_rot_embed_cat, get_mixed_freqs
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alast_tune.models.reading import block_summaries, has_reader

Backbone: TypeAlias = VisionTransformer | Eva
"""A timm model that can be fine-tuned here."""

_NORM_AFTER = (ResPostBlock, EvaBlockPostNorm)
"""Blocks whose norms come after attention and MLP."""

T = TypeVar("T")


def blocks_of(model: Backbone) -> list[Any]:
    """List the transformer blocks; untyped, as timm leaves their parts (``attn.qkv``, ``mlp.fc1``) to the reader."""
    return list(model.blocks)


def token_count(model: Backbone, image_size: int | None = None) -> int:
    """Count the tokens of an image: patches, class token and registers.

    Args:
        model: whose tokens.
        image_size: side of the image, pixels; unset: the model's own.
    """
    patches = model.patch_embed.num_patches if image_size is None else patches_at(model, image_size)
    return int(patches) + int(model.num_prefix_tokens)


def patches_at(model: Backbone, image_size: int) -> int:
    """Count the patches of a square image, its side given in pixels."""
    return int((image_size // model.patch_embed.patch_size[0]) ** 2)


def has_rotary_positions(model: Backbone) -> bool:
    """Say whether blocks have to know which of the image's tokens come to them."""
    return getattr(model, "rope", None) is not None


def attention_pool(model: Backbone) -> Any:
    """Give the pool through which the model classifies; None if it takes a token, or a mean."""
    return model.attn_pool


def why_one_size(model: Backbone) -> str:
    """Say why a model takes images of one size alone, in words that follow "the model"; nothing if it takes others."""
    rope = getattr(model, "rope", None)
    known = rope is None or (hasattr(rope, "update_feat_shape") and rope.feat_shape is not None)
    return "" if known else f"has positions by {type(rope).__name__}, which are of one image size"


def embed(model: Backbone, images_BCHW: Tensor) -> Tensor:
    """Turn images into the tokens (B, N, D) that enter the first block, by timm's own modules.

    The positions of images of another size than the model's own are resampled, and train as its own ones do.
    """
    with _positions_for(model, (int(images_BCHW.shape[-2]), int(images_BCHW.shape[-1]))):
        x_BND = model._pos_embed(model.patch_embed(images_BCHW))
    if isinstance(model, Eva):
        x_BND, _ = x_BND
    else:
        x_BND = model.patch_drop(x_BND)
    tokens: Tensor = model.norm_pre(x_BND)
    return tokens


@contextmanager
def _positions_for(model: Backbone, image_size: tuple[int, int]) -> Iterator[None]:
    """Have timm embed images of a size as it does in models with ``dynamic_img_size``; rotary positions stay so."""
    patches, rope = model.patch_embed, getattr(model, "rope", None)
    grid = patches.dynamic_feat_size(image_size)
    if getattr(rope, "feat_shape", None) not in (None, grid, list(grid)):
        with torch.inference_mode(False), torch.no_grad():
            rope.update_feat_shape(grid)  # type: ignore[union-attr]  # new buffers: what autograd holds is left alone
    if grid == patches.grid_size:
        yield
        return
    dynamic: list[tuple[Any, dict[str, Any]]] = [
        (model, {"dynamic_img_size": True}),
        (patches, {"strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}),
    ]
    before = [{name: getattr(module, name) for name in options} for module, options in dynamic]
    try:
        for module, options in dynamic:
            vars(module).update(options)
        yield
    finally:
        for (module, _), options in zip(dynamic, before, strict=True):
            vars(module).update(options)


def run_block(model: Backbone, index: int, x_BND: Tensor, kept_BN: Tensor | None = None, mask: Any = None) -> Tensor:
    """Run a block as timm has it; the last one on what the classifier needs of it.

    Args:
        model: whose block.
        index: of the block.
        x_BND: tokens that come.
        kept_BN: which of the image's tokens they are; unset: all. Rotary positions ask for it.
        mask: added to the attention's scores, as timm's blocks take it.

    Returns:
        All tokens, (B, N, D); of the last block the class token by itself, (B, 1, D), where
        :func:`needs_class_token_alone` says so. Queries, projection and MLP are then computed for it alone.
    """

    def run(x_BND: Tensor) -> Tensor:
        return _run_block(model, index, x_BND, kept_BN, mask)

    return recomputed(model, index, run, x_BND)


def recomputed(model: Backbone, index: int, run: Callable[..., T], *tensors: Tensor) -> T:
    """Run a block's forward on tensors; under ``model.set_grad_checkpointing()`` keep these alone for its backward.

    The backward then runs the forward again, dropout drawn as before. A block that has no backward runs as it is.
    """
    if not (model.grad_checkpointing and torch.is_grad_enabled()):
        return run(*tensors)
    learns = (one.requires_grad for one in (*tensors, *blocks_of(model)[index].parameters()))
    if not any(learns):
        return run(*tensors)
    made: T = checkpoint(run, *tensors, use_reentrant=False)
    return made


def run_attention(model: Backbone, index: int, x_BND: Tensor, kept_BN: Tensor | None = None) -> Tensor:
    """Run the first half of a block as timm has it: its attention, with the skip connection."""
    block = blocks_of(model)[index]

    def run(x_BND: Tensor) -> Tensor:
        rope = rotations(model, index, kept_BN)
        options = {} if rope is None else {"rope": rope}
        if isinstance(block, _NORM_AFTER):
            half_BND = block.norm1(block.attn(x_BND, **options))
        else:
            half_BND = _scaled(block, 1, block.attn(block.norm1(x_BND), **options))
        attended_BND: Tensor = x_BND + block.drop_path1(half_BND)
        return attended_BND

    return recomputed(model, index, run, x_BND)


def run_mlp(model: Backbone, index: int, x_BND: Tensor) -> Tensor:
    """Run the second half of a block as timm has it: its MLP, with the skip connection."""
    block = blocks_of(model)[index]

    def run(x_BND: Tensor) -> Tensor:
        after = isinstance(block, _NORM_AFTER)
        half_BND = block.norm2(block.mlp(x_BND)) if after else _scaled(block, 2, block.mlp(block.norm2(x_BND)))
        y_BND: Tensor = x_BND + block.drop_path2(half_BND)
        return y_BND

    return recomputed(model, index, run, x_BND)


def why_no_halves(model: Backbone) -> str:
    """Say why :func:`run_attention` and :func:`run_mlp` are no whole, in words that follow "the model"; or nothing."""
    for block in blocks_of(model):
        if type(block) not in (Block, EvaBlock, *_NORM_AFTER):
            return f"is built of {type(block).__name__}, which is not an attention and then an MLP"
    return ""


def rotations(model: Backbone, index: int, kept_BN: Tensor | None = None) -> Tensor | None:
    """Give the rotary positions of the patches in a block, as its attention takes them; None without."""
    rope: Any = getattr(model, "rope", None)
    if rope is None:
        return None
    if model.rope_mixed:  # learned, a block and head each; of this block alone
        turned: Tensor = get_mixed_freqs(rope.freqs[:, index], rope.t_x, rope.t_y)
    else:
        turned = rope.get_embed()
    if kept_BN is None:
        return turned
    prefix = int(model.num_prefix_tokens)
    chosen = turned[..., kept_BN[:, prefix:] - prefix, :]  # (B, P, d), or (H, B, P, d)
    return chosen.transpose(0, 1) if chosen.dim() == 4 else chosen[:, None]


def rotate(attention: Any, x_BHND: Tensor, rope: Tensor | None) -> Tensor:
    """Turn queries or keys by their positions, class token and registers left out, as timm's attention does."""
    prefix = int(attention.num_prefix_tokens) if rope is not None else 0
    if rope is None or x_BHND.shape[2] <= prefix:
        return x_BHND
    turned = apply_rot_embed_cat(x_BHND[:, :, prefix:], rope, half=attention.rotate_half)
    return torch.cat([x_BHND[:, :, :prefix], turned], dim=2).type_as(x_BHND)


def needs_class_token_alone(model: Backbone) -> bool:
    """Say whether, of what leaves the last block, only the class token is used, and can be computed by itself."""
    last = blocks_of(model)[-1]
    known = type(last) in (Block, EvaBlock) and type(last.attn) in (Attention, AttentionRope, EvaAttention)
    return model.global_pool == "token" and attention_pool(model) is None and known


def classify(model: Backbone, x_BND: Tensor) -> Tensor:
    """Turn what leaves the last block into logits (B, K), by timm's own modules."""
    logits: Tensor = model.forward_head(model.norm(x_BND))
    return logits


def predict(model: Backbone, images_BCHW: Tensor, start: int = 0) -> Tensor:
    """Turn images into logits (B, K), as ``model(images)`` does, without what nobody looks at in the last block.

    Args:
        model: that predicts.
        images_BCHW: or, with ``start``, the tokens (B, N, D) that enter this block; of a reader, the summaries.
        start: first block that runs; as many as there are blocks: none does.
    """
    if has_reader(model):
        reader: Any = model.reader
        read: Tensor = reader(images_BCHW if start else summaries_of(model, images_BCHW))
        return read
    x_BND = images_BCHW if start else embed(model, images_BCHW)
    for index in range(start, len(model.blocks)):
        x_BND = run_block(model, index, x_BND)
    return classify(model, x_BND)


def predict_tokens(model: Backbone, images_BCHW: Tensor, start: int) -> Tensor:
    """Turn images into the tokens (B, N, D) that enter a block; the rest of :func:`predict` begins with them.

    Where a reader classifies, the rest begins with the summaries, (B, S, D), whatever the block.
    """
    if has_reader(model):
        return summaries_of(model, images_BCHW)
    x_BND = embed(model, images_BCHW)
    for index in range(start):
        x_BND = run_block(model, index, x_BND)
    return x_BND


@torch.no_grad()
def summaries_of(model: Backbone, images_BCHW: Tensor) -> Tensor:
    """Summarise images after every block but the last, and as the classifier would get them, (B, S, D), no gradient."""
    x_BND = embed(model, images_BCHW)
    found: list[Tensor] = []
    for index in range(len(model.blocks) - 1):
        x_BND = run_block(model, index, x_BND)
        found += block_summaries(model, x_BND)
    x_BND = model.norm(run_block(model, len(model.blocks) - 1, x_BND))
    return torch.stack([*found, model.forward_head(x_BND, pre_logits=True)], dim=1)


def _run_block(model: Backbone, index: int, x_BND: Tensor, kept_BN: Tensor | None, mask: Any) -> Tensor:
    block = blocks_of(model)[index]
    rope = rotations(model, index, kept_BN)
    if index == len(model.blocks) - 1 and needs_class_token_alone(model):
        attended_B1D = _attend_from_class_token(block.attn, block.norm1(x_BND), rope, mask)
        x_B1D = x_BND[:, :1] + block.drop_path1(_scaled(block, 1, attended_B1D))
        y_B1D: Tensor = x_B1D + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x_B1D))))
        return y_B1D
    options = {"rope": rope, "attn_mask": mask}
    y_BND: Tensor = block(x_BND, **{name: value for name, value in options.items() if value is not None})
    return y_BND


def _scaled(block: Any, half: int, x_BND: Tensor) -> Tensor:
    """Apply a block's layer scale, which timm's two kinds of block keep in different ways."""
    if isinstance(block, Block):
        scaled: Tensor = (block.ls1 if half == 1 else block.ls2)(x_BND)
        return scaled
    gamma = block.gamma_1 if half == 1 else block.gamma_2
    return x_BND if gamma is None else gamma * x_BND


def _attend_from_class_token(attention: Any, x_BND: Tensor, rope: Tensor | None, mask: Any) -> Tensor:
    """Compute the class token's row of timm's attention, (B, 1, D)."""
    q_B1A, k_BNA, v_BNA = _project(attention, x_BND)
    q_BH1d, k_BHNd, v_BHNd = (x.unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for x in (q_B1A, k_BNA, v_BNA))
    q_BH1d, k_BHNd = attention.q_norm(q_BH1d), attention.k_norm(k_BHNd)  # the class token has no position
    k_BHNd = rotate(attention, k_BHNd, rope)
    if getattr(attention, "num_kv_groups", 1) > 1:
        k_BHNd, v_BHNd = (x.repeat_interleave(attention.num_kv_groups, dim=1) for x in (k_BHNd, v_BHNd))
    dropout = attention.attn_drop.p if attention.training else 0.0
    seen = F.scaled_dot_product_attention(q_BH1d, k_BHNd.type_as(v_BHNd), v_BHNd, attn_mask=mask, dropout_p=dropout)
    seen = attention.norm(seen.transpose(1, 2).flatten(2))
    if attention.gate is not None:
        seen = seen * attention.gate(x_BND[:, :1]).sigmoid()
    row_B1D: Tensor = attention.proj_drop(attention.proj(seen))
    return row_B1D


def _project(attention: Any, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the class token's query, (B, 1, A), and every token's key and value, (B, N, A) each."""
    if attention.qkv is None:
        return attention.q_proj(x_BND[:, :1]), attention.k_proj(x_BND), attention.v_proj(x_BND)
    layer = attention.qkv
    width = layer.out_features // 3
    parts = (width, 2 * width)
    plain = getattr(layer, "base_layer", layer)
    q_weight, kv_weight = plain.weight.split(parts)
    q_bias, kv_bias = (None, None) if plain.bias is None else plain.bias.split(parts)
    if getattr(attention, "q_bias", None) is not None:
        q_bias, kv_bias = attention.q_bias, torch.cat([attention.k_bias, attention.v_bias])
    q_B1A = F.linear(x_BND[:, :1], q_weight, q_bias)
    kv_BNA = F.linear(x_BND, kv_weight, kv_bias)
    if plain is not layer:  # peft's: an adapter beside the layer
        (name,) = layer.active_adapters
        q_up, kv_up = layer.lora_B[name].weight.split(parts)
        low_BNr = layer.lora_A[name](layer.lora_dropout[name](x_BND)) * layer.scaling[name]
        q_B1A = q_B1A + F.linear(low_BNr[:, :1], q_up)
        kv_BNA = kv_BNA + F.linear(low_BNr, kv_up)
    k_BNA, v_BNA = kv_BNA.chunk(2, dim=2)
    return q_B1A, k_BNA, v_BNA
