"""timm Vision Transformers: by name, from a local checkpoint, or the embedded backbone."""

from timm.models.vision_transformer import VisionTransformer

EMBEDDED_MEAN = (0.5, 0.5, 0.5)
EMBEDDED_STD = (0.5, 0.5, 0.5)


def embedded_vit(num_classes: int, **options: object) -> VisionTransformer:
    """Build the embedded architecture, weights at random: 12 blocks, 32x32 input, patch 4."""
    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=80, depth=12, num_heads=5, num_classes=num_classes, **options
    )
