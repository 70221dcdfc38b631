"""Each choice in closed form: numbers in, a setting out."""

import math

import pytest

from alast_tune.choices.settings import (
    Machine,
    batch_size,
    epoch_count,
    image_side,
    loader_count,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("own", "patch", "side", "chosen"),
    [
        (224, 16, 500, 224),  # the model's own
        (224, 16, 224, 224),
        (224, 16, 64, 64),  # as small as the images
        (224, 16, 65, 80),  # the next multiple of the patch
        (224, 16, 8, 64),  # four patches at least
        (518, 14, 640, 224),  # a large model's own costs five times as much
        (384, 16, 640, 224),
        (518, 14, 64, 70),
        (224, 32, 100, 128),
        (32, 4, 32, 32),
        (32, 4, 16, 16),
        (8, 4, 100, 8),
    ],
)
def test_images_are_the_models_own_size_or_smaller(own: int, patch: int, side: int, chosen: int) -> None:
    assert image_side(own, patch, side) == chosen
    assert chosen % patch == 0


@pytest.mark.parametrize(
    ("images", "batch"), [(1, 8), (256, 8), (511, 8), (512, 16), (2955, 64), (4096, 128), (10**6, 128)]
)
def test_a_batch_leaves_32_steps_an_epoch(images: int, batch: int) -> None:
    assert batch_size(images, lambda batch: 0, math.inf) == batch


@pytest.mark.parametrize(("limit", "batch"), [(129, 128), (128, 128), (127, 64), (64, 64), (20, 16), (8, 8), (1, 8)])
def test_a_batch_is_halved_until_full_fine_tuning_fits(limit: int, batch: int) -> None:
    assert batch_size(10**6, float, limit) == batch


@pytest.mark.parametrize(
    ("images", "batch", "steps", "epochs"),
    [
        (2955, 64, 300, 7),
        (177, 100, 300, 20),  # one step an epoch: the incomplete batch is left out
        (177, 24, 100, 15),  # seven
        (2955, 64, 1000, 20),
        (10**6, 128, 1000, 4),
        (640, 64, 100, 10),
        (641, 64, 110, 11),
        (1, 8, 300, 20),
    ],
)
def test_epochs_make_about_so_many_steps_between_4_and_20(images: int, batch: int, steps: int, epochs: int) -> None:
    assert epoch_count(images, batch, steps) == epochs


def test_a_machine_limits_memory_by_its_card_else_by_its_own() -> None:
    assert Machine(2, 8 * GIB).limit_bytes == 6 * GIB
    assert Machine(2, 8 * GIB, card_bytes=4 * GIB).limit_bytes == 3 * GIB
    assert Machine(2, 0).limit_bytes == math.inf


def test_processes_decode_for_a_card_and_threads_for_a_cpu() -> None:
    assert loader_count(Machine(64, GIB)) == 0
    assert [loader_count(Machine(cpus, GIB, GIB)) for cpus in (1, 2, 6, 64)] == [0, 1, 3, 4]
