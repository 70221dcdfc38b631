"""Every kind of timm model runs block by block as timm runs it, the last block on no more than is looked at."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alast_tune.config import ModelConfig, TrialConfig
from alast_tune.methods import build_method
from alast_tune.models import create_model, outline
from alast_tune.models.backbone import (
    blocks_of,
    embed,
    needs_class_token_alone,
    predict,
    run_attention,
    run_block,
    run_mlp,
    why_no_halves,
)
from tests.unit.kinds import CLASS_TOKEN, KINDS, small


def images(model: Any) -> Tensor:
    return torch.randn(3, 3, *model.patch_embed.img_size)


@pytest.mark.parametrize("name", KINDS)
def test_logits_and_gradients_are_timm_s(name: str) -> None:
    model = small(name)
    images_BCHW = images(model)
    found = []
    for forward in (lambda: model(images_BCHW), lambda: predict(model, images_BCHW)):
        logits = forward()
        logits.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        found[-1]["logits"] = logits.detach()
        model.zero_grad(set_to_none=True)
    theirs, ours = found
    assert ours.keys() == theirs.keys()
    for where, expected in theirs.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours[where], expected, rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=where)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_two_halves_are_a_block_or_are_said_to_be_none(name: str) -> None:
    model = small(name)
    if name == "vit_base_patch16_xp_224":
        assert why_no_halves(model) == "is built of ParallelScalingBlock, which is not an attention and then an MLP"
        return
    assert why_no_halves(model) == ""
    x_BND = embed(model, images(model))
    assert torch.equal(run_mlp(model, 0, run_attention(model, 0, x_BND)), run_block(model, 0, x_BND))


ALONE = [name for name in KINDS if needs_class_token_alone(small(name))]


def test_the_class_token_is_enough_wherever_it_classifies_and_the_block_is_known() -> None:
    assert [
        *CLASS_TOKEN,
        "vit_small_patch16_lingbot",
        "vit_base_patch16_sapiens2",
        "vit_small_patch16_rope_mixed_224",
        "eva02_base_patch16_clip_224",
        "eva_giant_patch14_clip_224",
    ] == ALONE


@pytest.mark.parametrize("values", [{"name": "lora", "rank": 3}, {"name": "apla", "columns": 5}])
@pytest.mark.parametrize("name", ALONE)
def test_adapters_and_parts_of_a_layer_count_in_the_last_block_too(name: str, values: dict[str, Any]) -> None:
    """Also where timm's attention takes a layer's weight without calling the layer."""
    model = small(name)
    method = build_method(TrialConfig.model_validate({"method": values}).method, model)
    with torch.no_grad():
        for where, parameter in model.named_parameters():
            if "lora_B" in where:
                torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    exported = method.export().eval()
    plain = small(name).eval()
    plain.load_state_dict(exported.state_dict(), strict=True)
    images_BCHW = images(model)
    with torch.no_grad():
        logits = predict(model, images_BCHW)
        torch.testing.assert_close(logits, plain(images_BCHW), rtol=1e-4, atol=1e-4)
        changed = values["name"] == "lora"
        assert changed != torch.allclose(logits, small(name).eval()(images_BCHW), rtol=1e-3, atol=1e-3)


def test_of_the_last_block_the_class_token_alone_is_computed() -> None:
    """On DeiT-S: one block of 12 without queries, projection and MLP of 196 tokens."""
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")
        images_BCHW = torch.empty(1, 3, 224, 224)
    flops = []
    for forward in (lambda: model(images_BCHW), lambda: predict(model, images_BCHW)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward()
        flops.append(counter.get_total_flops())
    others, width = 196, 384
    assert flops[0] - flops[1] == 2 * others * 10 * width**2 + 4 * others * 197 * width


def test_dropped_paths_and_dropout_stay_in_the_last_block() -> None:
    model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=64, drop_path_rate=0.9, proj_drop_rate=0.5)
    images_BCHW = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        drawn = {float(predict(model, images_BCHW).sum()) for _ in range(5)}
    assert len(drawn) == 5
    assert any(isinstance(module, nn.Dropout) and module.p for module in blocks_of(model)[1].modules())


def test_models_come_with_one_size_whose_positions_are_computed_once() -> None:
    model = create_model(ModelConfig(name="vit_small_patch16_dinov3", pretrained=False, image_size=64, num_classes=3))
    assert not model.dynamic_img_size
    theirs = timm.create_model("vit_small_patch16_dinov3", pretrained=False, img_size=64, num_classes=3)
    theirs.load_state_dict(model.state_dict(), strict=True)
    images_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(predict(model.eval(), images_BCHW), theirs.eval()(images_BCHW))


def test_positions_are_not_drawn_anew_in_each_block() -> None:
    model = outline(ModelConfig(name="vit_base_patch16_sapiens2", image_size=64))
    assert model.rope.rescale_coords and not model.rope.aug_active  # type: ignore[union-attr]
