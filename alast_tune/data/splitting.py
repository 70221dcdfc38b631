"""Dividing labelled images: pure functions of labels and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]


def stratified(labels: Indices, shares: Sequence[float], seed: int) -> list[Indices]:
    """Split at random so that every part has its share of every class, and at least one image of it.

    Args:
        labels: (n,) integers.
        shares: of each part that is held out, in (0, 1), their sum below 1.
        seed: of the draw.

    Returns:
        Sorted indices into ``labels``: the held-out parts, then the rest.

    Raises:
        ValueError: a class has fewer images than there are parts.
    """
    generator = np.random.default_rng(seed)
    parts: list[list[Indices]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < len(parts):
            raise ValueError(f"{len(members)} images with label {label} for {len(parts)} parts")
        sizes = np.array([max(1, round(len(members) * share)) for share in shares])
        while sizes.sum() >= len(members):  # rounding took all there is
            sizes[sizes.argmax()] -= 1
        for part, chunk in zip(parts, np.split(members, sizes.cumsum()), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def balanced(labels: Indices, count: int, seed: int) -> Indices:
    """Choose at most ``count`` sorted indices at random, as evenly from all classes as their sizes allow."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of an image within its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])
