"""Data sets of Hugging Face, saved to a folder or by name: images and labels by their types, in their own splits."""

import sys
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from alast_tune.choices import sweep_of_folder
from alast_tune.config import DataConfig
from alast_tune.data import fingerprint, huggingface, labels_of, num_classes_of
from tests.unit.data.pictures import all_of, load, refusal

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(divided):
    """A divided image folder."""
    return divided


def features(labels=("ant", "bee"), **more):
    return datasets.Features({"photo": datasets.Image(), "breed": datasets.ClassLabel(names=list(labels)), **more})


def made(folder, labels=("ant", "bee")):
    """The images of a folder as a data set."""
    files = sorted(folder.rglob("*.jpg"))
    values = {"photo": [str(file) for file in files], "breed": [list(labels).index(file.parent.name) for file in files]}
    return datasets.Dataset.from_dict(values, features(labels))


def saved(folder, place, names=("train", "val", "test")):
    """A folder as save_to_disk writes it, with the bytes of the images."""
    splits = datasets.DatasetDict(
        {name: made(folder / part) for name, part in zip(names, ("train", "val", "test"), strict=True)}
    )
    splits.save_to_disk(place)
    return place


def test_a_saved_one_is_the_same_data(folder, tmp_path):
    ours = load("folder", root=saved(folder, tmp_path / "saved", ("train", "validation", "test")))
    theirs = load("folder", root=folder)
    assert ours.classes == theirs.classes
    for name in ("train", "validation", "test"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(all_of(one), all_of(other)) and torch.equal(one.labels, other.labels)
        assert [checksum for _, checksum in one.contents()] == [checksum for _, checksum in other.contents()]


@pytest.mark.parametrize("alone", [True, False])
def test_an_undivided_one_is_split(flat, tmp_path, alone):
    """By itself, or called train, as the hub calls the only split of whatever has no splits."""
    one = made(flat, ("ant", "bee", "cat"))
    (one if alone else datasets.DatasetDict(train=one)).save_to_disk(tmp_path / "saved")
    splits = load("folder", root=tmp_path / "saved")
    sizes = [len(splits.train), len(splits.validation), len(splits.test)]
    assert sum(sizes) == 45 and min(sizes) > 0
    assert num_classes_of(DataConfig(root=tmp_path / "saved")) == 3
    assert fingerprint(load("folder", root=tmp_path / "saved", workers=1)) == fingerprint(splits)


def test_images_are_upright_and_rgb(tmp_path):
    image = Image.new("L", (8, 4), 255)
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    for name in ("ant", "bee"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(6):
            image.putpixel((number, 0), 0)
            image.save(tmp_path / "in" / name / f"{number}.jpg", exif=exif)
    made(tmp_path / "in").save_to_disk(tmp_path / "saved")
    source = load("folder", root=tmp_path / "saved").train.source
    assert (source.decode(0).size, source.decode(0).mode) == ((4, 8), "RGB")


def test_a_damaged_image_is_said(folder, tmp_path):
    made(folder / "train").save_to_disk(tmp_path / "saved")
    good = datasets.load_from_disk(tmp_path / "saved").cast_column("photo", datasets.Image(decode=False))
    rows = [good[index] for index in range(len(good))]
    rows[5]["photo"] = {"bytes": b"rubbish", "path": None}
    datasets.Dataset.from_list(rows, features()).save_to_disk(tmp_path / "bad")
    assert "5 is no readable image (UnidentifiedImageError" in refusal("folder", root=tmp_path / "bad")


def test_splits_that_are_not_used_are_said(folder, tmp_path):
    notes = load("folder", root=saved(folder, tmp_path / "saved", ("train", "extra", "test"))).notes
    assert notes[0] == "not used, since no train, validation or test split: extra (6 images)"


def test_a_test_split_without_labels_is_not_used(folder, tmp_path):
    unlabelled = made(folder / "test").map(lambda _: {"breed": -1})
    datasets.DatasetDict(train=made(folder / "train"), test=unlabelled).save_to_disk(tmp_path / "saved")
    splits = load("folder", root=tmp_path / "saved")
    assert splits.test is None
    assert splits.notes[0] == "the test split has no labels, and is not used"


def test_columns_by_name(folder, tmp_path):
    one = made(folder / "train")
    one = one.add_column("mood", ["calm", "wild"] * 6).add_column("weight", np.ones(12))
    one.save_to_disk(tmp_path / "saved")
    splits = load("folder", root=tmp_path / "saved", columns={"label": "mood"})
    assert splits.classes == ("calm", "wild")
    assert set(labels_of(splits.train)) == {0, 1}
    columns = {"label": "weight"}
    assert refusal("folder", root=tmp_path / "saved", columns=columns).startswith(
        "data.columns.label = weight: is no column of labels (Value('float64')); give one of photo, breed, mood, weight"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda one: one.remove_columns("photo"),
         "has no columns of type Image; set data.columns.image to one of breed"),
        (lambda one: one.remove_columns("breed"),
         "has no columns of type ClassLabel; set data.columns.label to one of photo"),
        (lambda one: one.add_column("mood", one["breed"], feature=datasets.ClassLabel(names=["a", "b"])),
         "has 2 columns of type ClassLabel; set data.columns.label to one of photo, breed, mood"),
        (lambda one: one.select(range(3)), "has images of one class only to train on (ant); it takes 2 or more"),
        (lambda one: one.map(lambda row, index: {"breed": -1 if index == 2 else row["breed"]}, with_indices=True),
         "image 2 of all has the label -1, which is none of the 2 classes; remove it"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_one_line(folder, tmp_path, change, text):
    change(made(folder / "train")).save_to_disk(tmp_path / "saved")
    assert refusal("folder", root=tmp_path / "saved") == f"data.root = {tmp_path / 'saved'}: {text}"


def test_classes_that_differ_between_splits(folder, tmp_path):
    """Their numbers would mean something else in each."""
    splits = {"train": made(folder / "train"), "test": made(folder / "test", ("bee", "ant"))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert refusal("folder", root=tmp_path / "saved").endswith(
        ": has another column breed in test than in train; make them agree"
    )


def test_a_folder_that_is_damaged(folder, tmp_path):
    made(folder / "train").save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert "cannot be read as a data set of Hugging Face (" in refusal("folder", root=tmp_path / "saved")


class TestNamed:
    @pytest.fixture
    def offline(self, monkeypatch):
        """Nobody answers for the hub."""
        monkeypatch.setattr(urllib.request, "_opener", None)
        monkeypatch.setattr(huggingface.constants, "ENDPOINT", "http://127.0.0.1:9")

    def test_of_its_cache_where_the_hub_is_out_of_reach(self, folder, tmp_path, offline):
        """As the package leaves what it has downloaded: configuration, version, hash, and files."""
        place = tmp_path / "hub" / "somebody___pets" / "default" / "0.0.0" / "0123456789abcdef"
        place.mkdir(parents=True)
        saved(folder, tmp_path / "saved", ("train", "validation", "test"))
        from datasets.arrow_writer import ArrowWriter
        from datasets.info import DatasetInfo
        from datasets.splits import SplitDict, SplitInfo

        splits = SplitDict()
        for name in ("train", "validation", "test"):
            one = datasets.load_from_disk(tmp_path / "saved")[name]
            with ArrowWriter(path=str(place / f"pets-{name}.arrow"), features=one.features) as out:
                out.write_table(one.data.table)
                out.finalize()
            splits.add(SplitInfo(name, num_examples=len(one), dataset_name="pets"))
        info = DatasetInfo(features=features(), splits=splits, builder_name="parquet", dataset_name="pets",
                           config_name="default", version="0.0.0")  # fmt: skip
        info.write_to_directory(place)
        named = load("hf:somebody/pets", root=tmp_path / "hub")
        assert [len(named.train), len(named.validation), len(named.test)] == [12, 6, 4]
        assert torch.equal(all_of(named.train), all_of(load("folder", root=folder).train))

        found = sweep_of_folder(
            "hf:somebody/pets", model="embedded", trial={"data": {"root": str(tmp_path / "hub")}}
        ).sweep
        assert (found.name, found.trial.data.dataset) == ("pets", "hf:somebody/pets")

    def test_that_cannot_be_had(self, tmp_path, offline):
        text = refusal("hf:somebody/pets", root=tmp_path / "hub")
        assert text.startswith(
            f"data.dataset = hf:somebody/pets: is not in {tmp_path / 'hub'}, and cannot be downloaded "
            "(http://127.0.0.1:9 is out of reach: "
        )
        assert text.endswith("; load it where there is a network, save_to_disk a folder, and give that as data.root")

    def test_that_may_not_be_downloaded(self, tmp_path):
        text = refusal("hf:somebody/pets", root=tmp_path / "hub", download=False)
        assert "and cannot be downloaded (data.download is false); load it where there is a network" in text


def test_without_the_package(folder, tmp_path, monkeypatch):
    saved(folder, tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, root in (("folder", tmp_path / "saved"), ("hf:somebody/pets", None)):
        text = refusal(name, root=root)
        assert ": needs the package datasets (" in text
        assert text.endswith("; pip install 'alast-tune[datasets]'")
