"""What a person at the terminal sees: progress while a sweep runs, then the front as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from alast_tune.config import flatten
from alast_tune.plots import human_bytes, human_flops
from alast_tune.results import FrontFile, TrialResult


class SweepProgress:
    """Finished, running and failed trials, best accuracy, hypervolume, time left.

    On a terminal one line that moves; elsewhere (the log of a job) one line a finished trial.
    """

    def __init__(self, total: int, finished: int, console: Console) -> None:
        self._console = console
        self._total = total
        self._already = finished
        self._started = time.monotonic()
        self._running = 0
        self._bar = Progress(
            TextColumn("[bold]trials[/]"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("trials", total=total, completed=finished, line="starting")
        self._bar.start()

    def started(self) -> None:
        """One more trial runs."""
        self._running += 1
        self._bar.update(self._task, line=f"{self._already} of {self._total} finished, {self._running} running")

    def ended(self, result: TrialResult, front: FrontFile) -> None:
        """A trial has ended; the front is that of all so far."""
        self._running = max(0, self._running - 1)
        done = front.trials.finished
        per_trial = (time.monotonic() - self._started) / max(1, done - self._already)
        left = per_trial * (self._total - done)
        line = (
            f"{done}/{self._total} finished, {self._running} running, {front.trials.failed} failed | "
            f"best accuracy {front.best_accuracy:.3f} | "
            f"hypervolume {front.hypervolume_share:.3f} | {_duration(left)} left"
        )
        self._bar.update(self._task, completed=done, line=line)
        if not self._console.is_terminal or result.state == "failed":
            why = f" ({result.reason})" if result.reason else ""
            self._console.print(
                f"trial {result.number:04d} {result.state}{why} | {line}", highlight=False, soft_wrap=True
            )

    def note(self, text: str) -> None:
        """Print a line above the progress."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it is."""
        self._bar.stop()


def front_table(front: FrontFile) -> Table:
    """Lay the front out as a table, cheapest first: objectives, test accuracy, and what varies over it."""
    counts = front.trials
    table = Table(
        title=f"{front.sweep}: {len(front.front)} of {counts.complete} complete trials on the front "
        f"({counts.pruned} pruned, {counts.failed} failed), hypervolume {front.hypervolume_share:.4f}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("trial", "accuracy", "test", "training", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings that differ")
    flat = [flatten(member.config) for member in front.front]
    varied = [path for path in (flat[0] if flat else {}) if len({str(one.get(path)) for one in flat}) > 1]
    for member, values in zip(front.front, flat, strict=True):
        table.add_row(
            member.trial_id + (" *" if member.trial_id == front.knee else "  "),
            f"{member.objectives['accuracy']:.4f}",
            "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}",
            human_flops(member.objectives["train_flops"]),
            human_bytes(member.objectives["peak_bytes"]),
            ", ".join(f"{path.rsplit('/', 1)[-1]} {_short(values.get(path))}" for path in varied),
            style="bold" if member.trial_id == front.knee else None,
        )
    if front.knee:
        table.caption = "* the knee: nearest to the best of every objective"
    return table


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe(values: Mapping[str, object], title: str) -> Table:
    """Lay out names and values in two columns."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(name, str(value))
    return table
