"""Every file is looked at once: what was found is remembered until it changes."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from alast_tune.config import DataConfig
from alast_tune.data import fingerprint, inspection, load_splits
from alast_tune.data.inspection import inspect
from alast_tune.errors import ConfigError
from tests.pictures import write_images
from tests.unit.data.pictures import SPEC, load, refusal


def checksums(root, files, decode=False):
    found = inspect(("data.root", root), files.__getitem__, lambda index: str(files[index]), range(len(files)), decode)
    return [verdict.checksum for verdict in found]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch):
    """Count the images that are opened."""
    seen = []
    monkeypatch.setattr(inspection, "to_rgb", lambda image: seen.append(image) or image)
    return seen


def test_what_has_not_changed_is_not_read_again(flat, opened, monkeypatch):
    files = sorted(flat.glob("*/*"))
    first = checksums(flat, files, decode=True)
    assert len(opened) == len(files) == 45
    monkeypatch.setattr(type(flat), "read_bytes", lambda file: pytest.fail(f"{file} is read again"))
    assert checksums(flat, files, decode=True) == checksums(flat, files) == first


@pytest.mark.parametrize("change", ["content", "time"])
def test_what_has_changed_is(flat, opened, change):
    files = sorted(flat.glob("*/*"))
    first = checksums(flat, files, decode=True)
    if change == "content":
        files[3].write_bytes(files[3].read_bytes() + b"more")
    else:
        os.utime(files[3], (1, 1))
    again = checksums(flat, files, decode=True)
    assert len(opened) == 46
    assert [a == b for a, b in zip(first, again, strict=True)].count(False) == (change == "content")


def test_a_fault_is_not_remembered_as_fine(flat):
    bad = flat / "ant" / "000.jpg"
    bad.write_bytes(b"rubbish")
    for seed in (0, 1):
        assert f"{bad} is no readable image (UnidentifiedImageError: cannot identify image file)" in refusal(
            "folder", root=flat, split_seed=seed
        )


def test_read_without_decoding_is_not_remembered_as_decoded(flat):
    (flat / "ant" / "000.jpg").write_bytes(b"rubbish")
    assert load("folder", root=flat, verify=False).num_classes == 3
    assert "no readable image" in refusal("folder", root=flat)


def test_nothing_is_left_among_the_images(flat):
    before = sorted(flat.rglob("*"))
    load("folder", root=flat)
    assert sorted(flat.rglob("*")) == before


@pytest.mark.parametrize("damage", ["rubbish", "gone", "no folder"])
def test_a_memory_that_cannot_be_used_is_done_without(flat, cache, damage):
    files = sorted(flat.glob("*/*"))
    if damage == "no folder":
        cache.write_text("a file")
    first = checksums(flat, files)
    for file in cache.glob("*/*.json"):
        file.unlink() if damage == "gone" else file.write_text("{")
    assert checksums(flat, files) == first


def test_a_damaged_memory_of_copied_data_changes_no_fingerprint(flat, cache):
    splits = load("folder", root=flat)
    before = fingerprint(splits)
    for file in cache.glob("*/*.json"):
        file.unlink()
    assert fingerprint(load_splits(DataConfig(dataset="folder", root=flat, workers=1), SPEC, verify=False)) == before


class TestLarge:
    def test_a_bomb_is_said_with_its_size_and_remedy(self, divided):
        bad = divided / "test" / "ant" / "big.png"
        Image.new("1", (13500, 13500)).save(bad)
        assert refusal("folder", root=divided) == (
            f"data.root = {divided}: {bad} has 182 megapixels, and Pillow opens 179 at most; shrink it"
        )

    def test_a_large_one_is_read_without_a_word(self, tmp_path):
        for part in ("train", "val"):
            for seed, name in enumerate(("a", "b")):
                write_images(tmp_path / part / name, 2, seed=2 * len(part) + seed)
        Image.new("1", (10000, 9500)).save(tmp_path / "train" / "a" / "large.png")
        splits = load("folder", root=tmp_path)
        assert len(splits.train) == 5
        assert splits.notes == ()


def test_greys_of_unknown_range_are_refused_by_name(divided):
    bad = divided / "val" / "ant" / "heights.tiff"
    Image.fromarray(np.linspace(-3, 812, 12, dtype=np.float32).reshape(3, 4)).save(bad)
    text = f"{bad} has grey values from -3 to 812, not in [0, 1]; save it with 8 or 16 bits"
    assert refusal("folder", root=divided).endswith(text)
    with pytest.raises(ConfigError, match=r"heights.tiff has grey values from -3 to 812"):
        load("folder", root=divided, verify=False, cache="none").validation.__getitems__([0, 1, 2, 3])


def test_the_same_bytes_have_the_same_checksum(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (3, 3)).save(stream, "PNG")
    files = [tmp_path / name for name in ("a.png", "b", "c.png")]
    for file in files[:2]:
        file.write_bytes(stream.getvalue())
    files[2].write_bytes(stream.getvalue() + b"\0")
    first, second, third = checksums(tmp_path, files, decode=True)
    assert first == second != third


def test_images_of_16_bits_that_use_few_are_said(divided):
    for name, most in (("few", 4095), ("all", 65535)):
        ramp = np.linspace(0, most, 400).reshape(20, 20).astype(np.uint16)
        Image.fromarray(ramp).save(divided / "val" / "ant" / f"{name}.png")
    for workers in (0, 1):  # looked at, and remembered
        assert load("folder", root=divided, workers=workers).notes == (
            "1 images of 16 bits use 12 at most, and are nearly black (as ant/few.png); rescale them",
        )
