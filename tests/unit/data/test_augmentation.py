"""Augmentations: what torchvision and timm do to one image at a time, here to batches, by draws of each image's own."""

import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.nn import functional as F
from torchvision.transforms import v2

from alast_tune.data import Batch, prepare
from alast_tune.data.augmentation import AUGMENTATIONS, LEVELS, OPERATIONS, crop, erase, operate, rectangles
from alast_tune.data.images import Preparation
from alast_tune.models import InputSpec
from tests.unit.data.pictures import all_of, load

NAMES = [*v2.TrivialAugmentWide._AUGMENTATION_SPACE]
"""torchvision's, in the same order as ours."""


def chance(images, numbers, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((images, numbers)))


def pictures(count, size):
    smooth = F.interpolate(torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)), (size, size))
    return F.avg_pool2d(255 * smooth, 3, 1, 1).round().to(torch.uint8)


def seed(number):
    return np.random.SeedSequence([number])


@pytest.mark.parametrize("wide", [True, False], ids=["trivial", "rand"])
@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_an_operation_is_torchvisions(number, wide):
    theirs = v2.TrivialAugmentWide() if wide else v2.RandAugment()
    assert list(theirs._AUGMENTATION_SPACE) == NAMES
    magnitudes, signed = theirs._AUGMENTATION_SPACE[NAMES[number]]
    found = magnitudes(LEVELS, 40, 40)
    images, level, sign = pictures(LEVELS, 40), np.arange(LEVELS), np.where(np.arange(LEVELS) % 2, -1, 1)
    expected = []
    for image, at, way in zip(images, level, sign, strict=True):
        magnitude = 0.0 if found is None else float(found[at]) * (way if signed else 1)
        setup = magnitude, v2.InterpolationMode.NEAREST, defaultdict(lambda: None)
        expected.append(theirs._apply_image_or_video_transform(image, NAMES[number], *setup))
    ours = operate(OPERATIONS[number], images.clone(), level, sign, wide=wide)
    differ = (ours.int() - torch.stack(expected).int()).abs()
    # Sums in another order: a level of a colour, or a neighbour where two pixels are as near.
    assert (differ > 1).float().mean() < 2e-3
    assert (differ > 0).float().mean() < 5e-3
    assert ours.dtype == torch.uint8


def test_a_crop_is_its_part_of_the_image_enlarged():
    images, draws = pictures(20, 24), chance(20, 5)
    top, left, height, width = rectangles(draws[:, :4].numpy(), 24, (0.08, 1.0), 4 / 3)
    for index, ours in enumerate(crop(images, draws)):
        box = int(top[index]), int(left[index]), int(height[index]), int(width[index])
        theirs = v2.functional.resized_crop(images[index], *box, [24, 24], antialias=True)
        theirs = theirs.flip(-1) if draws[index, 4] < 0.5 else theirs
        assert (ours.int() - theirs.int()).abs().max() <= 1
    assert len({tuple(box) for box in zip(top, left, height, width, strict=True)}) > 15


def test_rectangles_are_drawn_as_timm_draws_them():
    """Area, ratio and place have the same distribution: quantiles of many, ours against theirs."""
    count, side = 6000, 200
    ours = np.stack(rectangles(chance(count, 4).numpy(), side, (0.08, 1.0), 4 / 3), axis=1)
    image = Image.new("L", (side, side))
    random.seed(0)
    draw = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([draw(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])
    for of in (
        lambda box: box[:, 2] * box[:, 3] / side**2,
        lambda box: np.log(box[:, 2] / box[:, 3]),
        lambda box: box[:, 0] / side,
        lambda box: box[:, 1] / side,
    ):
        quantiles = [np.quantile(of(boxes), np.linspace(0.05, 0.95, 10)) for boxes in (ours, theirs)]
        assert np.allclose(*quantiles, atol=0.035)
    top, left, height, width = ours.T
    assert (ours >= 0).all() and ((top + height) <= side).all() and ((left + width) <= side).all()


def test_erasing_takes_rectangles_from_a_share_of_the_images_as_timm_does():
    count, size = 3000, 32
    images = torch.ones(count, 3, size, size)
    random.seed(0)
    ours = 1 - erase(images.clone(), chance(count, 5), 0.25)[:, 0]
    theirs = 1 - RandomErasing(0.25, device="cpu")(images.clone())[:, 0]
    for erased in (ours, theirs):
        area = erased.mean((1, 2))
        assert (area > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
        assert area[area > 0].mean().item() == pytest.approx(0.175, abs=0.015)
    boxes = [torch.nonzero(one) for one in ours if one.any()]
    assert all((box.amax(0) - box.amin(0) + 1).prod() == len(box) for box in boxes)  # nothing but rectangles


@pytest.mark.parametrize("dataset", ["folder", "digits"])
@pytest.mark.parametrize(("augment", "erasing"), [*((name, 0.5) for name in AUGMENTATIONS), ("crop", 0.0)])
def test_an_image_is_the_same_whatever_batch_it_is_in(divided, augment, erasing, dataset):
    root = {"root": divided} if dataset == "folder" else {"train_images": 12}
    splits = load(dataset, augment=augment, random_erasing=erasing, **root)
    one, other = splits.train.drawn(seed(4)), splits.train.drawn(seed(5))
    together = all_of(one)
    torch.rand(3)
    assert torch.equal(together, torch.stack([one[index][0] for index in range(12)]))
    assert torch.equal(together[[7, 2]], splits.train.drawn(seed(4)).__getitems__([7, 2])[0])
    assert not torch.equal(together, all_of(other))
    assert one.drawing() != other.drawing() and one.drawing() == splits.train.drawn(seed(4)).drawing()
    assert together.dtype == torch.float32 and together.isfinite().all() and together.shape == (12, 3, 16, 16)
    plain = load(dataset, **root)
    assert torch.equal(all_of(splits.validation.drawn(seed(4))), all_of(plain.validation))


def test_erasing_changes_nothing_about_the_rest(divided):
    crops, erased = (
        all_of(load("folder", root=divided, augment="crop", random_erasing=erasing).train.drawn(seed(1)))
        for erasing in (0.0, 1.0)
    )
    assert torch.equal(erased, torch.where(erased == 0, erased, crops))
    assert (erased == 0).flatten(1).any(1).all()


def test_what_a_batch_holds_is_left_as_it_is():
    """A batch is prepared more than once where blocks are explored."""
    train = load("digits", train_images=20, augment="trivial", random_erasing=1.0).train.drawn(seed(2))
    batch = train.batch([0, 1, 2], train.pixels([0, 1, 2]))
    first, again = (prepare(batch, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.cat([prepare(part, torch.device("cpu")) for part in batch.split(2)]), first)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_host_waits_for_nothing_and_a_card_makes_what_a_cpu_makes(augment):
    preparation = Preparation(InputSpec(48, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)), augment, 0.5)
    draws = preparation.draw(seed(1), 64)
    batch = Batch(pictures(64, 48).pin_memory(), draws, preparation)
    card = torch.device("cuda")
    prepare(batch, card)  # whatever waits but once
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = prepare(batch, card)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    differ = (there.cpu() - prepare(batch, torch.device("cpu"))).abs() * torch.tensor([0.5, 0.25, 0.2])[:, None, None]
    assert (differ > 1.5 / 255).float().mean() < 5e-3
