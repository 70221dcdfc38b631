"""What each training step did and cost, a line a step: which blocks were frozen, and what that saved.

Cheap enough to leave on: less than a kilobyte a step in memory, written as one table at the end.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from alast_tune.methods.base import StepPlan
from alast_tune.storage import atomic_write


@dataclass(frozen=True)
class StepRecord:
    """One step of a run."""

    step: int
    images: int
    probe: bool
    """Whether it was a probe of exploration, whose weights were put back."""
    flops: int
    held_bytes: int
    """Predicted to wait for the backward when the forward has ended."""
    full_held_bytes: int
    """The same, if every block trained on every token."""
    predicted_peak_bytes: int
    measured_peak_bytes: int
    """By the allocator or the tracker; 0 for a step that was not measured."""
    plan: StepPlan
    budgets: tuple[float, ...]
    """Of each block after the step; empty for methods that have none."""


class Ledger:
    """The steps of a run, in order."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self._plans: dict[StepPlan, StepPlan] = {}

    def add(self, record: StepRecord) -> None:
        """Append a step; equal plans are kept once."""
        object.__setattr__(record, "plan", self._plans.setdefault(record.plan, record.plan))
        self.records.append(record)

    def trained_steps(self) -> tuple[int, ...]:
        """Count the steps in which each block trained (figure 9), probes left out, (L,)."""
        plans = [record.plan for record in self.records if not record.probe]
        return tuple(sum(column) for column in zip(*(plan.trainable_L for plan in plans), strict=True))

    def rows(self) -> list[dict[str, Any]]:
        """Lay every step out flat: its costs, then for each block whether it trained, its tokens and its budget."""
        return [
            {
                "step": record.step,
                "images": record.images,
                "probe": int(record.probe),
                "flops": record.flops,
                "held_bytes": record.held_bytes,
                "full_held_bytes": record.full_held_bytes,
                "predicted_peak_bytes": record.predicted_peak_bytes,
                "measured_peak_bytes": record.measured_peak_bytes or "",
                **_by_block("trains", [int(trains) for trains in record.plan.trainable_L]),
                **_by_block("tokens", record.plan.tokens_L),
                **_by_block("budget", record.budgets),
            }
            for record in self.records
        ]

    def write(self, path: Path) -> None:
        """Write all rows as CSV, atomically; nothing without a step."""
        rows = self.rows()
        if not rows:
            return
        with atomic_write(path) as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    def state_dict(self) -> list[tuple[Any, ...]]:
        """Plain values for a checkpoint."""
        return [astuple(record) for record in self.records]

    def load_state_dict(self, state: list[tuple[Any, ...]]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.records, self._plans = [], {}
        for record in state:
            values = dict(zip(StepRecord.__dataclass_fields__, record, strict=True))
            self.add(StepRecord(**values | {"plan": StepPlan(*values["plan"])}))


def _by_block(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_{block:02d}": value for block, value in enumerate(values)}
