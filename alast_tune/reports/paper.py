"""The paper's tables as data (``paper.yaml``), and what in them cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import yaml

from alast_tune.config import Record

FULL = "FT full"

MEASURES = ("compute", "memory", "time", "accuracy")
"""What the paper's tables have of each method: PFLOPs, MB, minutes, share."""

_DOES_LESS = ("FT head", "FT top-3", "ToMe", "BSR", "ALaST")
"""Methods that leave out a part of full fine-tuning's work and add nothing to it."""

_NO_CHOICE = ("FT head", FULL, "FT top-3", "LoRA")
"""Methods whose memory depends on the model and the batch alone, but for a classifier of 100, 101 or 102 classes."""


class Architecture(Record):
    """A line of table 1."""

    embedding: int
    heads: int
    layers: int
    params: int
    """In millions."""


class Table(Record):
    """One of tables 2 to 7: model -> method -> compute, memory, time, accuracy."""

    table: int
    caption: str
    dataset: str
    rows: dict[str, dict[str, tuple[float, float, float, float]]]


class Paper(Record):
    """The paper's tables as printed."""

    source: str
    architectures: dict[str, Architecture]
    tables: tuple[Table, ...]

    @property
    def methods(self) -> list[str]:
        """Name the rows of all tables."""
        return list(dict.fromkeys(method for _, _, method, _ in self._all()))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Name the pairs of model and dataset."""
        return list(dict.fromkeys((model, table.dataset) for table, model, _, _ in self._all()))

    def row(self, model: str, dataset: str, method: str) -> dict[str, float] | None:
        """Find what is printed of a method, by measure; None if there is no such row."""
        for table in self.tables:
            if table.dataset == dataset and method in table.rows.get(model, {}):
                return dict(zip(MEASURES, table.rows[model][method], strict=True))
        return None

    def ratios(self, model: str, dataset: str, method: str) -> dict[str, float] | None:
        """Put what is printed of a method in proportion to full fine-tuning, by measure."""
        row, full = self.row(model, dataset, method), self.row(model, dataset, FULL)
        return {name: row[name] / full[name] for name in MEASURES} if row and full else None

    def impossible(self) -> list[str]:
        """Say, a sentence each, which printed figures cannot be true, or not together."""
        return list(dict.fromkeys([*self._above_full(), *self._head_above_others(), *self._unsteady(), *self._k()]))

    def _above_full(self) -> Iterator[str]:
        for table, model, method, row in self._all():
            full = dict(zip(MEASURES, table.rows[model].get(FULL, ()), strict=False))
            for measure, unit in (("compute", "PFLOPs"), ("memory", "MB")):
                if method in _DOES_LESS and full and row[measure] > full[measure]:
                    yield (
                        f"Table {table.table}: {method} on {model} is printed with {row[measure]:g} {unit}, above full "
                        f"fine-tuning's {full[measure]:g}, of whose work it leaves out a part."
                    )

    def _head_above_others(self) -> Iterator[str]:
        """Training the head alone is the least of what top-3 and LoRA do, on as many tokens."""
        for table, model, method, row in self._all():
            head = dict(zip(MEASURES, table.rows[model].get("FT head", ()), strict=False))
            for measure, unit in (("compute", "PFLOPs"), ("memory", "MB")):
                if method in ("FT top-3", "LoRA") and head and row[measure] < head[measure]:
                    yield (
                        f"Table {table.table}: {method} on {model} is printed with {row[measure]:g} {unit}, below the "
                        f"{head[measure]:g} of the head alone, which it trains as well."
                    )

    def _unsteady(self) -> Iterator[str]:
        for model in self.architectures:
            for method in _NO_CHOICE:
                printed = {
                    table.table: row["memory"] for table, of, name, row in self._all() if (of, name) == (model, method)
                }
                if max(printed.values()) > 1.1 * min(printed.values()):
                    listed = ", ".join(f"{memory:g} (table {table})" for table, memory in printed.items())
                    yield (
                        f"The memory of {method} on {model} is printed as {listed} MB, though it depends on the model "
                        "and the batch, not on the images."
                    )
        full = {(table.dataset, model): row["compute"] for table, model, name, row in self._all() if name == FULL}
        datasets = list(dict.fromkeys(dataset for dataset, _ in full))
        for dataset in datasets[1:]:
            ratios = {model: full[datasets[0], model] / full[dataset, model] for model in self.architectures}
            if max(ratios.values()) > 1.1 * min(ratios.values()):
                listed = ", ".join(f"{ratio:.2f} for {model}" for model, ratio in ratios.items())
                yield (
                    f"Full fine-tuning on {datasets[0]} is printed with {listed} times the FLOPs of {dataset}, though "
                    "that is a ratio of images seen, the same for every model."
                )

    def _k(self) -> Iterator[str]:
        """Tables 2 and 4 have the same runs: K = 9 must lie between K = 8 and K = 10."""
        ours = self.row("DeiT-S", "Food-101", "ALaST")
        low, high = (self.row("DeiT-S", "Food-101", f"K {k}") for k in (8, 10))
        assert ours and low and high
        for measure, unit in (("compute", "PFLOPs"), ("memory", "MB")):
            if not low[measure] <= ours[measure] <= high[measure]:
                yield (
                    f"Table 2 has {ours[measure]:g} {unit} for ALaST on DeiT-S, where K is 9; table 4 has "
                    f"{low[measure]:g} for K = 8 and {high[measure]:g} for K = 10."
                )

    def _all(self) -> Iterator[tuple[Table, str, str, dict[str, float]]]:
        for table in self.tables:
            for model, methods in table.rows.items():
                for method, values in methods.items():
                    yield table, model, method, dict(zip(MEASURES, values, strict=True))


@cache
def read_paper() -> Paper:
    """Read the tables."""
    return Paper.model_validate(yaml.safe_load(files(__package__).joinpath("paper.yaml").read_text(encoding="utf-8")))
