"""Models without memory."""

import timm
import torch

from alast_tune.models.shapes import shapes_alone


def test_a_model_of_shapes_alone_has_those_that_the_model_has() -> None:
    for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224"):
        with shapes_alone():
            outlined = timm.create_model(name, depth=2)
        state = timm.create_model(name, depth=2).state_dict()
        found = outlined.state_dict()
        assert {key: (w.shape, w.dtype) for key, w in found.items()} == {
            key: (w.shape, w.dtype) for key, w in state.items()
        }
        assert all(weight.is_meta for weight in found.values())


def test_what_has_memory_is_drawn_all_the_same() -> None:
    with shapes_alone():
        weights = torch.nn.init.uniform_(torch.zeros(8, device="cpu"), 1.0, 2.0)
        assert weights.add_(1).clamp_(min=2.5).min() >= 2.5
