"""Decoded images are kept once a machine, shared by its processes, where that fits."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from alast_tune.data import decoded, eval_loader, train_loader
from alast_tune.errors import ConfigError
from tests.pictures import write_images
from tests.unit.data.pictures import all_of, load, seen


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "alast-tune" / "decoded"


def epoch(split, workers=0):
    return list(seen(train_loader(split, 4, workers, torch.Generator().manual_seed(0))))


def kept(cache):
    return sorted(file.stat().st_size for file in cache.glob("*.u8"))


def test_a_file_a_split_that_is_looked_at(divided, cache):
    splits = load("folder", root=divided, cache="memory")
    assert kept(cache) == []
    epoch(splits.train)
    assert kept(cache) == [12 * 3 * 16 * 16]
    list(eval_loader(splits.test, 2, 0))
    assert kept(cache) == [4 * 3 * 16 * 16, 12 * 3 * 16 * 16]


def test_the_next_process_decodes_nothing(divided, monkeypatch):
    first = epoch(load("folder", root=divided, cache="memory").train)
    monkeypatch.setattr(decoded.Source, "decode", lambda source, index: pytest.fail("decoded again"))
    again = epoch(load("folder", root=divided, cache="memory", split_seed=1).train)
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_other_content_is_another_file(divided, cache):
    epoch(load("folder", root=divided, cache="memory").train)
    write_images(divided / "train" / "ant", 1, seed=5)
    again = load("folder", root=divided, cache="memory", split_seed=1).train
    epoch(again)
    assert len(kept(cache)) == 2
    assert torch.equal(all_of(again), all_of(load("folder", root=divided, cache="none").train))


@pytest.mark.parametrize("damage", [b"", b"short"])
def test_a_file_that_is_not_whole_is_made_again(divided, cache, damage):
    first = epoch(load("folder", root=divided, cache="memory").train)
    for file in cache.glob("*.u8"):
        file.write_bytes(damage)
    again = epoch(load("folder", root=divided, cache="memory", split_seed=1).train)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on, of a process with threads
def test_loader_processes_share_it(divided, cache):
    here = epoch(load("folder", root=divided, cache="memory").train)
    there = epoch(load("folder", root=divided, cache="memory", workers=2).train, workers=2)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(here, there, strict=True))
    assert len(kept(cache)) == 1


class TestAuto:
    def test_keeps_what_takes_a_quarter_of_what_is_available(self, monkeypatch):
        needed = 22 * 3 * 16 * 16
        for available, keeps in ((4 * needed, True), (4 * needed - 1, False), (0, False)):
            monkeypatch.setattr(decoded, "available_bytes", lambda available=available: available)
            assert decoded.worth_keeping(22 * 3 * 16**2) is keeps

    def test_keeps_nothing_that_half_of_the_disk_would_not_hold(self, monkeypatch):
        monkeypatch.setattr(decoded, "available_bytes", lambda: 1 << 60)
        assert not decoded.worth_keeping(1 << 60)
        assert decoded.worth_keeping(22 * 3 * 16**2)

    def test_goes_on_without(self, divided, cache):
        train = load("folder", root=divided).train
        expected = all_of(train)
        cache.mkdir(parents=True, exist_ok=True)
        cache.rmdir()
        cache.write_text("a file")
        assert sum(len(labels) for _, labels in epoch(train)) == 12
        assert torch.equal(all_of(train), expected)

    def test_what_was_asked_for_is_done_or_refused(self, divided, cache):
        train = load("folder", root=divided, cache="memory").train
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text("a file")
        with pytest.raises(
            ConfigError, match=r"data.cache = memory: decoded images cannot be kept in .*; set XDG_CACHE"
        ):
            epoch(train)


def test_files_used_least_recently_make_room(cache, monkeypatch):
    monkeypatch.setattr(decoded, "DISK_SHARE", 0)
    ones = decoded.share_array("a", (2, 3), lambda: iter([np.ones((2, 3), np.uint8)]))
    decoded.share_array("b", (1, 3), lambda: iter([np.zeros((1, 3), np.uint8)]))
    assert kept(cache) == [3]
    assert (ones == 1).all()  # who has it keeps it


def test_a_process_that_dies_while_writing_leaves_nothing_to_go_by(cache):
    def dies():
        yield np.ones((1, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoded.share_array("a", (2, 3), dies)
    assert not list(cache.glob("*.u8*"))
    assert (decoded.share_array("a", (2, 3), lambda: iter([np.full((2, 3), 7, np.uint8)])) == 7).all()


@pytest.mark.slow  # imports torch anew
def test_another_process_maps_the_same_file(divided, cache):
    program = (
        "import sys, torch; from pathlib import Path; from alast_tune.config import DataConfig;"
        "from alast_tune.data import load_splits, train_loader; from alast_tune.models import InputSpec;"
        "config = DataConfig(dataset='folder', root=Path(sys.argv[1]), cache='memory');"
        "train = load_splits(config, InputSpec(16, (0.5,) * 3, (0.5,) * 3)).train;"
        "batches = list(train_loader(train, 2, 0, torch.Generator()))"
    )
    epoch(load("folder", root=divided, cache="memory").train)
    (file,) = cache.glob("*.u8")
    made = file.stat().st_ino
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(divided)], check=True, timeout=120)
    (file,) = cache.glob("*.u8")
    assert file.stat().st_ino == made
