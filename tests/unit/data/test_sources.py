"""Every source of images gives its splits, augmented for training only; faults are said in one line."""

import hashlib
import json
import os
import pickle
import shutil
import tarfile
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms import v2

from alast_tune.config import DataConfig, ModelConfig
from alast_tune.data import (
    check_classes,
    fingerprint,
    labels_of,
    load_splits,
    num_classes_of,
    paper_augmentation,
    train_loader,
)
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec, Resizing
from tests.pictures import write_images
from tests.unit.data.pictures import SPEC, all_of, files_of, load, refusal

SHARED = Path(os.environ.get("ALAST_TUNE_SHARED", Path(__file__).parents[4] / "shared"))
EMOJI = SHARED / "data" / "emoji57.tar"


@pytest.fixture
def no_network(monkeypatch):
    """Send every request to a port where nobody listens."""
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps the first one, with the proxies of that time
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


class TestDigits:
    def test_shares_sizes_and_range(self):
        splits = load("digits")
        sizes = [len(split) for split in (splits.train, splits.validation, splits.test)]
        assert sum(sizes) == 1797
        assert np.allclose(np.array(sizes) / 1797, (0.6, 0.2, 0.2), atol=0.005)
        image, label = splits.train[0]
        assert (image.shape, image.dtype, int(label)) == ((3, 16, 16), torch.float32, labels_of(splits.train)[0])
        assert splits.num_classes == num_classes_of(DataConfig()) == 10

    def test_images_are_the_digits_normalised(self):
        from sklearn.datasets import load_digits

        digits = load_digits()
        known = {image.astype(int).tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
        # at their own size, interpolation changes nothing
        train = load_splits(DataConfig(), InputSpec(8, SPEC.mean, SPEC.std)).train
        for image, label in train:
            pixels = image * torch.tensor(SPEC.std)[:, None, None] + torch.tensor(SPEC.mean)[:, None, None]
            for channel in (pixels * 16).round().long().numpy():
                assert known[channel.tobytes()] == label

    def test_nothing_stands_on_two_sides(self):
        splits = load("digits")
        rows = torch.cat([all_of(split).flatten(1) for split in (splits.train, splits.validation, splits.test)])
        assert len(torch.unique(rows, dim=0)) == 1797

    def test_all_data_leave_only_test_images_out(self):
        whole, parts = load("digits", all_data=True, train_images=64), load("digits")
        assert len(whole.train) == len(parts.train) + len(parts.validation)
        rows = torch.cat([all_of(split).flatten(1) for split in (whole.train, whole.test)])
        assert len(torch.unique(rows, dim=0)) == 1797

    def test_shares_are_honoured(self):
        splits = load("digits", validation_fraction=0.3, test_fraction=0.1)
        sizes = [len(split) for split in (splits.train, splits.validation, splits.test)]
        assert np.allclose(np.array(sizes) / 1797, (0.6, 0.3, 0.1), atol=0.005)

    def test_none_need_be_tested_on(self):
        splits = load("digits", test_fraction=0)
        assert splits.test is None
        assert len(splits.train) + len(splits.validation) == 1797

    def test_something_is_left_to_train_on(self):
        with pytest.raises(ValueError, match=r"data.validation_fraction = 0.5: leaves nothing to train on beside"):
            DataConfig(validation_fraction=0.5, test_fraction=0.5)

    def test_the_seed_decides(self):
        first = load("digits", split_seed=5)
        again = load("digits", split_seed=5, augment="none", workers=1)
        other = load("digits", split_seed=6)
        assert torch.equal(all_of(first.train), all_of(again.train))
        assert fingerprint(first) == fingerprint(again) != fingerprint(other)

    def test_is_loaded_once(self):
        assert load("digits") is load("digits")

    @pytest.mark.parametrize("augment", ["none", "paper"])
    def test_fewer_training_images_are_balanced(self, augment):
        splits = load("digits", train_images=105, augment=augment)
        assert sorted(np.bincount(labels_of(splits.train))) == [10] * 5 + [11] * 5
        assert len(splits.validation) == len(load("digits").validation)

    def test_too_few_training_images(self):
        assert refusal("digits", train_images=9) == (
            "data.train_images = 9: leaves classes without an image; give 10 at least"
        )


def seed(number):
    return np.random.SeedSequence([number])


def chance(images):
    return torch.rand(images, 5, generator=torch.Generator().manual_seed(0))


class TestAugmentation:
    def test_only_training_images_change(self, divided):
        splits = load("folder", root=divided, augment="paper")
        for part, changes in (("train", True), ("validation", False), ("test", False)):
            split = getattr(splits, part)
            differ = [not torch.equal(split.drawn(seed(n))[0][0], split[0][0]) for n in range(10)]
            assert any(differ) == changes

    def test_also_of_the_digits(self):
        plain, augmented = load("digits"), load("digits", augment="paper")
        draws = [augmented.train.drawn(seed(n))[3] for n in range(12)]
        assert {label for _, label in draws} == {int(plain.train[3][1])}
        assert any(not torch.equal(image, plain.train[3][0]) for image, _ in draws)
        assert torch.equal(all_of(augmented.validation), all_of(plain.validation))

    def test_draws_flips_and_crops_two_at_a_time(self):
        image = torch.arange(1.0, 257).reshape(1, 16, 16)
        draws = paper_augmentation(image.expand(300, 1, 16, 16), chance(300))
        assert draws.shape == (300, 1, 16, 16)
        for symmetry in (image, image.flip(-1), image.flip(-2), image.flip((-1, -2))):
            assert any(torch.equal(draw, symmetry) for draw in draws)
        cropped = sum(bool((draw == 0).any()) for draw in draws) / len(draws)
        assert cropped == pytest.approx(2 / 3 * (1 - 1 / 25), abs=0.1)  # an offset of (0, 0) shows no border
        both = sum(torch.equal(draw, image.flip((-1, -2))) for draw in draws) / len(draws)
        assert both == pytest.approx(1 / 3 / 4 + 2 / 3 / 2 / 25 / 4, abs=0.05)  # flips are drawn apart, for a half each

    def test_each_draw_is_what_torchvision_makes_of_it(self):
        torch.manual_seed(1)
        image = torch.randint(1, 256, (3, 16, 16), dtype=torch.uint8)
        flipped = [v2.functional.horizontal_flip(image), v2.functional.vertical_flip(image)]
        possible = {image.flip((-1, -2)).numpy().tobytes()}
        for one in (image, *flipped):
            padded = v2.functional.pad(one, [2, 2, 2, 2])
            crops = [v2.functional.crop(padded, top, left, 16, 16) for top in range(5) for left in range(5)]
            possible |= {crop.numpy().tobytes() for crop in crops}
        found = {draw.numpy().tobytes() for draw in paper_augmentation(image.expand(2000, 3, 16, 16), chance(2000))}
        assert found == possible

    def test_the_ends_of_chance_are_crops_too(self):
        image = torch.arange(1.0, 257).reshape(1, 1, 16, 16)
        for draw in (0.0, np.nextafter(1, 0)):
            assert paper_augmentation(image, torch.full((1, 5), draw, dtype=torch.float64)).shape == image.shape

    def test_is_each_images_own_whatever_batch_it_is_in_and_whoever_draws_besides(self, divided):
        train = load("folder", root=divided, augment="paper").train
        one, twin, other = train.drawn(seed(4)), train.drawn(seed(4)), train.drawn(seed(5))
        together = one.__getitems__(list(range(12)))[0]
        torch.rand(3)
        assert torch.equal(together[[7, 2]], twin.__getitems__([7, 2])[0])
        assert torch.equal(together, torch.stack([twin[index][0] for index in range(12)]))
        assert not torch.equal(together, other.__getitems__(list(range(12)))[0])


class TestFolder:
    def test_an_undivided_one_is_split(self, flat):
        splits = load("folder", root=flat)
        keys = [{key for key, _ in split.contents()} for split in (splits.train, splits.validation, splits.test)]
        assert set.union(*keys) == {file.relative_to(flat).as_posix() for file in flat.glob("*/*")}
        assert sum(map(len, keys)) == 45
        assert set(labels_of(splits.train)) == {0, 1, 2}
        assert splits.classes == ("ant", "bee", "cat")

    def test_a_file_that_is_added_moves_no_other(self, flat):
        def where(**fields):
            splits = load("folder", root=flat, **fields)
            parts = (splits.train, splits.validation, splits.test)
            return {key: index for index, part in enumerate(parts) for key, _ in part.contents()}

        before = where()
        for name in ("ant", "aardvark", "cat"):
            write_images(flat / name / "new", 5, seed=7)
            write_images(flat / name, 40, seed=8)
        after = where(workers=1)
        assert len(after) > len(before) + 30
        assert before == {key: after[key] for key in before}

    @pytest.mark.parametrize("fields", [{"validation_fraction": 0.3}, {"test_fraction": 0.1}, {"test_fraction": 0.0}])
    def test_shares_of_one_that_is_divided_are_refused(self, divided, fields):
        ((name, value),) = fields.items()
        assert refusal("folder", root=divided, **fields).startswith(f"data.{name} = {value}: ")

    def test_shares_of_an_undivided_one_are_honoured(self, tmp_path):
        write_images(tmp_path / "a", 200, (2, 2), ".bmp")
        write_images(tmp_path / "b", 201, (2, 2), ".bmp")
        splits = load("folder", root=tmp_path, validation_fraction=0.1, test_fraction=0.5)
        assert np.allclose([len(splits.validation) / 401, len(splits.test) / 401], [0.1, 0.5], atol=0.05)
        assert load("folder", root=tmp_path, test_fraction=0.0).test is None

    def test_a_split_that_comes_out_empty(self, tmp_path):
        for name in ("ant", "bee"):
            write_images(tmp_path / name, 2)
        text = refusal("folder", root=tmp_path, validation_fraction=0.01)
        assert text == (
            "data.validation_fraction = 0.01: leaves no validation image of 4; raise it, add images, or divide them "
            "yourself"
        )

    def test_copies_in_two_splits_are_said(self, divided):
        for name in ("000.jpg", "001.jpg"):
            (divided / "test" / "bee" / f"again-{name}").write_bytes((divided / "train" / "ant" / name).read_bytes())
        (note,) = load("folder", root=divided).notes
        assert note == (
            "2 of 6 test images are copies of images in another split, which makes accuracies look better than they "
            "are: bee/again-000.jpg is ant/000.jpg of train; remove them"
        )

    def test_one_image_under_two_labels_is_said(self, divided):
        (divided / "train" / "bee" / "again.jpg").write_bytes((divided / "train" / "ant" / "000.jpg").read_bytes())
        (divided / "train" / "ant" / "again.jpg").write_bytes((divided / "train" / "ant" / "001.jpg").read_bytes())
        (note,) = load("folder", root=divided).notes
        assert note == (
            "1 of 14 train images have a copy of another class in that split: bee/again.jpg is ant/000.jpg; "
            "remove the wrong ones"
        )

    def test_settings_that_do_nothing_are_said(self, divided):
        assert load("folder", root=divided, split_seed=5).notes == (
            "data.split_seed = 5 does nothing: the data come divided",
        )
        assert load("folder", root=divided, split_seed=5, train_images=13).notes == (
            "data.train_images = 13, and there are only 12 training images: all are taken",
        )

    def test_the_fingerprint_is_of_the_content(self, divided, tmp_path):
        before = fingerprint(load("folder", root=divided))
        moved = tmp_path / "moved"
        shutil.copytree(divided, moved)
        (moved / "val").rename(moved / "valid")
        assert fingerprint(load("folder", root=moved, workers=1, augment="paper", cache="none")) == before
        write_images(moved / "test" / "bee", 1, seed=9)
        changed = fingerprint(load("folder", root=moved))
        (moved / "test" / "bee" / "000.jpg").rename(moved / "test" / "bee" / "renamed.jpg")
        assert len({before, changed, fingerprint(load("folder", root=moved, workers=2))}) == 3

    def test_a_divided_one_is_taken_as_it_is(self, divided):
        splits = load("folder", root=divided)
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [12, 6, 4]
        assert {file.parent.parent.name for file in files_of(splits.test)} == {"test"}

    def test_validation_may_have_its_long_name(self, divided):
        (divided / "val").rename(divided / "validation")
        assert len(load("folder", root=divided).validation) == 6

    def test_validation_is_held_out_where_there_is_none(self, divided):
        (divided / "val").rename(divided.parent / "elsewhere")
        (divided / "test").rename(divided.parent / "elsewhere-too")
        splits = load("folder", root=divided, validation_fraction=0.34)
        assert len(splits.train) + len(splits.validation) == 12
        assert splits.test is None

    def test_images_are_resized_whole_and_normalised(self, tmp_path):
        for part in ("train", "val"):
            for name, grey in (("a", 0), ("b", 255)):
                (tmp_path / part / name).mkdir(parents=True)
                half = Image.new("RGB", (40, 20), (grey, grey, grey))
                half.paste((127, 127, 127), (0, 0, 20, 20))
                half.save(tmp_path / part / name / "0.png")
        image, _ = load("folder", root=tmp_path).validation[0]
        pixels = image * torch.tensor(SPEC.std)[:, None, None] + torch.tensor(SPEC.mean)[:, None, None]
        assert pixels.shape == (3, 16, 16)
        assert torch.allclose(pixels[:, :, :7], torch.tensor(127 / 255), atol=0.01)
        assert torch.allclose(pixels[:, :, 9:], torch.tensor(0.0), atol=0.01)

    def test_the_classes_are_counted_without_opening_images(self, flat, divided):
        (flat / "ant" / "000.jpg").write_bytes(b"")
        assert num_classes_of(DataConfig(dataset="folder", root=flat)) == 3
        assert num_classes_of(DataConfig(dataset="folder", root=divided)) == 2

    def test_another_class_name_is_another_fingerprint(self, flat):
        before = fingerprint(load("folder", root=flat))
        (flat / "ant").rename(flat / "aardvark")
        assert before != fingerprint(load("folder", root=flat, split_seed=0, workers=1))

    @pytest.mark.parametrize("kind", ["divided", "flat"])
    def test_all_data_are_training_and_validation_images_each_once(self, kind, request):
        root = request.getfixturevalue(kind)
        parts, whole = load("folder", root=root), load("folder", root=root, all_data=True, train_images=3)
        together = torch.cat([all_of(parts.train), all_of(parts.validation)])
        assert torch.equal(all_of(whole.train), together)
        assert torch.equal(whole.train.labels, torch.cat([parts.train.labels, parts.validation.labels]))
        assert torch.equal(all_of(whole.validation), all_of(parts.validation))
        assert torch.equal(all_of(whole.test), all_of(parts.test))
        generator = torch.Generator().manual_seed(0)
        batches = list(train_loader(whole.train, 4, 0, generator))  # decoded ahead, in threads
        assert sum(map(len, (labels for _, labels in batches))) == len(together) // 4 * 4

    @pytest.mark.skipif(not EMOJI.exists(), reason="emoji57.tar is not in ../shared/data")
    def test_a_real_one(self, tmp_path):
        with tarfile.open(EMOJI) as archive:
            archive.extractall(tmp_path, filter="data")
        splits = load("folder", root=tmp_path / "emoji57", train_images=570)
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [570, 969, 966]
        assert set(np.bincount(labels_of(splits.train))) == {10}
        assert splits.num_classes == 57


class TestRefusedFolder:
    def test_unset(self):
        assert refusal("folder") == (
            "data.root = None: an image folder must be given; it holds train/<class>/* or <class>/*"
        )

    def test_missing(self, tmp_path):
        text = refusal("folder", root=tmp_path / "none")
        assert text.endswith("none: no such folder; give one that holds train/<class>/* or <class>/*")

    def test_empty(self, tmp_path):
        assert "holds no class folders; it takes one folder of images for each of 2" in refusal("folder", root=tmp_path)

    def test_one_class(self, tmp_path):
        write_images(tmp_path / "ant", 3)
        assert "holds one class only (ant)" in refusal("folder", root=tmp_path)

    def test_a_class_without_images(self, flat):
        (flat / "dog").mkdir()
        text = refusal("folder", root=flat)
        assert "dog" in text
        assert text.endswith("add images, or remove the class")

    def test_a_class_too_small_to_split_is_trained_on(self, flat):
        write_images(flat / "dog", 1)
        splits = load("folder", root=flat)
        assert 3 in labels_of(splits.train)
        assert splits.notes == (
            "the validation split has no image of dog", "the test split has no image of dog",
        )  # fmt: skip

    def test_no_train(self, divided):
        (divided / "train").rename(divided.parent / "elsewhere")
        assert refusal("folder", root=divided).endswith("has test, val but no train folder; add it")

    def test_splits_with_different_classes(self, divided):
        write_images(divided / "test" / "cat", 2)
        assert refusal("folder", root=divided).endswith(
            "test/ and train/ hold different classes (cat); make them agree"
        )

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    @pytest.mark.parametrize("damage", ["rubbish", "cut short", "empty"])
    def test_an_unreadable_image(self, divided, suffix, damage):
        bad = divided / "test" / "bee" / f"bad{suffix}"
        write_images(bad.parent, 1, (64, 64), suffix, seed=1)
        intact = (bad.parent / f"000{suffix}").read_bytes()
        bad.write_bytes({"rubbish": b"rubbish" * 9, "cut short": intact[: len(intact) // 2], "empty": b""}[damage])
        text = refusal("folder", root=divided)
        assert text.startswith(f"data.root = {divided}: {bad} is no readable image (")
        assert text.endswith("; repair or remove it")

    def test_how_many_are_unreadable(self, flat):
        for index in range(3):
            (flat / "cat" / f"{index:03d}.jpg").write_bytes(b"")
        assert "; repair or remove it (one of 3 such files)" in refusal("folder", root=flat)

    def test_a_worker_need_not_look_again(self, flat):
        (flat / "cat" / "000.jpg").write_bytes(b"")
        assert load_splits(DataConfig(dataset="folder", root=flat), SPEC, verify=False).num_classes == 3


PLACES = {"cifar100": "cifar-100-python/", "flowers102": "flowers-102/", "food101": "food-101/"}


class TestTorchvision:
    @pytest.fixture
    def cifar(self, tmp_path, monkeypatch):
        """CIFAR-100 as its authors pack it: 400 and 200 images of 100 classes, under their own checksums."""
        folder = tmp_path / "cifar-100-python"
        folder.mkdir()
        generator = np.random.default_rng(0)
        names = [f"class {index}" for index in range(100)]
        for file, count in (("train", 400), ("test", 200), ("meta", 0)):
            content = {"fine_label_names": names} if file == "meta" else {
                "data": generator.integers(0, 256, (count, 3072), np.uint8),
                "fine_labels": [index % 100 for index in range(count)],
            }  # fmt: skip
            (folder / file).write_bytes(pickle.dumps(content))
        sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": sums["meta"]})
        return tmp_path

    def test_cifar100(self, cifar):
        splits = load("cifar100", root=cifar, validation_fraction=0.25, download=False)
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [300, 100, 200]
        assert set(np.bincount(labels_of(splits.train))) == {3}
        assert splits.classes[7] == "class 7"
        image, label = splits.test[105]
        assert (image.shape, label) == ((3, 16, 16), 5)

    def test_cifar100_is_kept_at_its_own_size_and_enlarged_with_the_batch(self, cifar):
        data = DataConfig(dataset="cifar100", root=cifar, download=False, cache="memory")
        spec = InputSpec(96, SPEC.mean, SPEC.std)
        splits = load_splits(data, spec)
        (batch, _), *_ = train_loader(splits.train, 8, 0, torch.Generator())
        assert batch.pixels_BCHW.shape == (8, 3, 32, 32)
        for index in (0, 7):
            source = splits.test.source.decode(int(splits.test.indices[index]))
            whole = source.resize((96, 96), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.asarray(whole).copy()).permute(2, 0, 1)[None]
            assert torch.equal(splits.test[index][0], splits.test.preparation(pixels, None)[0])
        timm_s = load_splits(
            data.model_copy(update={"transforms": "timm"}), replace(spec, resizing=Resizing("bicubic"))
        )
        assert timm_s.train.pixels([0]).shape == (1, 3, 96, 96)

    def test_cifar100_that_is_not_intact(self, cifar):
        (cifar / "cifar-100-python" / "test").write_bytes(b"rubbish")
        text = refusal("cifar100", root=cifar, download=False)
        assert f"data.root = {cifar}: no intact cifar100; put cifar-100-python/, unpacked (from https://" in text
        assert text.endswith("there, or set data.download to true")

    def test_food101(self, tmp_path):
        food = tmp_path / "food-101"
        (food / "meta").mkdir(parents=True)
        names = [f"dish_{index:03d}" for index in range(101)]
        for part, ids in (("train", range(3)), ("test", (3,))):
            listed = {name: [f"{name}/{index}" for index in ids] for name in names}
            (food / "meta" / f"{part}.json").write_text(json.dumps(listed))
        for name in names:
            (food / "images" / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(food / "images" / name / f"{index}.jpg")
        splits = load("food101", root=tmp_path)
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [202, 101, 101]
        bad = food / "images" / "dish_050" / "3.jpg"
        bad.unlink()
        assert f"{bad} is no readable image (FileNotFoundError" in refusal("food101", root=tmp_path, split_seed=1)

    def test_flowers102(self, tmp_path, monkeypatch):
        folder = tmp_path / "flowers-102"
        write_images(folder / "jpg", 306, (8, 8))
        for index, file in enumerate(sorted((folder / "jpg").iterdir()), 1):
            file.rename(folder / "jpg" / f"image_{index:05d}.jpg")
        ids = np.arange(1, 307)
        savemat(folder / "imagelabels.mat", {"labels": (ids - 1) % 102 + 1})
        savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
        sums = {
            key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest())
            for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
        }
        monkeypatch.setattr(datasets.Flowers102, "_file_dict", sums)
        splits = load("flowers102", root=tmp_path)
        assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [102, 102, 102]
        assert splits.classes[0] == "pink primrose"
        assert splits.validation[4][1] == 4

    @pytest.mark.parametrize("dataset", PLACES)
    def test_without_a_network(self, dataset, tmp_path, no_network):
        text = refusal(dataset, root=tmp_path / "data")
        assert f"data.root = {tmp_path / 'data'}: no intact {dataset}, and it cannot be downloaded (" in text
        assert f"; put {PLACES[dataset]}" in text
        assert text.endswith(") there")

    @pytest.mark.parametrize("dataset", PLACES)
    def test_without_permission_to_download(self, dataset, tmp_path):
        text = refusal(dataset, root=tmp_path, download=False)
        assert f"; put {PLACES[dataset]}" in text
        assert text.endswith("there, or set data.download to true")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("dataset", PLACES)
    def test_without_a_root(self, dataset):
        assert refusal(dataset).startswith(f"data.root = None: {dataset} needs a folder; give one that holds")

    def test_root_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        assert refusal("cifar100", root=tmp_path / "file").endswith("is a file; give a folder")

    def test_numbers_of_classes_are_known_beforehand(self):
        assert [num_classes_of(DataConfig(dataset=name)) for name in PLACES] == [100, 102, 101]


class TestClasses:
    @pytest.mark.parametrize("num_classes", [None, 10])
    def test_agree(self, num_classes):
        check_classes(DataConfig(), ModelConfig(num_classes=num_classes))

    def test_do_not_agree(self):
        with pytest.raises(ConfigError) as caught:
            check_classes(DataConfig(dataset="cifar100"), ModelConfig(num_classes=10))
        assert str(caught.value) == ("model.num_classes = 10: cifar100 has 100 classes; set it to 100, or leave it out")
