"""Image folders as other people leave them: read right, or refused in one line; what is passed over is said."""

import shutil

import numpy as np
import pytest
from PIL import Image

from alast_tune.config import DataConfig
from alast_tune.data import check_apart, labels_of, num_classes_of
from alast_tune.data.folders import open_folder
from alast_tune.errors import ConfigError
from tests.pictures import write_images
from tests.unit.data.pictures import load, refusal


def sizes(root, **fields):
    splits = load("folder", root=root, **fields)
    return splits.classes, [len(split) if split else 0 for split in (splits.train, splits.validation, splits.test)]


def count(root):
    folder = open_folder(root)
    return {role: {name: len(files) for name, files in part.classes.items()} for role, part in folder.parts.items()}


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "validation", "test"),
        [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("Train", "Val", "Test"),
         ("train", "dev", "test"), ("train", "eval", "test"), ("train_set", "val-set", "test_set"),
         ("train2017", "val2017", "test2017"), ("TRAIN", "VALID", "TEST"), ("train_images", "val", "test_images")],
    )  # fmt: skip
    def test_are_known_by_their_names(self, divided, train, validation, test):
        for old, new in (("train", train), ("val", validation), ("test", test)):
            (divided / old).rename(divided / f"{new}-")
            (divided / f"{new}-").rename(divided / new)
        splits = load("folder", root=divided)
        assert sizes(divided) == (("ant", "bee"), [12, 6, 4])
        assert splits.notes == ()

    def test_two_for_one(self, divided):
        shutil.copytree(divided / "val", divided / "valid")
        assert "val/ and valid/ both look like the validation split; keep one" in refusal("folder", root=divided)

    def test_a_class_of_that_name(self, flat):
        write_images(flat / "train", 12)
        assert count(flat)["all"] == {"ant": 10, "bee": 15, "cat": 20, "train": 12}

    def test_splits_without_classes(self, tmp_path):
        for name in ("Train", "Test"):
            write_images(tmp_path / name, 5)
        assert "Test, Train look like splits, but hold no class folders; put images into <split>/<class>/" in refusal(
            "folder", root=tmp_path
        )

    def test_images_beside_classes_of_a_split(self, divided):
        write_images(divided / "train", 2)
        assert "train/ holds both images and folders; if it is a split, put" in refusal("folder", root=divided)

    def test_a_split_beside_classes(self, flat):
        write_images(flat / "train" / "steam", 3)
        text = refusal("folder", root=flat)
        assert "train/ looks like a split (train, val, test), but ant/, bee/, cat/ like classes of an undivided" in text

    def test_test_images_without_labels_are_said(self, divided):
        shutil.rmtree(divided / "test")
        write_images(divided / "test", 5)
        splits = load("folder", root=divided)
        assert splits.test is None
        assert splits.notes == ("not used, since no train, val or test folder of classes: test/ (5 images)",)

    def test_other_folders_are_said(self, divided):
        write_images(divided / "extra" / "ant", 4)
        (divided / "papers").mkdir()
        assert load("folder", root=divided).notes == (
            "not used, since no train, val or test folder of classes: extra/ (4 images)",
        )

    @pytest.mark.parametrize("part", ["val", "test"])
    @pytest.mark.parametrize("folder_too", [False, True])
    def test_a_class_may_lack_held_out_images(self, divided, part, folder_too):
        write_images(divided / "train" / "cat", 3, seed=1)
        write_images(divided / "train" / "aardvark", 3, seed=2)
        if folder_too:
            (divided / part / "cat").mkdir()
        splits = load("folder", root=divided)
        assert splits.classes == ("aardvark", "ant", "bee", "cat")
        assert set(labels_of(splits.validation)) == set(labels_of(splits.test)) == {1, 2}
        assert f"the {'validation' if part == 'val' else part} split has no image of aardvark, cat" in splits.notes

    def test_an_empty_split(self, divided):
        shutil.rmtree(divided / "val")
        (divided / "val" / "ant").mkdir(parents=True)
        assert "val/ holds no image in a class folder; add some, or remove it" in refusal("folder", root=divided)


