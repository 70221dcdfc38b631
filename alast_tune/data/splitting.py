"""Dividing labelled images: pure functions of labels and a seed."""

from __future__ import annotations

import hashlib
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


def balanced_subset(labels: Indices, count: int, seed: int) -> Indices:
    """Choose at most ``count`` sorted indices at random, as evenly from all classes as their sizes allow."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of an image within its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def by_hash(keys: Sequence[str], labels: Indices, shares: Sequence[float], seed: int) -> list[Indices]:
    """Split by a hash of each key alone, so that an image that is added or removed moves no other.

    The shares are therefore met on average, and a small class may have no image in a held-out part. Only where the
    hash would hold out a whole class does the image with its greatest hash go to the rest, which has every class.

    Args:
        keys: (n,) a name of each image that does not change.
        labels: (n,) integers.
        shares: of each part that is held out, in [0, 1), their sum below 1.
        seed: goes into the hash.

    Returns:
        Sorted indices into ``labels``: the held-out parts, then the rest.
    """
    hashes = [hashlib.blake2b(f"{seed}/{key}".encode(errors="surrogateescape"), digest_size=8) for key in keys]
    drawn = np.array([int.from_bytes(hashed.digest()) for hashed in hashes]) / 2.0**64
    part = np.searchsorted(np.cumsum(shares), drawn, side="right")
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if (part[members] < len(shares)).all():
            part[members[drawn[members].argmax()]] = len(shares)
    return [np.flatnonzero(part == index) for index in range(len(shares) + 1)]
