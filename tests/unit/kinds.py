"""Of each structural kind of timm model that is accepted, one, made small."""

from typing import Any

import timm
import torch

from alast_tune.models import Backbone

CLASS_TOKEN = (
    "vit_tiny_patch16_224",
    "flexivit_small",  # positions of the patches alone
    "vit_small_patch14_dinov2",  # layer scale
    "vit_small_patch14_reg4_dinov2",  # registers
    "vit_base_patch16_224_miil",  # no bias of queries, keys and values
    "deit3_small_patch16_224",  # layer scale, positions of the patches alone
    "vit_xsmall_patch16_clip_224",  # a norm before the blocks
    "vit_base_patch32_clip_quickgelu_224",  # QuickGELU
    "vit_base_patch16_radio_v3",  # no final norm, layer scale, registers
    "vit_huge_patch16_radio_v3",  # no final norm, registers
    "vit_intern300m_patch14_448",  # no final norm, layer scale
    "vit_giant_patch14_dinov2",  # a gated MLP, layer scale
    "vit_giant_patch14_reg4_dinov2",  # a gated MLP, layer scale, registers
)
"""Plain blocks, of which the last one works for the class token alone."""

NARROW: dict[str, Any] = {"embed_dim": 48, "num_heads": 3}
KINDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(CLASS_TOKEN, NARROW),
    "vit_little_patch16_reg1_gap_256": NARROW,  # a mean of the patches
    "vit_base_patch16_siglip_gap_224": NARROW,  # no class token, no register
    "vit_base_patch16_siglip_224": NARROW,  # an attention pool
    "vit_so150m_patch16_reg4_map_256": NARROW,  # an attention pool, registers
    "aimv2_large_patch14_224": NARROW,  # another gated MLP, RMSNorm, a mean
    "beit3_base_patch16_224": NARROW,  # norms in attention and MLP, a mean beside a class token
    "vit_base_patch16_rpn_224": NARROW,  # norms after the halves
    "vit_dwee_patch16_reg1_gap_256": NARROW,  # differential attention
    "vit_base_patch16_xp_224": NARROW,  # attention and MLP side by side
    "vit_small_patch16_dinov3": NARROW,  # rotary, registers, a mean
    "vit_small_patch16_dinov3_qkvb": NARROW,  # biases added by timm's own product
    "vit_small_patch16_lingbot": NARROW,  # rotary, registers, class token
    "vit_base_patch16_sapiens2": {"embed_dim": 96, "num_heads": 6, "num_kv_heads": (6, 2)},  # keys of groups
    "vit_small_patch16_rope_mixed_224": {"embed_dim": 96, "num_heads": 3},  # learned by block and head
    "eva02_tiny_patch14_224": NARROW,  # a gated MLP, split projections
    "eva02_base_patch14_224": NARROW,  # another gated MLP
    "eva02_base_patch16_clip_224": NARROW,
    "eva_giant_patch14_clip_224": NARROW,
    "eva02_enormous_patch14_clip_224": NARROW,  # norms after the halves
    "vit_pe_core_tiny_patch16_384": NARROW,  # rotary, an attention pool
    "vit_pe_spatial_base_patch16_512": NARROW,  # rotary, a mean
}


def small(name: str, shape: dict[str, Any] | None = None) -> Backbone:
    """Two narrow and lively blocks, 16 patches, 10 classes."""
    torch.manual_seed(0)
    patch = int(name.split("patch")[1].split("_")[0]) if "patch" in name else 16
    options = {"depth": 2, "img_size": 4 * patch, "num_classes": 10, "dynamic_img_size": False} | (shape or KINDS[name])
    model: Any = timm.create_model(name, pretrained=False, **options)
    if getattr(model, "rope", None) is not None:
        model.rope.aug_active = False  # as create_model leaves it
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    found: Backbone = model
    return found
