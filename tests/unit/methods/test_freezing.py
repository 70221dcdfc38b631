"""`full` is timm itself; `head` trains the classifier alone."""

import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import FullConfig, HeadConfig
from alast_tune.methods import build_method


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


def test_full_trains_everything() -> None:
    method = build_method(FullConfig(), model := vit())
    method.begin_step(0)
    method.forward(torch.randn(2, 3, 32, 32)).sum().backward()
    method.end_step()
    assert all(p.grad is not None for p in model.parameters())
    assert method.plan.trainable_L == (True, True)
    assert method.plan.tokens_L == (17, 17)


def test_head_trains_the_classifier_alone() -> None:
    method = build_method(HeadConfig(), model := vit())
    method.begin_step(0)
    method.forward(torch.randn(2, 3, 32, 32)).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"head.weight", "head.bias"}
    assert method.parameters() == list(model.head.parameters())
    assert method.plan.trainable_L == (False, False)
