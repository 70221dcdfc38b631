"""GELU that keeps 4 bits an element: what it saves is counted, what it rounds is little, and weights stay plain."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.methods.activations import ApproximateGelu
from alast_tune.models.backbone import predict
from alast_tune.testing.steps import batch, gradients, measured_steps, step
from tests.unit.every_method import METHODS, cases, vit
from tests.unit.kinds import small

APPROXIMATE: dict[str, Any] = {"activations": "approximate"}


def configs(name: str) -> list[MethodConfig]:
    return [case.config for case in cases(name)[:2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_gelu_and_the_derivative_is_near(dtype: torch.dtype) -> None:
    x = torch.linspace(-8, 8, 4002).to(dtype).requires_grad_()
    other = x.detach().clone().requires_grad_()
    ours, exact = ApproximateGelu()(x), F.gelu(other)
    assert torch.equal(ours, exact)
    for y in (ours, exact):
        y.sum().backward()
    assert x.grad is not None and other.grad is not None
    assert x.grad.dtype == dtype
    assert (x.grad - other.grad).abs().max() < 0.1
    assert abs(float((x.grad - other.grad).float().mean())) < 0.01  # no bias
    with torch.no_grad():
        assert torch.equal(ApproximateGelu()(x), exact)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_it_costs_what_is_predicted(name: str, precision: str, checkpoint_blocks: bool) -> None:
    for config in configs(name)[: 2 - checkpoint_blocks]:
        options = APPROXIMATE | {"checkpoint_blocks": checkpoint_blocks}
        first, second = measured_steps(vit({"patch_size": 4}), config, 24, precision, **options)
        assert (first.predicted.flops, second.predicted.flops) == (first.flops, second.flops), config
        assert second.peak_error <= 0.005, config


@pytest.mark.parametrize("name", METHODS)
def test_losses_stay_gradients_are_near_and_less_is_held(name: str) -> None:
    for config in configs(name):
        exact, ours = (build_method(config, vit(), TrainConfig(**options)) for options in ({}, APPROXIMATE))
        assert torch.equal(step(exact), step(ours))
        for where, gradient in gradients(exact.model).items():
            if gradient.norm() > 1e-6:  # of an attention's biases rounding alone is left
                near = F.cosine_similarity(gradient.flatten(), gradients(ours.model)[where].flatten(), dim=0)
                assert near > 0.98, (config, where)
        assert ours.model.state_dict().keys() == exact.model.state_dict().keys()
        images, _ = batch()
        assert torch.equal(predict(ours.model.eval(), images), predict(exact.model.eval(), images))
    first, _ = measured_steps(vit({"patch_size": 4}), configs("full")[0], 24)
    saved, _ = measured_steps(vit({"patch_size": 4}), configs("full")[0], 24, **APPROXIMATE)
    assert saved.predicted.held_bytes < 0.85 * first.predicted.held_bytes


def test_it_is_taken_off_again_and_refused_where_there_is_no_gelu() -> None:
    model, config = vit(), configs("full")[0]
    for kind in ("approximate", "exact"):
        build_method(config, model, TrainConfig(activations=kind))  # type: ignore[arg-type]
        on = {isinstance(block.mlp.act, ApproximateGelu) for block in model.blocks}  # type: ignore[union-attr]
        assert on == {kind == "approximate"}
    with pytest.raises(ConfigError, match=r"^train.activations = approximate: the model's blocks have .*, no GELU;"):
        build_method(config, small("eva02_tiny_patch14_224"), TrainConfig(**APPROXIMATE))
