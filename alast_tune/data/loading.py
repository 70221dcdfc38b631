"""Loaders: whole batches at a time, each rank its share, files decoded ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from alast_tune.data.balanced import BalancedSampler
from alast_tune.data.decoded import Decoded
from alast_tune.data.images import Batch, Images
from alast_tune.data.machine import cpu_count
from alast_tune.errors import ConfigError
from alast_tune.parallel import world

AHEAD = 2
"""Batches that threads decode beyond the one that is asked for."""


def batch_count(images: int, batch_size: int) -> int:
    """Count the batches of an epoch: an incomplete last one is left out, unless it is the only one."""
    return max(1, images // batch_size)


def train_loader(
    dataset: Images,
    batch_size: int,
    workers: int,
    generator: torch.Generator,
    balanced: bool = False,
    done: int = 0,
) -> Loader:
    """Make a loader that shuffles, or draws each class as often: the generator's state determines the order.

    The first ``done`` batches are passed over. Every rank gets its share of each batch: all the same, or the first ones
    one image more. An incomplete last batch is left out, unless it is the only one.

    Raises:
        ConfigError: a batch has fewer images than there are ranks.
    """
    ranks = world()[1]
    if (smallest := min(batch_size, len(dataset))) < ranks:
        remedy = f"{ranks} ranks need an image each of every batch, here of {smallest}; give {ranks} at least"
        raise ConfigError("train.batch_size", batch_size, remedy)
    order = BalancedSampler(dataset.labels, generator) if balanced else RandomSampler(dataset, generator=generator)
    return Loader(dataset, _Shares(order, batch_size, len(dataset) > batch_size, done), workers, generator)


def eval_loader(dataset: Images, batch_size: int, workers: int) -> Loader:
    """Make a loader over everything in order, of several ranks every one its turn; it moves no random state."""
    rank, ranks = world()
    batches = BatchSampler(range(rank, len(dataset), ranks), batch_size, drop_last=False)
    return Loader(dataset, batches, workers, torch.Generator())


def whole_loader(dataset: Images, batch_size: int, workers: int) -> Loader:
    """Make a loader over everything in order, whatever the rank."""
    return Loader(dataset, BatchSampler(range(len(dataset)), batch_size, drop_last=False), workers, torch.Generator())


class Loader:
    """Batches and their labels: pixels come from elsewhere, and :func:`~alast_tune.data.images.prepare` is to follow.

    Processes, if there are any, know nothing of an epoch but the numbers of images; so they stay for all epochs.

    Args:
        dataset: to load.
        batches: of numbers of images.
        workers: processes that read pixels; 0: threads do, where they are not kept.
        generator: of the order.
    """

    def __init__(self, dataset: Images, batches: BatchSampler, workers: int, generator: torch.Generator) -> None:
        pixels = dataset.pixels
        if isinstance(pixels, Decoded):
            pixels.prepare()
        self.dataset = dataset
        self._batches = _Ahead(batches, pixels) if isinstance(pixels, Decoded) and not workers else batches
        self._workers = workers
        self._generator = generator

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor | Batch, Tensor]]:
        torch.empty((), dtype=torch.int64).random_(generator=self._generator)  # as torch's loader does, for workers
        loader = self.dataset.loaders.get(self._workers)
        if loader is None:
            loader = _load(self.dataset.pixels, self._workers)
            if self._workers:
                self.dataset.loaders[self._workers] = loader
        assert isinstance(loader.batch_sampler, _Batches)
        loader.batch_sampler.batches = self._batches
        for numbers, pixels in loader:
            yield self.dataset.batch(numbers, pixels), self.dataset.labels[numbers]


def _load(pixels: Callable[[list[int]], Tensor], workers: int) -> DataLoader[Any]:
    return DataLoader(
        _Pixels(pixels),
        batch_sampler=_Batches(),
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # from the global one it would draw a seed whenever it starts
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class _Pixels(Dataset[Any]):
    """What is asked for by numbers, all that processes have to know."""

    def __init__(self, pixels: Callable[[list[int]], Tensor]) -> None:
        self._pixels = pixels

    def __getitems__(self, batch: list[int]) -> tuple[list[int], Tensor]:
        return list(batch), self._pixels(batch)


class _Batches(Sampler[list[int]]):
    """Numbers of the images of an epoch's batches, which are another epoch's when it is their turn."""

    batches: Sampler[list[int]]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _as_it_is(batch: Any) -> Any:
    """Collate nothing: the images come as a batch already."""
    return batch


class _Shares(BatchSampler):
    """This rank's part of each batch, but for those that are done."""

    def __init__(self, order: Sampler[int], batch_size: int, drop_last: bool, done: int) -> None:
        super().__init__(order, batch_size, drop_last)
        self._done = done

    def __iter__(self) -> Iterator[list[int]]:
        rank, ranks = world()
        for batch in islice(super().__iter__(), self._done, None):
            yield np.array_split(batch, ranks)[rank].tolist()


class _Ahead(Sampler[list[int]]):
    """Batches, of which threads already decode the images when they are asked for."""

    def __init__(self, batches: BatchSampler, images: Decoded) -> None:
        self.batches = batches
        self.images = images

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        threads = cpu_count()
        pool = ThreadPoolExecutor(threads)  # it starts none before there is something to do
        ahead: deque[list[int]] = deque()
        try:
            for batch in self.batches:
                ahead.append(self.images.start(batch, pool, threads))
                if len(ahead) > AHEAD:
                    yield ahead.popleft()
            yield from ahead
        finally:  # also where the consumer breaks off; without waiting, which a thread of the pool itself could not
            try:  # noqa: SIM105 contextlib may be gone as well
                pool.shutdown(wait=False, cancel_futures=True)
            except AttributeError:  # the interpreter ends, and modules have lost their names
                pass
