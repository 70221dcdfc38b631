"""What autograd keeps for the backward, block by block: nothing where none is needed, little for few tokens."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from alast_tune.config import TrialConfig
from alast_tune.methods import Method, build_method
from tests.unit.every_method import DEPTH, vit
from tests.unit.kept import Kept, watch

BATCH = 8


def by_block(kept: Kept) -> list[int]:
    return [kept.bytes.get(f"block {index}", 0) for index in range(DEPTH)]


def build(values: dict[str, Any]) -> Method:
    return build_method(TrialConfig.model_validate({"method": values}).method, vit({"patch_size": 4}))


def steps(method: Method, count: int) -> Iterator[Kept]:
    """Steps of a method, and what each kept."""
    generator = torch.Generator().manual_seed(7)
    for number in range(count):
        images = torch.randn(BATCH, 3, 32, 32, generator=generator)
        labels = torch.randint(0, 10, (BATCH,), generator=generator)
        method.begin_step(number)
        with watch(method.model, images, labels) as kept:
            loss = F.cross_entropy(method.forward(images), labels)
        loss.backward()
        yield kept
        method.model.zero_grad(set_to_none=True)
        method.end_step()


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("reading", ["paper", "authors", "fast"])
def test_residual_frozen_blocks_save_nothing_at_all(reading: str, embeddings: bool) -> None:
    values = {"name": "alast", "reading": reading, "trainable_blocks": 2, "train_embeddings": embeddings}
    method = build(values | {"frozen_backward": "residual"})
    for kept in steps(method, 6):
        for trains, saved in zip(method.plan.trainable_L, by_block(kept), strict=True):
            assert (saved > 0) == trains


def test_exact_frozen_blocks_save_less_than_trained_ones_and_below_the_lowest_nothing() -> None:
    method = build({"name": "alast", "reading": "paper", "trainable_blocks": 2, "alpha": 0.0})
    above = below = 0
    for kept in steps(method, 12):
        assert len(set(method.plan.tokens_L)) == 1  # else blocks could not be compared
        lowest = method.plan.trainable_L.index(True)
        trained = [n for n, trains in zip(by_block(kept)[:-1], method.plan.trainable_L, strict=False) if trains]
        assert by_block(kept)[:lowest] == [0] * lowest
        for index in range(lowest + 1, DEPTH - 1):  # of the last one it is the class token's alone
            if not method.plan.trainable_L[index]:
                # Not the inputs of its four linear layers, that is two normalised ones and the activation's output.
                assert 0 < by_block(kept)[index] < 0.75 * min(trained)
                above += 1
        below += lowest
    assert above > 5 and below > 5


@pytest.mark.parametrize("backward", ["exact", "residual"])
def test_where_no_block_trains_none_saves(backward: str) -> None:
    method = build({"name": "alast", "trainable_blocks": 0, "frozen_backward": backward})
    for kept in steps(method, 2):
        assert by_block(kept) == [0] * DEPTH
        assert sum(kept.bytes.values()) < 6 * 4 * BATCH * 65 * 32  # norm and classifier alone


@pytest.mark.parametrize("name", ["head", "top_k", "bsr"])
def test_rivals_save_nothing_below_the_lowest_trained_block(name: str) -> None:
    method = build({"name": name} | ({} if name == "head" else {"blocks": (3, 5)}))
    (kept,) = steps(method, 1)
    assert [saved > 0 for saved in by_block(kept)] == [name != "head" and index >= 3 for index in range(DEPTH)]


def test_dropped_tokens_are_not_kept() -> None:
    few, all_of_them = (
        by_block(next(steps(build({"name": "alast", "trainable_blocks": DEPTH, "initial_budget": budget}), 1)))
        for budget in (0.25, 1.0)
    )
    assert few[0] == pytest.approx(all_of_them[0], rel=0.05)
    for one, other in zip(few[1:-1], all_of_them[1:-1], strict=True):
        assert one == pytest.approx(other * 17 / 65, rel=0.05)
    assert few[-1] < all_of_them[-1] < all_of_them[1] / 3  # keys and values, and the class token's