class TestClasses:
    @pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", ".git"])
    @pytest.mark.parametrize("images", [0, 3])
    def test_what_systems_leave_is_none(self, flat, name, images):
        (flat / name).mkdir()
        if images:
            write_images(flat / name, images)
        (note,) = open_folder(flat).notes
        assert count(flat)["all"] == {"ant": 10, "bee": 15, "cat": 20}
        assert note == f"passed over in {flat}: 1 hidden or of a system (in ./)"

    @pytest.mark.parametrize("name", [".ipynb_checkpoints/000-copy.jpg", "@eaDir/000.jpg", "._000.jpg", "Thumbs.db"])
    def test_copies_that_systems_leave_never_train(self, flat, name):
        (flat / "ant" / name).parent.mkdir(exist_ok=True)
        shutil.copy(flat / "ant" / "000.jpg", flat / "ant" / name)
        assert count(flat)["all"]["ant"] == 10
        assert "1 hidden or of a system (in ant/)" in open_folder(flat).notes[0]

    def test_hidden_folders_around_the_root_do_not_matter(self, flat, tmp_path):
        hidden = tmp_path / ".cache"
        flat.rename(hidden)
        assert count(hidden)["all"]["ant"] == 10

    def test_folders_of_folders_are_none(self, flat, tmp_path):
        outer = tmp_path / "outer"
        outer.mkdir()
        shutil.copytree(flat, outer / "photos")
        shutil.copytree(flat, outer / "drawings")
        text = refusal("folder", root=outer)
        assert (
            "drawings/ holds only folders (ant, bee, cat), and a class is one folder of images; set data.root" in text
        )

    def test_folders_beside_the_images_of_a_class_are_read_too(self, flat):
        write_images(flat / "ant" / "more", 3)
        assert count(flat)["all"]["ant"] == 13

    def test_a_link_in_a_circle(self, flat):
        (flat / "ant" / "again").symlink_to(flat / "ant")
        assert "ant/again/ is a link to a folder that it lies in; remove it" in refusal("folder", root=flat)

    def test_images_in_no_class(self, flat):
        write_images(flat, 2)
        assert "2 images without a class (in ./)" in open_folder(flat).notes[0]

    def test_images_alone(self, tmp_path):
        write_images(tmp_path, 2)
        assert "holds no class folders" in refusal("folder", root=tmp_path)


class TestFiles:
    def test_of_every_kind_are_read_by_whatever_name(self, flat):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 12, 3), np.uint8))
        kinds = {"a.jfif": "JPEG", "b.gif": "GIF", "c.avif": "AVIF", "d.webp": "WEBP", "e": "PNG", "f.JPG_x": "JPEG",
                 "g.JPG": "JPEG", "h.jpg": "BMP", "i.ppm": "PPM", "j.tga": "TGA", "k.jp2": "JPEG2000"}  # fmt: skip
        for name, kind in kinds.items():
            image.save(flat / "ant" / name, kind)
        assert count(flat)["all"]["ant"] == 10 + len(kinds)
        splits = load("folder", root=flat)
        assert splits.notes == ()
        for split in (splits.train, splits.validation, splits.test):
            split.__getitems__(list(range(len(split))))

    def test_of_no_kind_are_counted(self, flat):
        for index in range(3):
            (flat / "ant" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic")
        (flat / "bee" / "note.txt").write_text("P5 is no picture")
        (flat / "labels.csv").write_text("a,b")
        (flat / "bee" / "README").write_text("words")
        (flat / "cat" / "features.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
        (note,) = open_folder(flat).notes
        assert note.startswith(f"passed over in {flat}: 3 .heic (in ant/), ")
        for kind in ("1 .txt (in bee/)", "1 .csv (in ./)", "1 without a suffix (in bee/)", "1 .h5 (in cat/)"):
            assert kind in note

    def test_of_a_class_without_any(self, flat):
        (flat / "dog").mkdir()
        for index in range(3):
            (flat / "dog" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic")
        assert "dog/ has no image that can be read, but 3 .heic; add images, or remove the class" in refusal(
            "folder", root=flat
        )

    def test_names_in_another_normal_form_are_the_same_class(self, divided):
        write_images(divided / "train" / "e\u0301", 2, seed=4)
        write_images(divided / "test" / "\u00e9", 2, seed=5)
        assert sizes(divided) == (("ant", "bee", "\u00e9"), [14, 6, 6])

    def test_a_class_in_two_normal_forms_is_refused(self, flat):
        for number, name in enumerate(("e\u0301", "\u00e9")):
            write_images(flat / name, 2, seed=number)
        assert "is there twice, in two Unicode forms; put both into one folder" in refusal("folder", root=flat)


class TestApart:
    @pytest.mark.parametrize("inner", [".", "runs", "runs/train"])
    def test_nothing_is_written_into_the_images(self, flat, inner, monkeypatch):
        with pytest.raises(ConfigError, match=r"output = .* lies in data.root .* give a folder elsewhere"):
            check_apart(DataConfig(dataset="folder", root=flat), "output", flat / inner)
        monkeypatch.chdir(flat)
        with pytest.raises(ConfigError, match="output"):
            check_apart(DataConfig(dataset="folder", root="."), "output", flat / inner)

    def test_a_link_leads_there_too(self, flat, tmp_path):
        (tmp_path / "link").symlink_to(flat)
        with pytest.raises(ConfigError, match="storage"):
            check_apart(DataConfig(dataset="folder", root=flat), "storage", tmp_path / "link" / "runs")

    def test_elsewhere(self, flat):
        for folder in (flat.parent, flat.parent / "runs", flat.parent / "flat2"):
            check_apart(DataConfig(dataset="folder", root=flat), "output", folder)
        check_apart(DataConfig(), "output", flat)

    def test_classes_are_counted_once(self, flat):
        config = DataConfig(dataset="folder", root=flat)
        assert num_classes_of(config) == 3
        write_images(flat / "runs", 3)
        assert num_classes_of(config) == 3
