"""Pictures as a model sees them: resized as timm does, kept small where they are, left to processes that stay."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from alast_tune.config import DataConfig, ModelConfig
from alast_tune.data import load_splits, train_loader
from alast_tune.data.images import Preparation, enlarges_as_pillow
from alast_tune.models import InputSpec, Resizing, create_model, input_spec
from tests.pictures import write_images
from tests.unit.data.pictures import SPEC, all_of, files_of, load, seen

MODELS = ["deit_tiny_patch16_224", "eva02_tiny_patch14_336", "vit_base_patch32_clip_448.laion2b_ft_in12k_in1k"]
"""Of 0.9 of the shorter side; all of the shorter side; squashed."""


@pytest.fixture
def pictures(tmp_path):
    """Upright, wide and small ones."""
    for part, count in (("train", 3), ("val", 2)):
        for name, shape in (("ant", (90, 160)), ("bee", (300, 120)), ("cat", (20, 31))):
            write_images(tmp_path / part / name, count, shape)
    return tmp_path


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_timms_transforms_are_those_of_evaluation_with_timm(pictures, name, cache):
    model = timm.create_model(name, pretrained=False, num_classes=3, img_size=56 if "14" in name else 64)
    spec = input_spec(model)
    data = DataConfig(dataset="folder", root=pictures, transforms="timm", cache=cache)
    splits = load_splits(data, spec)
    evaluation = create_transform(**resolve_data_config({"img_size": spec.image_size}, model.pretrained_cfg))
    for split in (splits.train, splits.validation):
        expected = torch.stack([evaluation(Image.open(file)) for file in files_of(split)])
        (images, _), *more = seen(train_loader(split, 100, 0, torch.Generator()))
        assert not more and torch.allclose(all_of(split), expected, atol=1e-6)
        assert torch.allclose(images.sum(), expected.sum(), rtol=1e-4)
    squashed = load_splits(data.model_copy(update={"transforms": "paper"}), spec)
    assert not torch.allclose(all_of(squashed.validation), all_of(splits.validation))
    assert (squashed.spec.resizing, splits.spec) == (Resizing(), spec)


def test_digits_are_enlarged_whatever_the_transforms():
    spec = input_spec(create_model(ModelConfig()))
    splits = load_splits(DataConfig(transforms="timm", train_images=20), spec)
    plain = load_splits(DataConfig(train_images=20), spec)
    assert splits.spec == plain.spec != spec
    assert torch.equal(all_of(splits.train), all_of(plain.train))


@pytest.mark.parametrize(("side", "size"), [(32, 224), (32, 96), (32, 384)])
def test_small_bytes_enlarged_with_a_batch_are_pillows(side, size):
    assert enlarges_as_pillow(side, size)
    bytes_HWC = np.random.default_rng(1).integers(0, 256, (5, side, side, 3), np.uint8)
    large = [Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR) for one in bytes_HWC]
    prepared, expected = (
        Preparation(InputSpec(size, SPEC.mean, SPEC.std))(torch.from_numpy(np.stack(of)).permute(0, 3, 1, 2), None)
        for of in (bytes_HWC, [np.asarray(image) for image in large])
    )
    assert torch.equal(prepared, expected)


def test_small_floats_on_a_card_are_within_a_level():
    """Bytes are enlarged as numbers there, rounded once instead of twice."""
    bytes_BCHW = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32), np.uint8))
    once = torch.nn.functional.interpolate(bytes_BCHW.float(), (224, 224), mode="bilinear", antialias=True).round()
    spec = InputSpec(224, (0.0,) * 3, (1 / 255,) * 3)
    assert (Preparation(spec)(bytes_BCHW, None) - once).abs().max() <= 1.001


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on, of a process with threads
def test_loader_processes_stay_and_know_nothing_of_an_epoch(divided):
    train = load("folder", root=divided, cache="none", workers=2, augment="crop").train

    def epoch(number, workers):
        of = train.drawn(np.random.SeedSequence([number]))
        return list(seen(train_loader(of, 4, workers, torch.Generator().manual_seed(number))))

    def processes():
        return [process.pid for process in train.loaders[2]._iterator._workers]

    started = []
    for number in (0, 1):
        for ours, alone in zip(epoch(number, 2), epoch(number, 0), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, alone, strict=True))
        started.append(processes())
    assert started[0] == started[1]
    next(iter(train_loader(train, 4, 2, torch.Generator())))  # broken off
    assert len(epoch(2, 2)) == 3
    assert processes() == started[0]


def test_batches_are_bytes_until_they_are_prepared(divided):
    train = load("folder", root=divided).train
    (batch, labels), *_ = train_loader(train, 4, 0, torch.Generator())
    assert (batch.pixels_BCHW.dtype, len(batch), len(labels)) == (torch.uint8, 4, 4)
    (batch, _), *_ = train_loader(load("digits").train, 4, 0, torch.Generator())
    assert batch.pixels_BCHW.shape == (4, 1, 8, 8)
