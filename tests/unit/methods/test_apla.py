"""Attention's output projections train, or a few rows of each; the model computes what it did, and comes out plain."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alast_tune.config import AplaConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods import Apla, build_method
from tests.unit.every_method import DEPTH, MODELS, vit


def apla(model: Any, columns: int | None = None, seed: int = 0) -> Apla:
    method = build_method(AplaConfig(columns=columns), model, TrainConfig(seed=seed))
    assert isinstance(method, Apla)
    return method


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def train(method: Apla, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(method.parameters(), 1e-2, weight_decay=0.1)
    for number in range(steps):
        method.begin_step(number)
        (method.forward(images()) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()


def moved(model: Any, options: dict[str, Any] | None = None) -> dict[str, list[int]]:
    """Names of the parameters that differ from a new model's, and which of their rows."""
    rows: dict[str, list[int]] = {}
    for (name, now), before in zip(model.named_parameters(), vit(options).parameters(), strict=True):
        changed = (now != before).reshape(len(now), -1).any(dim=1).nonzero()[:, 0].tolist()
        if changed:
            rows[name] = changed
    return rows


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("columns", [1, 7, 31])
def test_cut_projections_start_as_timm(options: dict[str, Any], columns: int) -> None:
    torch.testing.assert_close(
        apla(vit(options), columns).forward(images()), vit(options)(images()), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("columns", [None, 5])
def test_projections_get_the_gradients_that_they_get_in_timm(columns: int | None) -> None:
    method, twin = apla(vit(), columns), vit()
    method.forward(images()).square().mean().backward()
    twin(images()).square().mean().backward()
    for block, other in zip(method.model.blocks, twin.blocks, strict=True):
        whole, proj = other.attn.proj, block.attn.proj
        rows = slice(None) if columns is None else proj.back.argsort()[:columns]
        part = proj if columns is None else proj.trained
        torch.testing.assert_close(part.weight.grad, whole.weight.grad[rows])
        torch.testing.assert_close(part.bias.grad, whole.bias.grad[rows])


def test_only_the_projections_and_the_classifier_train() -> None:
    method = apla(vit())
    train(method)
    expected = {f"blocks.{block}.attn.proj.{part}" for block in range(DEPTH) for part in ("weight", "bias")}
    assert set(moved(method.model)) == expected | {"head.weight", "head.bias"}
    assert method.plan.trainable_L == (True,) * DEPTH
    assert method.plan.tokens_L == (17,) * DEPTH


@pytest.mark.parametrize("columns", [1, 5, 31])
def test_of_cut_projections_only_the_drawn_rows_train(columns: int) -> None:
    method = apla(vit(), columns)
    train(method)
    rows = moved(method.export())
    assert set(rows.pop("head.weight")) == set(rows.pop("head.bias")) == set(range(10))
    assert set(rows) == {f"blocks.{block}.attn.proj.{part}" for block in range(DEPTH) for part in ("weight", "bias")}
    for block in range(DEPTH):
        drawn = method.model.blocks[block].attn.proj.back.argsort()[:columns].sort().values.tolist()
        assert len(set(drawn)) == columns
        assert rows[f"blocks.{block}.attn.proj.weight"] == rows[f"blocks.{block}.attn.proj.bias"] == drawn
    trained = {id(p) for p in method.parameters()}
    assert trained == {id(p) for p in method.model.parameters() if p.requires_grad}
    assert sum(p.numel() for p in method.parameters()) == DEPTH * columns * 33 + 330


@pytest.mark.parametrize("options", [*MODELS.values(), {"proj_bias": False}], ids=str)
@pytest.mark.parametrize("columns", [None, 5])
def test_what_comes_out_is_plain_timm(options: dict[str, Any], columns: int | None) -> None:
    method = apla(vit(options), columns)
    train(method)
    before = {name: tensor.clone() for name, tensor in method.model.state_dict().items()}
    plain = vit(options)
    plain.load_state_dict(method.export().state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(plain(images()), method.model(images()), atol=1e-5, rtol=1e-5)
    assert (method.export() is method.model) == (columns is None)
    train(method, steps=1)  # the export took nothing away
    assert any(not torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())


def test_the_seed_alone_says_which_rows_train() -> None:
    def drawn(seed: int, elsewhere: int) -> list[list[int]]:
        model = vit()
        torch.manual_seed(elsewhere)
        return [block.attn.proj.back.tolist() for block in apla(model, 5, seed).model.blocks]

    assert drawn(3, 0) == drawn(3, 1)
    assert drawn(3, 0) != drawn(4, 0)
    assert len({tuple(rows) for rows in drawn(3, 0)}) == DEPTH  # each block draws its own


@pytest.mark.parametrize("columns", [32, 33])
def test_as_many_columns_as_there_are_or_more_are_refused(columns: int) -> None:
    model = vit()
    with pytest.raises(ConfigError, match=rf"^method.columns = {columns}: give fewer than 32, or none for all$"):
        apla(model, columns)
    model.load_state_dict(vit().state_dict(), strict=True)  # it was left as it was


@pytest.mark.parametrize("columns", [None, 5])
def test_of_some_blocks_only_their_projections_train_and_nothing_below_keeps_a_graph(columns: int | None) -> None:
    model = vit()
    reached = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: reached.append(output.requires_grad))
    method = build_method(AplaConfig(columns=columns, blocks=(3, 5)), model)
    train(method, steps=1)
    chosen = {f"blocks.{block}.attn.proj.{part}" for block in (3, 5) for part in ("weight", "bias")}
    assert set(moved(method.export())) == chosen | {"head.weight", "head.bias"}
    assert method.plan.trainable_L == (False, False, False, True, False, True)
    assert reached == [False, False, False, True, True]  # of the last one the class token alone is computed


def test_a_block_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^method.blocks = 6: the model has blocks 0 to 5$"):
        build_method(AplaConfig(blocks=(2, 6)), vit())
