"""Batches: of whole epochs, from memory or by threads, the same on every rank."""

import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alast_tune.data import eval_loader, labels_of, loading, train_loader
from alast_tune.errors import ConfigError
from tests.pictures import write_images
from tests.unit.data.pictures import SPEC, all_of, files_of, load, seen


class TestLoaders:
    def test_the_generator_decides_the_order(self):
        train = load("digits").train

        def labels(seed):
            loader = train_loader(train, 64, 0, torch.Generator().manual_seed(seed))
            return [torch.cat([label for _, label in loader]) for _ in range(2)]

        (first, second), (again, _), (other, _) = labels(1), labels(1), labels(2)
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize(("count", "batches"), [(20, [20]), (64, [64]), (65, [64]), (150, [64, 64])])
    def test_an_incomplete_batch_is_dropped_unless_alone(self, count, batches):
        train = load("digits", train_images=count).train
        assert [len(label) for _, label in train_loader(train, 64, 0, torch.Generator())] == batches

    def test_evaluation_sees_everything_in_order_and_moves_no_random_state(self):
        validation = load("digits").validation
        before = torch.get_rng_state()
        labels = torch.cat([label for _, label in eval_loader(validation, 100, 0)])
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(labels.numpy(), labels_of(validation))

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on, of a process with threads
    def test_augmentation_is_the_same_with_any_number_of_workers(self, divided):
        train = load("folder", root=divided, augment="paper").train.drawn(np.random.SeedSequence([3]))

        def epoch(workers):
            loader = train_loader(train, 6, workers, torch.Generator().manual_seed(3))
            return torch.cat([image for image, _ in seen(loader)])

        assert torch.equal(epoch(0), epoch(2))


def batches_of(split, batch_size=4, epochs=1, seed=0):
    loader = train_loader(split, batch_size, 0, torch.Generator().manual_seed(seed))
    return [batch for _ in range(epochs) for batch in seen(loader)]


def same(batches, others):
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


class TestKept:
    @pytest.mark.parametrize("cache", ["memory", "none"])
    def test_pixels_are_those_of_the_files_one_by_one(self, divided, cache):
        split = load("folder", root=divided, cache=cache).validation
        steps = [v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, True), v2.Normalize(SPEC.mean, SPEC.std)]
        transform = v2.Compose(steps)
        expected = [transform(Image.open(file).convert("RGB")) for file in files_of(split)]
        for _ in range(2):  # decoded, then from memory
            (images, labels), *more = seen(eval_loader(split, 100, 0))
            assert not more
            assert torch.equal(images, torch.stack(expected))
            assert images.is_contiguous()  # convolutions round another layout differently
            assert np.array_equal(labels, labels_of(split))
            assert all(torch.equal(split[index][0], image) for index, image in enumerate(expected))

    @pytest.mark.parametrize("augment", ["none", "paper"])
    def test_batches_with_and_without_are_the_same(self, divided, augment):
        runs = []
        for cache in ("memory", "none"):
            train = load("folder", root=divided, augment=augment, cache=cache).train
            runs.append(batches_of(train.drawn(np.random.SeedSequence([2])), epochs=3))
        assert len(runs[0]) == 9
        assert same(*runs)
        assert all(images.is_contiguous() for run in runs for images, _ in run)

    def test_the_files_are_read_once(self, divided):
        splits = load("folder", root=divided, cache="memory")
        first = batches_of(splits.train)
        shutil.rmtree(divided / "train")
        assert same(batches_of(splits.train), first)
        with pytest.raises(FileNotFoundError):
            Image.open(files_of(splits.train)[0])

    def test_without_it_they_are_read_again(self, divided):
        train = load("folder", root=divided, cache="none").train
        batches_of(train)
        shutil.rmtree(divided / "train")
        with pytest.raises(ConfigError, match=r"data.root = .*\.jpg is no readable image \(FileNotFoundError"):
            batches_of(train)


