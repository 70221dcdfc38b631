"""What a person at the terminal sees: progress while a sweep runs, then the front as a table."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alast_tune.config import TrialConfig, flatten
from alast_tune.plots import human_bytes, human_flops, short
from alast_tune.results import BASELINES, EpochReport, FrontFile, Reseeded, TrialResult
from alast_tune.summary import cheapest_within
from alast_tune.text import safe


def printer(console: Console) -> Callable[[object], None]:
    """Make what prints lines as they are, on however wide a terminal: no markup, no colours, no control characters."""
    return lambda line: console.print(Text(safe(line)), soft_wrap=True)


def _title(text: str) -> Text:
    return Text(safe(text), "italic")


class SweepProgress:
    """Finished, running and failed trials, best accuracy, hypervolume, time left.

    On a terminal one line that moves; elsewhere (the log of a job) one line a finished trial.
    """

    def __init__(self, total: int, finished: int, console: Console) -> None:
        self._console = console
        self.note = printer(console)
        """Prints a line above the progress."""
        self._total = total
        self._already = finished
        self._started = time.monotonic()
        self._running = self._ended = 0
        self._bar = Progress(
            TextColumn("[bold]trials[/]"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False),
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

    def ended(self, result: TrialResult, front: FrontFile, ran: bool = True) -> None:
        """A trial has ended, which may never have begun; the front is that of all so far."""
        self._running -= ran
        self._ended += 1
        done = self._already + self._ended
        per_trial = (time.monotonic() - self._started) / self._ended
        left = per_trial * (self._total - done)
        line = (
            f"{done}/{self._total} finished, {self._running} running, {front.trials.failed} failed | "
            f"best accuracy {front.best_accuracy:.3f} | "
            f"hypervolume {front.hypervolume_share:.3f} | {_duration(left)} left"
        )
        self._bar.update(self._task, completed=done, line=line)
        if not self._console.is_terminal or result.state == "failed":
            why = f" ({result.reason})" if result.reason else ""
            self.note(f"trial {result.number:04d} {result.state}{why} | {line}")

    def close(self) -> None:
        """Leave the terminal as it is."""
        self._bar.stop()


class TrainingProgress:
    """Steps done and time left on a terminal, as a bar that goes away; everywhere a line an epoch. Use it as a context.

    Args:
        console: where.
        trial: what is trained.
        steps: of an epoch.
        done: epochs that were done before.
    """

    def __init__(self, console: Console, trial: TrialConfig, steps: int, done: int = 0) -> None:
        self._print = printer(console)
        self._trial = trial
        self._steps = steps
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("steps", total=steps * trial.train.epochs, completed=steps * done)
        self._done = done

    def __enter__(self) -> TrainingProgress:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it is."""
        self._bar.stop()

    def step(self, done: int) -> None:
        """So many steps of the running epoch are done."""
        self._bar.update(self._task, completed=self._done * self._steps + done)

    def epoch(self, report: EpochReport) -> None:
        """One more epoch is done."""
        self._done = report.epoch
        seen = " (of images it trains on)" if self._trial.data.all_data else ""
        cost = report.cost
        self._print(
            f"epoch {report.epoch}/{self._trial.train.epochs} accuracy {report.accuracy:.4f}{seen} "
            f"loss {report.train_loss:.4f} {human_flops(cost.train_flops)} "
            f"peak {human_bytes(cost.peak_bytes)} steady {human_bytes(cost.steady_peak_bytes)} "
            f"{cost.wall_seconds:.1f} s"
        )


def answers(front: FrontFile, words: Sequence[str], tolerances: Sequence[float] = (0.01, 0.05)) -> Iterator[str]:
    """Say which member is the cheapest of those near full fine-tuning, what it costs beside it, and how to get it.

    Args:
        front: of one sweep.
        words: by which a command finds the sweep.
        tolerances: how much less accuracy each answer allows, in [0, 1]; one that is as the one before is left out.
    """
    last = None
    for tolerance in tolerances if front.full else ():
        member, full = cheapest_within(front, tolerance), front.full or {}
        points = f"{100 * tolerance:g} point{'s' * (tolerance != 0.01)}"
        lead = f"within {points} of full fine-tuning ({full['accuracy']:.4f}): "
        if member is None or member.baseline == "full":
            yield lead + ("nothing that is cheaper" if member else "nothing")
        elif member.trial_id != last:
            method = member.config.method
            what = BASELINES[member.baseline] if member.baseline else method.name
            shares = ", ".join(
                f"{100 * member.objectives[name] / full[name]:.0f}% of the {cost}"
                for name, cost in (("train_flops", "FLOPs"), ("peak_bytes", "memory"))
            )
            promote = shlex.join(["alast-tune", "promote", *words, "--pick", member.trial_id, "-o", "best.yaml"])
            yield f"{lead}trial {member.trial_id} ({what}): {member.objectives['accuracy']:.4f}, {shares}; {promote}"
        last = member.trial_id if member else None


