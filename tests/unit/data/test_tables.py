"""A CSV or Parquet file of images is data like a folder of them; what is wrong with it is said in one line."""

import csv
import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from alast_tune.config import DataConfig, TrialConfig
from alast_tune.data import fingerprint, labels_of, load_splits, num_classes_of, tables
from tests.pictures import write_images
from tests.unit.data.pictures import SPEC, all_of, load, refusal

WORDS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alast-tune"


def write(file, rows, header=("path", "label"), delimiter=",", encoding="utf-8"):
    with file.open("w", newline="", encoding=encoding) as out:
        csv.writer(out, delimiter=delimiter).writerows([header, *rows])
    return file


def rows_of(folder):
    """Path and class of every image."""
    return [(file.relative_to(folder).as_posix(), file.parent.name) for file in sorted(folder.rglob("*.jpg"))]


def contents_of(folder):
    return [(folder / path).read_bytes() for path, _ in rows_of(folder)]


def keys_of(splits):
    return [{key for key, _ in part.contents()} for part in (splits.train, splits.validation, splits.test) if part]


class TestPaths:
    def test_an_undivided_one_is_split_as_the_folder_is(self, flat):
        table = write(flat / "all.csv", rows_of(flat))
        listed, folder = load("folder", root=table), load("folder", root=flat)
        assert listed.classes == folder.classes == ("ant", "bee", "cat")
        assert keys_of(listed) == keys_of(folder)
        assert torch.equal(all_of(listed.test), all_of(folder.test))
        assert fingerprint(listed) == fingerprint(folder)
        assert num_classes_of(DataConfig(root=table)) == 3

    def test_it_may_come_divided(self, divided):
        rows = [(path, label, WORDS[path.split("/")[0]]) for path, label in rows_of(divided)]
        splits = load("folder", root=write(divided / "all.csv", rows, ("file", "class", "split")))
        folder = load("folder", root=divided)
        for name in ("train", "validation", "test"):
            ours, theirs = getattr(splits, name), getattr(folder, name)
            assert torch.equal(all_of(ours), all_of(theirs)) and torch.equal(ours.labels, theirs.labels)

    def test_a_root_alone_is_enough(self, flat):
        config = TrialConfig.model_validate({"data": {"root": str(write(flat / "all.csv", rows_of(flat)))}}).data
        assert config.dataset == "folder"
        assert load_splits(config, SPEC).classes == ("ant", "bee", "cat")

    def test_rows_that_are_added_or_moved_move_no_image(self, flat):
        before = keys_of(load("folder", root=write(flat / "all.csv", rows_of(flat))))
        write_images(flat / "ant" / "new", 20, seed=5)
        rows = sorted(rows_of(flat), reverse=True)
        rows = [(path, "ant" if "/new/" in path else label) for path, label in rows]
        after = keys_of(load("folder", root=write(flat / "again.csv", rows)))
        assert all(ours < theirs for ours, theirs in zip(before, after, strict=True))

    @pytest.mark.parametrize(("name", "delimiter"), [("all.csv", ";"), ("all.tsv", "\t")])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_as_spreadsheets_write_it(self, flat, name, delimiter, encoding):
        table = write(flat / name, rows_of(flat), delimiter=delimiter, encoding=encoding)
        assert load("folder", root=table).num_classes == 3

    def test_parquet_of_paths(self, flat):
        paths, labels = zip(*rows_of(flat), strict=True)
        pq.write_table(
            pa.table({"file_name": paths, "target": pa.array(labels).dictionary_encode()}), flat / "p.parquet"
        )
        splits = load("folder", root=flat / "p.parquet")
        assert fingerprint(splits) == fingerprint(load("folder", root=flat))

    def test_numbers_are_classes_in_their_order(self, flat):
        rows = [(path, {"ant": 10, "bee": 9, "cat": 2}[label]) for path, label in rows_of(flat)]
        assert load("folder", root=write(flat / "all.csv", rows)).classes == ("2", "9", "10")

    def test_columns_by_name(self, flat):
        rows = [(path, label, "x") for path, label in rows_of(flat)]
        table = write(flat / "all.csv", rows, ("photo", "breed", "label"))
        columns = {"image": "photo", "label": "breed"}
        assert load("folder", root=table, columns=columns).classes == ("ant", "bee", "cat")
        columns["label"] = "colour"
        assert refusal("folder", root=table, columns=columns) == (
            "data.columns.label = colour: all.csv has no such column, it has photo, breed, label; give one of them"
        )

    def test_copies_across_splits_are_said(self, divided):
        (divided / "test" / "ant" / "copy.jpg").write_bytes((divided / "train" / "ant" / "000.jpg").read_bytes())
        rows = [(path, label, WORDS[path.split("/")[0]]) for path, label in rows_of(divided)]
        (note,) = load("folder", root=write(divided / "all.csv", rows, ("file", "class", "split"))).notes
        assert note.startswith("1 of 5 test images are copies of images in another split")


