"""Trials into rows, rows into Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import Self

import torch

from alast_tune import __version__
from alast_tune.data.machine import cpu_count
from alast_tune.results import TrialResult

MEASURES = ("train_flops", "peak_bytes", "steady_peak_bytes", "train_seconds", "accuracy")
"""What is put in proportion to full fine-tuning: names of the trials' metrics."""


@dataclass(frozen=True)
class Row:
    """Trials that differ in their seed alone."""

    name: str
    learning_rate: float
    seeds: int
    means: Mapping[str, float]
    """Of :data:`MEASURES`: FLOPs, bytes, bytes, seconds, share of the validation images."""
    spread: float | None
    """Sample standard deviation of the validation accuracy; None with one seed."""
    test_accuracy: float | None
    """Mean; None if the dataset has no test images."""
    test_spread: float | None

    @classmethod
    def of(cls, name: str, trials: Sequence[TrialResult]) -> Self:
        """Average trials; at least one."""
        tested = [trial.test_accuracy for trial in trials if trial.test_accuracy is not None]
        return cls(
            name=name,
            learning_rate=trials[0].config.train.learning_rate,
            seeds=len(trials),
            means={measure: statistics.mean(trial.metrics[measure] for trial in trials) for measure in MEASURES},
            spread=spread([trial.metrics["accuracy"] for trial in trials]),
            test_accuracy=statistics.mean(tested) if tested else None,
            test_spread=spread(tested),
        )

    def ratios(self, full: Row | None) -> dict[str, float]:
        """Put the means in proportion to full fine-tuning's; empty without it."""
        return {measure: mean / full.means[measure] for measure, mean in self.means.items()} if full else {}

    def accuracies(self) -> list[str]:
        """Write validation and test accuracy, each with its spread."""
        return [
            with_spread(self.means["accuracy"], self.spread),
            "-" if self.test_accuracy is None else with_spread(self.test_accuracy, self.test_spread),
        ]


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def with_spread(mean: float, deviation: float | None) -> str:
    """Write a mean and its spread: ``0.912 ± 0.004``."""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def ratio(value: float | None) -> str:
    """Write a ratio with two digits behind the point."""
    return "-" if value is None else f"{value:.2f}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table; a ``|`` in a cell does not end it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(records: Sequence[Mapping[str, object]]) -> str:
    """Write records as CSV; columns are those of all of them, in the order in which they are met."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def numbers(row: Row, full: Row | None) -> dict[str, object]:
    """Put a row and its ratios into a CSV record."""
    record: dict[str, object] = {"learning_rate": row.learning_rate, "seeds": row.seeds, **row.means}
    record |= {"accuracy_spread": row.spread, "test_accuracy": row.test_accuracy, "test_spread": row.test_spread}
    return record | {f"{measure}_ratio": value for measure, value in row.ratios(full).items()}


def made_by(command: str, seeds: int) -> str:
    """Say when, with what and where a report was made."""
    packages = ("torch", "timm", "peft", "ray", "optuna")
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    machine = ", ".join([f"{cpu_count()} CPU cores", *cards])
    versions = ", ".join([f"alast-tune {__version__}", *(f"{package} {version(package)}" for package in packages)])
    seen = "seed 0" if seeds == 1 else f"seeds 0 to {seeds - 1}"
    return f"Made by `{command}` on {date.today().isoformat()}, {seen}, on {machine}; {versions}."


NOTES = """\
Every figure comes from trials that ran all their epochs. Compute is forward and backward of the tokens and blocks
that were used, exact, a multiply-add being 2 FLOPs; finding out which blocks to train is part of it. Memory is the
largest peak of any step; the steady one is the median of the steps' peaks. Time is that of the training steps with
their loading: it depends on what else the machine did, and is noisy. Accuracy is the mean over seeds, ± its sample
standard deviation; with few seeds and few images, differences smaller than that say nothing."""