class TestThreads:
    @pytest.fixture
    def train(self, divided):
        return load("folder", root=divided, cache="none").train

    def test_batches_are_those_without_threads(self, train):
        generator = torch.Generator().manual_seed(3)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # torch's loader draws that first
        order = torch.randperm(12, generator=generator)
        assert same(batches_of(train, 5, seed=3), [train.__getitems__(part.tolist()) for part in order.split(5)[:2]])

    def test_they_decode_ahead_but_not_far(self, divided, monkeypatch):
        write_images(divided / "train" / "ant", 40)
        train = load("folder", root=divided, cache="none").train
        asked = []
        decode = train.pixels.source.decode
        spy = SimpleNamespace(decode=lambda index: asked.append(threading.get_ident()) or decode(index))
        monkeypatch.setattr(train.pixels, "source", spy)
        loader = iter(train_loader(train, 4, 0, torch.Generator()))
        next(loader)
        for _ in range(3000):
            if len(asked) == 12:
                break
            time.sleep(0.01)
        assert len(asked) == 4 * (1 + loading.AHEAD)
        assert threading.get_ident() not in asked

    @pytest.mark.parametrize("damage", ["removed", "rubbish"])
    def test_a_fault_is_one_line(self, train, damage):
        bad = files_of(train)[7]
        bad.unlink()
        if damage == "rubbish":
            bad.write_bytes(b"rubbish")
        with pytest.raises(ConfigError) as caught:
            batches_of(train)
        assert f"{bad} is no readable image (" in str(caught.value)
        assert str(caught.value).endswith("; repair or remove it")

    def test_they_end_when_the_consumer_breaks_off(self, train):
        before = set(threading.enumerate())
        for _ in train_loader(train, 4, 0, torch.Generator()):
            started = set(threading.enumerate()) - before
            break
        assert started
        for thread in started:
            thread.join(60)
        assert not any(thread.is_alive() for thread in started)

    @pytest.mark.slow  # imports torch anew
    def test_an_interpreter_that_ends_in_the_middle_does_not_wait_for_them(self, divided):
        program = (
            "import sys, torch; from pathlib import Path; from alast_tune.config import DataConfig;"
            "from alast_tune.data import load_splits, train_loader; from alast_tune.models import InputSpec;"
            "config = DataConfig(dataset='folder', root=Path(sys.argv[1]), cache='none');"
            "train = load_splits(config, InputSpec(16, (0.5,) * 3, (0.5,) * 3)).train;"
            "batches = iter(train_loader(train, 2, 0, torch.Generator())); next(batches); print('first')"
        )
        command = [sys.executable, "-W", "error", "-c", program, str(divided)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "first\n", "")


class TestRanks:
    @pytest.fixture
    def as_rank(self, monkeypatch):
        return lambda rank, ranks: monkeypatch.setattr(loading, "world", lambda: (rank, ranks))

    @pytest.mark.parametrize("dataset", ["digits", "folder"])
    @pytest.mark.parametrize("ranks", [2, 3])
    def test_every_rank_gets_its_share_of_each_batch(self, divided, as_rank, dataset, ranks):
        train = load(dataset, root=divided if dataset == "folder" else None, train_images=12).train
        whole = batches_of(train, 5)
        shares = []
        for rank in range(ranks):
            as_rank(rank, ranks)
            shares.append(batches_of(train, 5))
        assert len(whole) == 2
        for step, (images, labels) in enumerate(whole):
            pairs = zip(images.tensor_split(ranks), labels.tensor_split(ranks), strict=True)
            assert same([share[step] for share in shares], pairs)

    @pytest.mark.parametrize(("images", "batch_size", "ranks"), [(None, 2, 3), (10, 64, 11)])
    def test_a_batch_smaller_than_the_ranks(self, as_rank, images, batch_size, ranks):
        train = load("digits", train_images=images).train
        as_rank(1, ranks)
        with pytest.raises(ConfigError) as caught:
            train_loader(train, batch_size, 0, torch.Generator())
        assert str(caught.value) == (
            f"train.batch_size = {batch_size}: {ranks} ranks need an image each of every batch, "
            f"here of {ranks - 1}; give {ranks} at least"
        )

    def test_evaluation_takes_turns(self, divided, as_rank):
        test = load("folder", root=divided).test
        images = all_of(test)
        for rank in range(3):
            as_rank(rank, 3)
            assert torch.equal(torch.cat([batch for batch, _ in seen(eval_loader(test, 1, 0))]), images[rank::3])
        as_rank(5, 6)
        assert list(eval_loader(test, 1, 0)) == []