class TestBytes:
    @pytest.fixture(params=["binary", "struct"])
    def table(self, flat, request):
        """The pictures of a folder in one file, as most write it and as Hugging Face does."""
        contents, labels = contents_of(flat), [label for _, label in rows_of(flat)]
        images = [{"bytes": content, "path": None} for content in contents] if request.param == "struct" else contents
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if request.param == "struct" else pa.binary()
        pq.write_table(
            pa.table({"image": pa.array(images, kind), "label": labels}), flat / "all.parquet", row_group_size=7
        )
        return flat / "all.parquet"

    def test_are_the_same_images(self, flat, table, monkeypatch):
        monkeypatch.setattr(tables, "_BATCH", 4)
        splits, folder = load("folder", root=table), load("folder", root=flat)
        ours = [checksum for part in (splits.train, splits.validation, splits.test) for _, checksum in part.contents()]
        assert sorted(ours) == sorted(
            checksum for part in (folder.train, folder.validation, folder.test) for _, checksum in part.contents()
        )
        every = load("folder", root=table, all_data=True)
        pixels = {
            image.numpy().tobytes(): int(label)
            for image, label in zip(all_of(every.train), every.train.labels, strict=True)
        }
        theirs = load("folder", root=flat)
        known = {
            image.numpy().tobytes(): int(label)
            for part in (theirs.train, theirs.validation, theirs.test)
            for image, label in zip(all_of(part), part.labels, strict=True)
        }
        assert len(pixels) > 20 and pixels.items() <= known.items()

    def test_rows_that_are_moved_change_nothing(self, table):
        before = load("folder", root=table)
        moved = table.with_name("moved.parquet")
        pq.write_table(pq.read_table(table).sort_by([("label", "descending")]), moved)
        assert keys_of(load("folder", root=moved)) == keys_of(before)

    def test_are_mapped_from_one_copy(self, table, cache):
        load("folder", root=table)
        (copy,) = (cache / "tables").glob("*.arrow")
        before = copy.stat().st_mtime_ns
        load("folder", root=table, split_seed=1)
        assert copy.stat().st_mtime_ns == before

    def test_a_copy_goes_when_the_file_is_another(self, table, cache):
        load("folder", root=table)
        (before,) = (cache / "tables").glob("*.arrow")
        os.utime(table, ns=(0, 0))
        tables.map_column(table, "image")
        (copy,) = (cache / "tables").glob("*.arrow")
        assert copy != before

    def test_without_a_place_for_it_they_are_in_memory(self, table, cache):
        cache.parent.write_text("a file")
        assert load("folder", root=table).num_classes == 3

    def test_what_is_no_image_is_said_by_its_key(self, tmp_path):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4)).save(stream, "PNG")
        contents = [stream.getvalue() + bytes([number]) for number in range(8)] + [b"rubbish"]
        pq.write_table(pa.table({"image": contents, "label": [0, 1] * 4 + [0]}), tmp_path / "t.parquet")
        text = refusal("folder", root=tmp_path / "t.parquet")
        assert "is no readable image (UnidentifiedImageError: cannot identify image file)" in text

    def test_a_row_without_one(self, tmp_path):
        pq.write_table(pa.table({"image": [b"x", None, b""], "label": [0, 1, 1]}), tmp_path / "t.parquet")
        assert refusal("folder", root=tmp_path / "t.parquet") == (
            f"data.root = {tmp_path / 't.parquet'}: row 2 has no bytes of an image (one of 2 such rows)"
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("lines", "text"),
        [
            (
                "path,label 0.jpg,a 7.jpg,b 8.jpg,b",
                "row 2 is 7.jpg, and there is no such file in {folder} (one of 2 such rows)",
            ),
            (
                "path,label 0.jpg,a ../x.jpg,b",
                "row 2 is ../x.jpg, outside of the table's folder {folder}; put it there",
            ),
            ("path,label 0.jpg,a 1.jpg,", "row 2 has the label ''; give a name or a whole number"),
            ("path,label ,a", "row 1 has the path ''; give a file's"),
            ("path,label 0.jpg,a 1.jpg,b ./0.jpg,b", "row 3 is ./0.jpg, as row 1 is; list a file once"),
            ("path,label 0.jpg,a 1.jpg,a", "has images of one class only to train on (a); it takes 2 or more"),
            ("path,label", "has no rows; it takes one for each image"),
            ("path,label 0.jpg", "row 1 has 1 values, and the first line 2 names"),
            (
                "picture,label 0.jpg,a",
                "has no column {usual} but picture, label; name the image column: data.columns.image",
            ),
            (
                "path,kind 0.jpg,a",
                "has no column label, class, target but path, kind; name the label column: data.columns.label",
            ),
            ("path,file,label 0.jpg,x,a", "may have the image in path or file; say which: data.columns.image"),
            ("path,label,split 0.jpg,a,train 1.jpg,b,x", "row 2 has the split 'x'; give train, validation or test"),
            (
                "path,label,split 0.jpg,a,val 1.jpg,b,test",
                "has validation, test and no image to train on; give a train split",
            ),
            (
                "path,label,split 0.jpg,a,train 1.jpg,b,train 2.jpg,c,test",
                "the test split has images of c, and the training split none; make them agree",
            ),
        ],
    )
    def test_in_one_line(self, tmp_path, lines, text):
        for number in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.jpg")
        table = tmp_path / "all.csv"
        table.write_text(lines.replace(" ", "\n"))
        text = text.format(folder=tmp_path, usual=", ".join(tables.NAMES["image"]))
        assert refusal("folder", root=table) == f"data.root = {table}: {text}"

    @pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
    def test_a_table_that_is_not_there(self, tmp_path, name):
        text = f"data.root = {tmp_path / name}: there is no such file; give the path of one that is there"
        assert refusal("folder", root=tmp_path / name) == text

    @pytest.mark.parametrize("name", ["bad.csv", "bad.parquet"])
    def test_rubbish(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"path,label\n\xff\xfe,1\n")
        assert ": cannot be read as " in refusal("folder", root=tmp_path / name)

    def test_labels_of_parquet_that_are_no_classes(self, tmp_path):
        pq.write_table(pa.table({"path": ["a", "b"], "label": [0.5, np.nan]}), tmp_path / "t.parquet")
        assert "row 1 has the label 0.5; give a name or a whole number (one of 2 such rows)" in refusal(
            "folder", root=tmp_path / "t.parquet"
        )

    @pytest.mark.parametrize("name", ["shards-{000..099}.tar", "a.tar", "https://example.org/a-{0..9}.tar", "folder"])
    def test_webdataset(self, tmp_path, name):
        if name == "folder":
            (tmp_path / name).mkdir()
            (tmp_path / name / "000.tar").touch()
        text = refusal("folder", root=name if "://" in name else tmp_path / name)
        assert "looks like WebDataset (.tar shards), which is read from front to back and has no length" in text


@pytest.mark.parametrize("name", ["digits", "folder"])
def test_columns_are_of_tables_only(flat, name):
    text = "is of a table, or of a data set of Hugging Face; leave it out"
    assert refusal(name, root=flat, columns={"label": "kind"}) == f"data.columns.label = kind: {text}"


def test_labels_are_those_of_the_rows(flat):
    rows = rows_of(flat)
    table = write(flat / "all.csv", rows[::-1])
    splits = load("folder", root=table)
    for part in (splits.train, splits.validation, splits.test):
        names = [splits.classes[label] for label in labels_of(part)]
        assert [key.split("/")[0] for key, _ in part.contents()] == names
