"""What one part of a step costs: run once, forward and backward, on hollow tensors (``hollow.py``).

The run has a batch and token counts that are told apart in any product, so that each storage's bytes say by their
factors how they grow with the batch and the tokens. What the part costs for other counts needs no other run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import torch

from alast_tune.cost.hollow import Hollow, arrive, depart

Counts = tuple[int, ...]
"""Images; tokens that come and those that leave; the patches among each."""


@dataclass(frozen=True)
class Flowing:
    """A tensor between two parts: all of its shape but images and tokens."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    passes: bool
    """Whether its gradient is wanted."""
    kept: bool = False
    """Whether somebody else holds it too, as a batch of images."""


@dataclass(frozen=True)
class PartCost:
    """What a part adds to a step; bytes relative to those live at its start, its input or its gradient among them."""

    flops: int
    peak: int
    left: int
    """After the forward, with the output."""
    copies: int
    """Of that, autocast's of weights, which go when the forward of the whole has ended."""
    backward_peak: int
    backward_left: int


class Part:
    """The log of a part's run, from which its cost for any counts is read.

    Args:
        log: bytes of each allocation and each free (negative), in order.
        flops: of each operation.
        marks: how much of the log there was at the start, at the end of the forward, when autocast had ended, when the
            gradient of the output was there, and when that of the input was.
        ran: counts of the run.
        output: what flows on.
    """

    def __init__(
        self, log: Sequence[int], flops: Sequence[int], marks: Sequence[int], ran: Counts, output: tuple[Flowing, ...]
    ) -> None:
        self.output = output
        self._marks = marks
        split = [split_size(size, ran) for size in (0, *log, *flops)]
        columns = {powers: column for column, powers in enumerate(dict.fromkeys(powers for powers, _ in split))}
        factors = np.zeros((len(split), len(columns)), np.int64)
        for row, (powers, factor) in enumerate(split):
            factors[row, columns[powers]] = factor
        self._live = factors[: len(log) + 1].cumsum(axis=0)
        self._flops = factors[len(log) + 1 :].sum(axis=0)
        self._powers = np.array(list(columns), np.int64)
        self._costs: dict[Counts, PartCost] = {}

    def cost(self, counts: Counts) -> PartCost:
        """Compute the cost of the part for a number of images and tokens."""
        if counts not in self._costs:
            values = (np.array(counts, np.int64) ** self._powers).prod(axis=1)
            live = self._live @ values
            start, left, ended, sent, came = self._marks
            forward, backward = live[start : left + 1], live[sent : came + 1]
            self._costs[counts] = PartCost(
                flops=int(self._flops @ values),
                peak=int(forward.max() - forward[0]),
                left=int(forward[-1] - forward[0]),
                copies=int(forward[-1] - live[ended]),
                backward_peak=int(backward.max() - backward[0]),
                backward_left=int(backward[-1] - backward[0]),
            )
        return self._costs[counts]


def split_size(size: int, ran: Counts) -> tuple[Counts, int]:
    """Take a size apart: powers of the counts (images come once at most), and the factor that is left."""
    powers = [0] * len(ran)
    for place, count in enumerate(ran):
        while count > 1 and size and size % count == 0 and powers[place] < (2 if place else 1):
            size //= count
            powers[place] += 1
    return tuple(powers), size


@cache
def distinct_counts(sizes: frozenset[int], prefix: int) -> tuple[int, int, int]:
    """Choose images, tokens that come and that leave: each of them, and the patches, has a prime factor of its own.

    Args:
        sizes: what else may be a factor of tensors' sizes.
        prefix: class token and registers.
    """
    seen: set[int] = set()

    def unique(*numbers: int) -> bool:
        marks = {_largest_prime(number) for number in numbers}
        if len(marks) < len(set(numbers)) or marks & seen or any(size % mark == 0 for size in sizes for mark in marks):
            return False
        seen.update(marks)
        return min(marks) > 10  # smaller ones count matrices, heads and bytes

    numbers = range(prefix + 11, prefix + 9999)
    leaving, arriving = islice((number for number in numbers if unique(number, number - prefix)), 2)
    return next(number for number in numbers if unique(number)), arriving, leaving


def _largest_prime(number: int) -> int:
    return max(n for n in range(2, number + 1) if number % n == 0 and all(n % factor for factor in range(2, n)))


def run_part(
    run: Callable[[Any], Any],
    shapes: Sequence[Sequence[int]],
    given: Sequence[Flowing],
    ran: Counts,
    dtype: torch.dtype | None,
) -> Part:
    """Run a part forward and backward, on what flows into it."""
    hollow = Hollow()
    log, marks = hollow.bytes, [0] * 5

    def mark(place: int) -> Callable[[], None]:
        return lambda: marks.__setitem__(place, len(log))

    with hollow, torch.enable_grad():
        inputs = [arrive(shape, one.dtype, one.passes, mark(4)) for shape, one in zip(shapes, given, strict=True)]
        state = [tuple(inputs) if len(inputs) > 1 else inputs[0]]
        if not given[0].kept:
            inputs.clear()
        mark(0)()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            result = run(state.pop())
            mark(1)()
        mark(2)()
        outputs = list(result) if isinstance(result, tuple) else [result]
        flowing = tuple(Flowing(tuple(one.shape[2:]), one.dtype, one.requires_grad) for one in outputs)
        passing = [one for one in outputs if one.requires_grad]
        del result, outputs
        if passing:
            departed = depart(passing.pop(), mark(3))
            departed.backward()
            if not marks[4]:  # no gradient was wanted of the input
                mark(4)()
    return Part(log[: max(marks)], hollow.flops, marks, ran, flowing)
