"""Labels that are smoothed and images that are mixed, against torch's and timm's own."""

from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from torch.nn import functional as F

from alast_tune.config import TrainConfig, TrialConfig, parse
from alast_tune.errors import ConfigError
from alast_tune.losses import Mixture, check_pairs, draw_mixture, mix, mixed, partners, training_loss

CLASSES = 5


def batch(size: int = 6, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, side, side, generator=generator)
    return images, torch.randint(0, CLASSES, (size,), generator=generator)


def test_without_any_of_it_the_step_is_as_it_was() -> None:
    images, labels = batch()
    same, also, share = mixed(TrainConfig(), 3, images, labels)
    assert same is images and also is labels and share == 1
    logits = torch.randn(6, CLASSES)
    assert torch.equal(training_loss(logits, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_timms_of_a_mixed_target(smoothing: float) -> None:
    """timm writes a row of all classes for each image; two labels and a share say the same."""
    _, labels = batch()
    logits, share = torch.randn(6, CLASSES), 0.3
    # timm pairs the first with the last, the second with the one before, and so on.
    target = mixup_target(labels, CLASSES, share, smoothing)
    pairs = torch.stack([labels, labels.flip(0)], dim=1)
    expected = F.cross_entropy(logits, target)
    torch.testing.assert_close(training_loss(logits, pairs, smoothing, share), expected)
    whole = training_loss(logits, labels, smoothing)
    torch.testing.assert_close(whole, F.cross_entropy(logits, labels, label_smoothing=smoothing), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed_as_timm_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pairs are the two ends of the batch and ours neighbours, which of two images is the same."""
    draw = np.random.default_rng(0)
    theirs = Mixup(**{"mixup_alpha": 0.0, f"{kind}_alpha": 1.0}, label_smoothing=0.0, num_classes=CLASSES)
    monkeypatch.setattr(np.random, "rand", lambda: 0.0)
    for _ in range(30):
        images, labels = torch.randn(2, 3, 20, 12), torch.randint(0, CLASSES, (2,))
        share, down, along = float(draw.beta(1, 1)), int(draw.integers(20)), int(draw.integers(12))
        centre = iter([down, along])
        monkeypatch.setattr(np.random, "beta", lambda *_, share=share: share)
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        expected, target = theirs(images.clone(), labels.clone())
        box = None if kind == "mixup" else ((1 - share) ** 0.5, (down + 0.5) / 20, (along + 0.5) / 12)
        ours, pairs, own = mix(Mixture(share, box), images, labels)
        torch.testing.assert_close(ours, expected)
        rows = F.one_hot(pairs, CLASSES) * torch.tensor([own, 1 - own])[:, None]
        torch.testing.assert_close(rows.sum(dim=1), target)


def test_pairs_are_neighbours_and_the_last_of_an_odd_batch_stays() -> None:
    assert partners(5).tolist() == [1, 0, 3, 2, 4]
    images, labels = batch(size=5)
    made, pairs, _ = mix(Mixture(0.25), images, labels)
    torch.testing.assert_close(made[4], images[4])
    assert pairs[4].tolist() == [labels[4]] * 2
    torch.testing.assert_close(made[0], 0.25 * images[0] + 0.75 * images[1])


def test_a_share_of_a_batch_is_mixed_as_the_whole_is() -> None:
    """So that two ranks equal one process, and a step that is repeated is the same."""
    train = TrainConfig(mixup=0.8, cutmix=1.0, seed=3)
    images, labels = batch(size=8)
    kinds = set()
    for step in range(12):
        whole, pairs, share = mixed(train, step, images, labels)
        parts = [mixed(train, step, images[half], labels[half]) for half in (slice(0, 4), slice(4, 8))]
        assert torch.equal(whole, torch.cat([part[0] for part in parts]))
        assert torch.equal(pairs, torch.cat([part[1] for part in parts]))
        assert {part[2] for part in parts} == {share}
        kinds.add(draw_mixture(train, step).box is None)
    assert kinds == {True, False}
    assert draw_mixture(train, 1) != draw_mixture(train, 2) != draw_mixture(train.model_copy(update={"seed": 4}), 2)


def test_batches_that_ranks_cannot_share_in_pairs_are_refused() -> None:
    train = TrainConfig(mixup=0.8, batch_size=128)
    check_pairs(train, 1000, 2)
    check_pairs(train, 13, 1)
    check_pairs(TrainConfig(), 13, 2)
    with pytest.raises(ConfigError, match=r"train.batch_size = 128: its 14 images are mixed in pairs, which 2 ranks"):
        check_pairs(train, 14, 2)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_features_of_whole_images_cannot_be_mixed(name: str) -> None:
    values: dict[str, Any] = {"data": {"features": "auto"}, "train": {name: 1.0}}
    with pytest.raises(
        ConfigError, match=rf"train.{name} = 1.0: features are kept of whole images; leave it out, or set"
    ):
        parse(TrialConfig, values)