def front_table(front: FrontFile) -> Table:
    """Lay the front out as a table, cheapest first: objectives, test accuracy, and what varies over it."""
    counts = front.trials
    table = Table(
        title=_title(
            f"{front.sweep}: {len(front.front)} of {front.candidates} on the front "
            f"({counts.pruned} pruned, {counts.infeasible} infeasible, {counts.failed} failed), "
            f"hypervolume {front.hypervolume_share:.4f}"
        ),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("trial", "accuracy", "test", "training", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings that differ")
    settings = [member.params or flatten(member.config) for member in front.front]
    found = [values for member, values in zip(front.front, settings, strict=True) if not member.baseline]
    varied = [path for path in (found[0] if found else {}) if len({str(one.get(path)) for one in found}) > 1]
    for member, values in zip(front.front, settings, strict=True):
        table.add_row(
            member.trial_id + (" *" if member.trial_id == front.knee else "  "),
            f"{member.objectives['accuracy']:.4f}",
            "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}",
            human_flops(member.objectives["train_flops"]),
            human_bytes(member.objectives["peak_bytes"]),
            Text(
                BASELINES[member.baseline]
                if member.baseline
                else safe(", ".join(f"{path.rsplit('/', 1)[-1]} {short(values.get(path))}" for path in varied))
            ),
            style="bold" if member.trial_id == front.knee else None,
        )
    if front.knee:
        table.caption = "* the knee: nearest to the best of every objective"
    return table


def comparison_table(fronts: Sequence[FrontFile], joint: FrontFile) -> Table:
    """Lay several sweeps' fronts side by side, their hypervolumes measured from one point; see ``together``."""
    table = Table(title="Fronts compared", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("sweep")
    for name in ("front", "of it on the joint front", "best accuracy", "hypervolume"):
        table.add_column(name, justify="right", no_wrap=True)
    for front in fronts:
        shared = sum(member.trial_id.startswith(f"{front.sweep}/") for member in joint.front)
        numbers = (f"{front.best_accuracy:.4f}", f"{front.hypervolume_share:.4f}")
        table.add_row(front.sweep, str(len(front.front)), str(shared), *numbers)
    table.add_row("all", str(len(joint.front)), "", f"{joint.best_accuracy:.4f}", f"{joint.hypervolume_share:.4f}")
    return table


def reseeded_table(reseeded: Reseeded) -> Table:
    """Lay out what a front's members come to over seeds, in the front's order."""
    table = Table(
        title=_title(f"{reseeded.sweep}: its front with {len(reseeded.seeds)} other seeds (mean ± standard deviation)"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("trial", "found", "accuracy", "test", "training", "memory", "on the front"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in reseeded.members:
        mean, spread = member.mean, member.spread
        tested = [run.test_accuracy for run in member.runs if run.test_accuracy is not None]
        table.add_row(
            member.trial_id,
            f"{member.found['accuracy']:.4f}",
            f"{mean['accuracy']:.4f} ± {spread['accuracy']:.4f}",
            f"{fmean(tested):.4f}" if tested else "-",
            f"{human_flops(mean['train_flops'])} ± {spread['train_flops'] / mean['train_flops']:.1%}",
            f"{human_bytes(mean['peak_bytes'])} ± {spread['peak_bytes'] / mean['peak_bytes']:.1%}",
            f"{member.front_probability:.0%}",
        )
    table.caption = "on the front: probability that no other member is better in everything, whatever the seed"
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe(values: Mapping[str, object], title: str) -> Table:
    """Lay out names and values in two columns."""
    table = Table(title=_title(title), show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(Text(safe(name)), Text(safe(value)))
    return table
