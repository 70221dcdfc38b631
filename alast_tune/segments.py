"""Files that only grow, in object storage: as segments, each uploaded once, and merged so that they stay few.

``study.jsonl`` is the first of its segments, ``study.jsonl.000000001234`` the one that begins at that byte. A segment
is followed by the one that begins where it ends. Several are merged by writing them as one under the name of the first,
and then deleting the others: what a driver that is killed leaves of them begins before the first one's end, and is
skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

SUFFIX = ".jsonl"
"""Of a file that only grows, line by line."""
_SEGMENT = re.compile(r"(.+\.(?:jsonl|db))\.(\d{12})")
_RUN = 32
"""So many of a size become one."""
_SIZES = (0, 1 << 14, 1 << 20)
"""Bounds of the sizes, in bytes: a segment above the last is not written again."""


class Segment(NamedTuple):
    """A part of a file, as an object."""

    start: int
    size: int
    """Bytes."""
    name: str


def parse(name: str) -> tuple[str, int]:
    """Tell an object's file, and where in it the object begins; of a database's difference its number."""
    found = _SEGMENT.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def name_at(file: str, start: int) -> str:
    """Name the segment of a file that begins at a byte, or the difference of a database with a number."""
    return f"{file}.{start:012d}" if start else file


def segments_of(file: str, sizes: Mapping[str, int]) -> tuple[list[Segment], list[str]]:
    """Find the segments that a file is made of, in order, and the names of what a killed driver has left beside them.

    Args:
        file: its name.
        sizes: of all objects, by name.
    """
    found = sorted(
        Segment(start, size, name) for name, size in sizes.items() for of, start in [parse(name)] if of == file
    )
    used: list[Segment] = []
    end = 0
    for segment in found:
        if segment.start == end:
            used.append(segment)
            end += segment.size
    names = {segment.name for segment in used}
    return used, [segment.name for segment in found if segment.name not in names]


def to_merge(segments: list[Segment]) -> list[Segment]:
    """Choose the last segments that should become one, if there are any: many of a size, and what is smaller behind."""
    for least, bound in pairwise(_SIZES):
        begin = len(segments)
        while begin and segments[begin - 1].size < bound:
            begin -= 1
        if sum(segment.size >= least for segment in segments[begin:]) >= _RUN:
            return segments[begin:]
    return []
