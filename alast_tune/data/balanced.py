"""Rare classes as often as others: an epoch's order that draws each class equally often."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """As many draws as there are images; each class that has images gets as many of them, or one more.

    No image is drawn again before all others of its class have been. The generator's state determines the order.

    Args:
        labels: (n,) of the images.
        generator: of the draws; every rank's in the same state.
    """

    def __init__(self, labels: Tensor, generator: torch.Generator) -> None:
        self.labels = labels
        self.generator = generator

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        members = [torch.nonzero(self.labels == label).flatten() for label in self.labels.unique()]
        least, left = divmod(len(self), len(members))
        lucky = self._shuffled(torch.arange(len(members)))[:left]
        counts = torch.full((len(members),), least).index_add_(0, lucky, torch.ones_like(lucky)).tolist()
        drawn = [self._drawn(images, count) for images, count in zip(members, counts, strict=True)]
        yield from self._shuffled(torch.cat(drawn)).tolist()

    def _drawn(self, images: Tensor, count: int) -> Tensor:
        """Go through the images of a class, in another order each time, until there are ``count``."""
        rounds = -(-count // len(images))
        return torch.cat([self._shuffled(images) for _ in range(rounds)] or [images[:0]])[:count]

    def _shuffled(self, values: Tensor) -> Tensor:
        return values[torch.randperm(len(values), generator=self.generator)]
