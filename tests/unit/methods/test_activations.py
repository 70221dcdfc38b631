"""What autograd really keeps for the backward: nothing where none is needed, and in all what the meter foretells."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost.step import StepOnTape
from alast_tune.methods import Method, build_method
from tests.unit.every_method import DEPTH, MODELS, vit

BATCH = 8


class Kept:
    """Storages saved for the backward, parameters and inputs left out, by the place where they were saved first."""

    def __init__(self, *left_out: Tensor) -> None:
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in left_out}
        self._held: list[Tensor] = []  # or an address could come again
        self._seen: set[int] = set()
        self.place = "outside"
        self.bytes: dict[str, int] = {}

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._left_out | self._seen:
            self._seen.add(storage.data_ptr())
            self._held.append(tensor.detach())
            self.bytes[self.place] = self.bytes.get(self.place, 0) + storage.nbytes()
        return tensor

    @property
    def blocks(self) -> list[int]:
        return [self.bytes.get(f"block {index}", 0) for index in range(DEPTH)]


@contextmanager
def watch(model: Any, *inputs: Tensor) -> Iterator[Kept]:
    """Count what is saved inside, and in which block."""
    kept = Kept(*model.parameters(), *model.buffers(), *inputs)

    def at(place: str) -> Any:
        return lambda *_: setattr(kept, "place", place)

    handles = [block.register_forward_pre_hook(at(f"block {index}")) for index, block in enumerate(model.blocks)]
    handles += [block.register_forward_hook(at("outside")) for block in model.blocks]
    with torch.autograd.graph.saved_tensors_hooks(kept.save, lambda tensor: tensor):
        yield kept
    for handle in handles:
        handle.remove()


def build(values: dict[str, Any], options: dict[str, Any] | None = None, seed: int = 0) -> Method:
    config = TrialConfig.model_validate({"method": values}).method
    return build_method(config, vit((options or {}) | {"patch_size": 4}), TrainConfig(seed=seed))


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
        for trains, saved in zip(method.plan.trainable_L, kept.blocks, strict=True):
            assert (saved > 0) == trains


def test_exact_frozen_blocks_save_less_than_trained_ones_and_below_the_lowest_nothing() -> None:
    method = build({"name": "alast", "reading": "paper", "trainable_blocks": 2, "alpha": 0.0})
    above = below = 0
    for kept in steps(method, 12):
        assert len(set(method.plan.tokens_L)) == 1  # else blocks could not be compared
        lowest = method.plan.trainable_L.index(True)
        trained = [n for n, trains in zip(kept.blocks, method.plan.trainable_L, strict=True) if trains]
        assert kept.blocks[:lowest] == [0] * lowest
        for index in range(lowest + 1, DEPTH):
            if not method.plan.trainable_L[index]:
                # Not the inputs of its four linear layers, that is two normalised ones and the activation's output.
                assert 0 < kept.blocks[index] < 0.75 * min(trained)
                above += 1
        below += lowest
    assert above > 5 and below > 5


@pytest.mark.parametrize("backward", ["exact", "residual"])
def test_where_no_block_trains_none_saves(backward: str) -> None:
    method = build({"name": "alast", "trainable_blocks": 0, "frozen_backward": backward})
    for kept in steps(method, 2):
        assert kept.blocks == [0] * DEPTH
        assert sum(kept.bytes.values()) < 6 * 4 * BATCH * 65 * 32  # norm and classifier alone


@pytest.mark.parametrize("name", ["head", "top_k", "bsr"])
def test_rivals_save_nothing_below_the_lowest_trained_block(name: str) -> None:
    method = build({"name": name} | ({} if name == "head" else {"blocks": (3, 5)}))
    (kept,) = steps(method, 1)
    assert [saved > 0 for saved in kept.blocks] == [name != "head" and index >= 3 for index in range(DEPTH)]


def test_dropped_tokens_are_not_kept() -> None:
    few, all_of_them = (
        next(steps(build({"name": "alast", "trainable_blocks": DEPTH, "initial_budget": budget}), 1)).blocks
        for budget in (0.25, 1.0)
    )
    assert few[0] == pytest.approx(all_of_them[0], rel=0.05)
    for one, other in zip(few[1:], all_of_them[1:], strict=True):
        assert one == pytest.approx(other * 17 / 65, rel=0.05)


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "top_k": {"name": "top_k", "blocks": (1, 4)},
    "bsr": {"name": "bsr", "blocks": (2, 5), "keep": 0.5},
    "tome": {"name": "tome", "merge": 6},
    "lora": {"name": "lora"},
    "apla": {"name": "apla"},
    "apla, some columns": {"name": "apla", "columns": 9},
    "paper": {"name": "alast", "reading": "paper", "trainable_blocks": 3, "initial_budget": 0.6},
    "authors": {"name": "alast", "reading": "authors", "trainable_blocks": 3},
    "fast": {"name": "alast", "trainable_blocks": 3},
    "fast, residual": {"name": "alast", "trainable_blocks": 3, "frozen_backward": "residual"},
    "lora+alast": {"name": "alast", "trainable_blocks": 3, "lora": {"rank": 4}},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_meter_foretells_what_is_kept(setting: str, options: dict[str, Any]) -> None:
    method = build(SETTINGS[setting], options)
    for kept in steps(method, 3):
        tape = StepOnTape(method.model, method.config, method.plan, 32, BATCH).run()
        assert tape.held_bytes == pytest.approx(sum(kept.bytes.values()), rel=0.01 if setting == "tome" else 0.001)
