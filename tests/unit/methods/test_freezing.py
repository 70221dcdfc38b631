"""`full` is timm itself; `head` trains the classifier alone, `top_k` a few blocks, named or found by their probes."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import FullConfig, HeadConfig, MethodConfig, TopKConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods import Method, build_method, most_influential, with_blocks_chosen
from tests.unit.every_method import DEPTH, vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def trained(config: MethodConfig, model: VisionTransformer) -> tuple[Method, set[str]]:
    """One step, and the names of the parameters that got a gradient."""
    method = build_method(config, model)
    method.begin_step(0)
    method.forward(IMAGES).square().mean().backward()
    method.end_step()
    return method, {name for name, p in model.named_parameters() if p.grad is not None}


def named(model: VisionTransformer, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


def test_full_trains_everything() -> None:
    method, names = trained(FullConfig(), model := vit())
    assert names == named(model, "")
    assert method.plan.trainable_L == (True,) * DEPTH
    assert method.plan.tokens_L == (17,) * DEPTH


def test_head_trains_the_classifier_alone() -> None:
    method, names = trained(HeadConfig(), model := vit())
    assert names == {"head.weight", "head.bias"}
    assert method.parameters() == list(model.head.parameters())
    assert method.plan.trainable_L == (False,) * DEPTH


@pytest.mark.parametrize("blocks", [(0,), (1, 3, 4), (5, 2), tuple(range(DEPTH))], ids=str)
def test_top_k_trains_its_blocks_the_final_norm_and_the_classifier(blocks: tuple[int, ...]) -> None:
    method, names = trained(TopKConfig(blocks=blocks), model := vit())
    assert names == named(model, "norm.", "head.", *(f"blocks.{block}." for block in blocks))
    assert {id(p) for p in method.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    assert method.plan.trainable_L == tuple(block in blocks for block in range(DEPTH))
    assert method.plan.tokens_L == (17,) * DEPTH


def test_most_influential_blocks_are_those_whose_probes_ended_lowest() -> None:
    assert most_influential([0.5, 0.1, 0.4, 0.2], 2) == (1, 3)
    assert most_influential([0.5, 0.1, 0.4, 0.2], 4) == most_influential([0.5, 0.1, 0.4, 0.2], 9) == (0, 1, 2, 3)
    assert most_influential([0.3, 0.2, 0.2, 0.2], 2) == (1, 2)  # ties go to the earlier


def test_a_probe_that_diverged_is_the_least_influential() -> None:
    nan = float("nan")
    for losses in ([nan, 0.3, 0.2], [0.3, nan, 0.2], [0.3, 0.2, nan], [float("inf"), 0.3, 0.2]):
        chosen = most_influential(losses, 2)
        assert sorted(losses[block] for block in chosen) == [0.2, 0.3], losses


def test_where_every_probe_diverged_that_is_said() -> None:
    with pytest.raises(DivergedError, match=r"^every block's probe has diverged; lower train\.learning_rate$"):
        most_influential([float("nan"), float("inf")], 1)


def test_blocks_left_open_are_those_found_or_the_first_and_others_stay() -> None:
    assert with_blocks_chosen(TopKConfig(count=2)) == TopKConfig(count=2, blocks=(0, 1))
    assert with_blocks_chosen(TopKConfig(count=2), [3, 5]) == TopKConfig(count=2, blocks=(3, 5))
    assert with_blocks_chosen(TopKConfig(blocks=(4,)), [3, 5]) == TopKConfig(blocks=(4,))
    assert with_blocks_chosen(FullConfig(), [3]) == FullConfig()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, r"^method.blocks = None: no block is chosen: explore first \(fit does\), or name some$"),
        ({"blocks": (0, 3, 3)}, r"^method.blocks = 3: is there twice; name each block once$"),
        ({"blocks": (0, 6)}, r"^method.blocks = 6: the model has blocks 0 to 5$"),
    ],
)
def test_blocks_that_cannot_be_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_method(TopKConfig.model_validate(options), vit())


@pytest.mark.parametrize("blocks", [(), (-1,)], ids=str)
def test_no_blocks_and_negative_ones_are_no_setting(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        TopKConfig(blocks=blocks)
