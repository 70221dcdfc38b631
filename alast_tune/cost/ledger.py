"""What each training step did and cost, a line a step, in a file: memory and checkpoints know its length alone."""

from __future__ import annotations

import csv
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from alast_tune.storage import atomic_write

_LOG = logging.getLogger(__name__)

STEPS = "steps.csv"
"""What each step did and cost, beside the checkpoint."""

_BUFFER = 1 << 16
"""Bytes of lines that wait for the disk, some hundred steps; of a run without a folder as many stay in memory."""


@dataclass(frozen=True)
class StepRecord:
    """One step of a run, L blocks."""

    step: int
    images: int
    probe: bool
    """Whether it was a probe of exploration, whose weights were put back."""
    flops: int
    held_bytes: int
    """Predicted to wait for the backward when the forward has ended."""
    full_held_bytes: int
    """The same, if every block trained on every token of images of the model's own size."""
    predicted_peak_bytes: int
    measured_peak_bytes: int
    """By the allocator or the tracker; 0 for a step that was not measured."""
    trainable_L: tuple[bool, ...]
    """Which blocks trained."""
    tokens_L: tuple[int, ...]
    """That each block received."""
    budgets_L: tuple[float, ...]
    """Of each block after the step; empty for methods that have none."""

    def header(self) -> str:
        """Name the columns: the step's costs, then for each block whether it trained, its tokens and its budget."""
        blocks = {"trains": self.trainable_L, "tokens": self.tokens_L, "budget": self.budgets_L}
        names = [f"{name}_{block:02d}" for name, values in blocks.items() for block in range(len(values))]
        return f"{','.join([*_COSTS, *names])}\r\n"

    def line(self) -> str:
        """Write the columns' values."""
        costs = [int(getattr(self, name)) for name in _COSTS]
        values = [*costs[:-1], costs[-1] or "", *map(int, self.trainable_L), *self.tokens_L, *self.budgets_L]
        return f"{','.join(map(str, values))}\r\n"


_COSTS = [field.name for field in fields(StepRecord)][:-3]


class Ledger:
    """The steps of a run, in order, in a file: a temporary one until :meth:`keep_in` names another."""

    def __init__(self) -> None:
        self.steps = 0
        """How many there have been."""
        self.unknown = 0
        """How many of the first ones the file lacks, because a resumed run did not find them."""
        self._bytes = 0  # of the file,
        self._checksum = 0  # and over them
        self._path: Path | None = None  # of the file, unless it is temporary
        self._restored: Path | None = None  # where the lines of a resumed run were found
        self._file: IO[bytes] = _temporary()

    def __del__(self) -> None:
        """Write what waits."""
        self._file.close()

    def add(self, record: StepRecord) -> None:
        """Append a step's line."""
        lines = record.line().encode() if self._bytes else (record.header() + record.line()).encode()
        self._file.write(lines)
        self._bytes += len(lines)
        self._checksum = zlib.crc32(lines, self._checksum)
        self.steps += 1

    def read(self) -> Iterator[StepRecord]:
        """Read the steps back, one at a time; none may be added meanwhile."""
        rows = csv.reader(line.decode() for line in self._lines())
        depth = sum(name.startswith("trains_") for name in next(rows, []))
        for row in rows:
            costs: dict[str, Any] = {name: int(cost or 0) for name, cost in zip(_COSTS, row, strict=False)}
            blocks = row[len(_COSTS) :]
            yield StepRecord(
                **costs | {"probe": bool(costs["probe"])},
                trainable_L=tuple(one == "1" for one in blocks[:depth]),
                tokens_L=tuple(map(int, blocks[depth : 2 * depth])),
                budgets_L=tuple(map(float, blocks[2 * depth :])),
            )

    def keep_in(self, path: Path) -> None:
        """Go on in a file, which is cut back to the steps so far; one that is not this run's stays as ``.bak``."""
        if self.steps and path.exists() and path != self._restored:
            path.replace(path.with_name(f"{path.name}.bak"))
        if not path.exists():
            self.write(path)
        os.truncate(path, self._bytes)  # a process that was killed may have written more
        self._file.close()
        self._path, self._file = path, path.open("a+b", _BUFFER)

    def write(self, path: Path) -> None:
        """Have all lines so far in a file; its own need only be flushed."""
        self._file.flush()
        if path == self._path:
            return
        with atomic_write(path) as scratch, scratch.open("wb") as file:
            file.writelines(self._lines())

    def state_dict(self) -> dict[str, int]:
        """How much of the file a checkpoint goes with."""
        return {"steps": self.steps, "unknown": self.unknown, "bytes": self._bytes, "checksum": self._checksum}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what :meth:`state_dict` gave; the lines come from :meth:`restore`."""
        self.steps, self.unknown = state["steps"], state["unknown"]
        self._bytes, self._checksum = state["bytes"], state["checksum"]

    def restore(self, path: Path) -> None:
        """Copy the lines that a checkpoint goes with from a file; without them, say so and go on."""
        self._file.close()
        self._file, self._path, self._restored = _temporary(), None, path
        if self._bytes and not self._copy(path):
            _LOG.warning(
                f"note: {path} does not begin with the {self.steps} steps of the checkpoint: its weights are right, "
                f"but what these steps did is lost; the table begins again with step {self.steps}"
            )
            self._file.close()
            self._file, self._restored = _temporary(), None
            self.unknown, self._bytes, self._checksum = self.steps, 0, 0

    def _lines(self) -> Iterator[bytes]:
        """Read the file from its beginning; then it is again where lines are added."""
        self._file.seek(0)
        try:
            yield from self._file
        finally:
            self._file.seek(0, os.SEEK_END)

    def _copy(self, path: Path) -> bool:
        """Copy as many bytes as a checkpoint goes with; False if these are not there, or others."""
        left, checksum = self._bytes, 0
        try:
            with path.open("rb") as file:
                while chunk := file.read(min(left, _BUFFER)):
                    self._file.write(chunk)
                    left, checksum = left - len(chunk), zlib.crc32(chunk, checksum)
        except OSError:
            return False
        return (left, checksum) == (0, self._checksum)


def _temporary() -> IO[bytes]:
    return SpooledTemporaryFile(_BUFFER)
