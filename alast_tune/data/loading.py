"""Loaders: whole batches at a time, each rank its share, files decoded ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from alast_tune.data.decoded import Decoded
from alast_tune.data.images import Images
from alast_tune.data.machine import cpu_count
from alast_tune.errors import ConfigError
from alast_tune.parallel import world

AHEAD = 2
"""Batches that threads decode beyond the one that is asked for."""


def batch_count(images: int, batch_size: int) -> int:
    """Count the batches of an epoch: an incomplete last one is left out, unless it is the only one."""
    return max(1, images // batch_size)


def train_loader(
    dataset: Images, batch_size: int, workers: int, generator: torch.Generator, done: int = 0
) -> DataLoader[Any]:
    """Make a loader that shuffles: the generator's state determines the order; ``done`` batches are passed over.

    Every rank gets its share of each batch: all the same, or the first ones one image more. An incomplete
    last batch is left out, unless it is the only one.

    Raises:
        ConfigError: a batch has fewer images than there are ranks.
    """
    ranks = world()[1]
    if (smallest := min(batch_size, len(dataset))) < ranks:
        remedy = f"{ranks} ranks need an image each of every batch, here of {smallest}; give {ranks} at least"
        raise ConfigError("train.batch_size", batch_size, remedy)
    order = RandomSampler(dataset, generator=generator)
    return _loader(dataset, _Shares(order, batch_size, len(dataset) > batch_size, done), workers, generator)


def eval_loader(dataset: Images, batch_size: int, workers: int) -> DataLoader[Any]:
    """Make a loader over everything in order, of several ranks every one its turn; it moves no random state."""
    rank, ranks = world()
    batches = BatchSampler(range(rank, len(dataset), ranks), batch_size, drop_last=False)
    # A loader draws a seed for its workers whenever it starts: without its own generator, from the global one.
    return _loader(dataset, batches, workers, torch.Generator())


def whole_loader(dataset: Images, batch_size: int, workers: int) -> DataLoader[Any]:
    """Make a loader over everything in order, whatever the rank."""
    return _loader(dataset, BatchSampler(range(len(dataset)), batch_size, drop_last=False), workers, torch.Generator())


def _loader(dataset: Images, batches: BatchSampler, workers: int, generator: torch.Generator) -> DataLoader[Any]:
    pixels = dataset.pixels
    if isinstance(pixels, Decoded):
        pixels.prepare()
    return DataLoader(
        dataset,
        batch_sampler=_Ahead(batches, pixels) if isinstance(pixels, Decoded) and not workers else batches,
        collate_fn=_as_it_is,
        generator=generator,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    """Collate nothing: the images come as a batch already."""
    return batch


class _Shares(BatchSampler):
    """This rank's part of each batch, but for those that are done."""

    def __init__(self, order: RandomSampler, batch_size: int, drop_last: bool, done: int) -> None:
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
