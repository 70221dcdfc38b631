"""What a person at the terminal sees: a training's progress, what a sweep has found, and its front as a table."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from alast_tune.config import Limits, TrialConfig
from alast_tune.labels import differing, member_settings, method_label, setting_labels
from alast_tune.near_full import hypervolume_words, knee_words, points, share_of_full, time_share, uncertainty_words
from alast_tune.other_seeds import in_the_mean, without_seeds
from alast_tune.plots import human_bytes, human_flops, short
from alast_tune.results import BASELINES, EpochReport, FrontFile, FrontMember, Reseeded, ReseededMember
from alast_tune.scores import SCORES
from alast_tune.summary import cheapest_within
from alast_tune.text import safe


def printer(console: Console) -> Callable[[object], None]:
    """Make what prints lines as they are, on however wide a terminal: no markup, no colours, no control characters."""
    return lambda line: console.print(Text(safe(line)), soft_wrap=True)


def _title(text: str) -> Text:
    return Text(safe(text), "italic")


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
        score = SCORES[report.score]
        quality = "not evaluated" if math.isnan(report.quality) else f"{score} {report.quality:.4f}{seen}"
        cost = report.cost
        self._print(
            f"epoch {report.epoch}/{self._trial.train.epochs} {quality} "
            f"loss {report.train_loss:.4f} {human_flops(cost.train_flops)} "
            f"peak {human_bytes(cost.peak_bytes)} steady {human_bytes(cost.steady_peak_bytes)} "
            f"{cost.wall_seconds:.1f} s"
        )


_NEAR, _BEST = " of full fine-tuning", "best under your limits"
_TOLERANCES = (0.01, 0.05)
"""The answers that most people want: the cheapest within so much of full fine-tuning's accuracy."""


def show(console: Console, front: FrontFile, words: Sequence[str], again: Reseeded | None) -> None:
    """Print what a sweep has found: its answers, its front, and what came of other seeds; see :func:`answers`."""
    for line in answers(front, words, again):
        printer(console)(line)
    console.print(front_table(front))
    if again:
        console.print(SeedsTable(front, again))


def answers(
    front: FrontFile, words: Sequence[str], again: Reseeded | None = None, tolerances: Sequence[float] = _TOLERANCES
) -> Iterator[str]:
    """Say what a sweep has found: who is cheapest near full fine-tuning, who is best under limits, and how to get it.

    Args:
        front: of one sweep.
        words: by which a command finds the sweep.
        again: what is known of other seeds; where that is enough, answers are by their means.
        tolerances: how much less accuracy than full fine-tuning's each answer allows, in [0, 1].

    Yields:
        A line for each member that is an answer, with all that it is the answer to; and how sure that is, if chance is
        larger than the least tolerance.
    """
    asked: list[tuple[str, float | None]] = [
        (f"within {points(tolerance)}{_NEAR}", tolerance) for tolerance in (tolerances if front.full else ())
    ]
    asked += [] if front.limits == Limits() else [(_BEST, None)]
    said: dict[tuple[str, str], list[str]] = {}
    for question, tolerance in asked:
        judged, seeds = in_the_mean(front, again, tolerance)
        mean = f", in the mean of {len(seeds)} other seeds" if seeds else ""
        said.setdefault((mean, _answer(judged, tolerance, words)), []).append(question)
    for (mean, answer), them in said.items():
        lead = ", also ".join([them[0], *(question.removesuffix(_NEAR) for question in them[1:])])
        yield f"{lead}{mean}: {answer}"
    if again and (newer := without_seeds(front, again)):
        yield f"other seeds: not of {', '.join(newer)}; so answers are of the first runs, until --reseed has run all"
    elif not any(mean for mean, _ in said) and (unsure := uncertainty_words(front, min(tolerances))):
        yield f"how sure: {unsure}"


def _answer(front: FrontFile, tolerance: float | None, words: Sequence[str]) -> str:
    """Name the cheapest member so near full fine-tuning, None: the most accurate one; and how to get it."""
    if tolerance is None:
        member = max(front.front, key=lambda member: member.objectives["accuracy"], default=None)
    else:
        member = cheapest_within(front, tolerance)
    if member is None:
        return "nothing"
    if member.baseline == "full" and tolerance is not None:
        return "nothing that is cheaper"
    promote = shlex.join(["alast-tune", "promote", *words, "--pick", member.trial_id, "-o", "best.yaml"])
    return f"{_in_figures(front, member)}; {promote}"


def _in_figures(front: FrontFile, member: FrontMember) -> str:
    """Name a member, its accuracy, and what it costs: beside full fine-tuning, or where that is not known, as it is."""
    what = method_label(member.config, member.baseline, key=True)
    costs = []
    for cost, name, absolute in (("train_flops", "FLOPs", human_flops), ("peak_bytes", "memory", human_bytes)):
        share = share_of_full(front, member, cost)
        value = absolute(member.objectives[cost])
        costs.append(f"{value} of {name}" if share is None else f"{share:.0%} of the {name}")
    seconds = time_share(front, member)
    costs += [] if seconds is None else [f"{seconds:.2f} of the time"]
    costs = [] if member.baseline == "full" else costs
    return ", ".join([f"trial {member.trial_id} ({what}): {member.objectives['accuracy']:.4f}", *costs])


class FrontTable:
    """Lays a front out in 80 columns, cheapest first: a row a member, and under it, dim, the settings that differ."""

    def __init__(self, front: FrontFile) -> None:
        self._front = front

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        front, width = self._front, max(40, options.max_width)
        yield _title(_heading(front))
        if not front.front:
            return
        head, *rows = _aligned(
            ("trial", "method", front.score_label, "test", "FLOPs", "memory"),
            *(_row(front, member) for member in front.front),
        )
        yield from _head(head, width)
        paths = differing(front)
        for member, row in zip(front.front, rows, strict=True):
            yield _line(row, "bold" if member.trial_id == front.knee else "")
            own = member_settings(member)
            labels = [] if member.baseline else setting_labels({path: own[path] for path in paths if path in own})
            for text in joined(labels, width - 2):
                yield Text("  " + text, "dim")
        if front.full:
            yield _title("%: of what full fine-tuning takes")
        if front.knee:
            yield _title(f"* the knee: the best compromise {knee_words(front)}")


def front_table(front: FrontFile, *, wide: bool = False) -> RenderableType:
    """Lay the front out as a table, cheapest first: in 80 columns, or ``wide``, a row a member with everything."""
    if not wide:
        return FrontTable(front)
    paths = differing(front)
    table = Table(title=_title(_heading(front)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    names = ("trial", "method", front.score_label, "test", "FLOPs", "of full", "memory", "of full", "time", "epochs")
    for name in (*names, *(path.removeprefix("method/") for path in paths)):
        table.add_column(Text(safe(name)), justify="left" if name == "method" else "right", no_wrap=True)
    for member in front.front:
        trial, method, accuracy, test, *_ = _row(front, member)
        flops, peak = (member.objectives[cost] for cost in ("train_flops", "peak_bytes"))
        shares = [share_of_full(front, member, cost) for cost in ("train_flops", "peak_bytes")]
        of_flops, of_peak = ("-" if share is None else f"{share:.1%}" for share in shares)
        seconds = time_share(front, member)
        time = "-" if seconds is None else f"{seconds:.2f}"
        own = member_settings(member)
        values = ("" if member.baseline else short(own.get(path, "-")) for path in paths)
        cells = (trial, method, accuracy, test, human_flops(flops), of_flops, human_bytes(peak), of_peak, time)
        style = "bold" if member.trial_id == front.knee else None
        table.add_row(*(Text(safe(cell)) for cell in (*cells, member.epochs, *values)), style=style)
    if front.knee:
        table.caption = _title(f"* the knee: the best compromise {knee_words(front)}")
        table.caption_justify = "left"
    return table


def _heading(front: FrontFile) -> str:
    """Say whose front it is, of how many trials; how good, and by what, in a line of its own."""
    counts = front.trials
    others = [f"{getattr(counts, kind)} {kind}" for kind in ("pruned", "infeasible", "failed") if getattr(counts, kind)]
    apart = f" ({', '.join(others)})" if others else ""
    lead = f"{front.sweep}: {len(front.front)} of {front.candidates} on the front{apart}"
    return f"{lead}\n{hypervolume_words(front)}"


def _row(front: FrontFile, member: FrontMember) -> tuple[str, ...]:
    """Trial, method, accuracies and costs of a member, as percent of full fine-tuning's where those are known."""
    flops, peak = (member.objectives[cost] for cost in ("train_flops", "peak_bytes"))
    of_flops, of_peak = (share_of_full(front, member, cost) for cost in ("train_flops", "peak_bytes"))
    return (
        member.trial_id + (" *" if member.trial_id == front.knee else ""),
        method_label(member.config, member.baseline),
        f"{member.objectives['accuracy']:.4f}",
        "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}",
        human_flops(flops) if of_flops is None else f"{of_flops:.0%}",
        human_bytes(peak) if of_peak is None else f"{of_peak:.0%} ({human_bytes(peak)})",
    )


def joined(labels: Sequence[str], width: int) -> Iterator[str]:
    """Join labels by commas into lines of at most ``width`` columns; a longer label has a line of its own."""
    line = ""
    for place, label in enumerate(labels, start=1):
        piece = label + "," * (place < len(labels))
        longer = f"{line} {piece}".lstrip()
        if line and cell_len(longer) > width:
            yield line
            longer = piece
        line = longer
    if line:
        yield line


def comparison_table(fronts: Sequence[FrontFile], joint: FrontFile) -> Table:
    """Lay several sweeps' fronts side by side, their hypervolumes measured from one point."""
    table = Table(title="Fronts compared", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("sweep")
    for name in ("front", "of it on the joint front", f"best {joint.score_label}", "hypervolume"):
        table.add_column(name, justify="right", no_wrap=True)
    for front in fronts:
        shared = sum(member.trial_id.startswith(f"{front.sweep}/") for member in joint.front)
        numbers = (f"{front.best_accuracy:.4f}", f"{front.hypervolume_share or 0.0:.4f}")
        table.add_row(front.sweep, str(len(front.front)), str(shared), *numbers)
    numbers = (f"{joint.best_accuracy:.4f}", f"{joint.hypervolume_share or 0.0:.4f}")
    table.add_row("all", str(len(joint.front)), "", *numbers)
    table.caption_justify = "left"
    table.caption = f"hypervolume: of what has {joint.score_label} {joint.region.floor:.4f} and above"
    return table


class SeedsTable:
    """Lays out in 80 columns what a front's members, and full fine-tuning, come to over other seeds."""

    def __init__(self, front: FrontFile, again: Reseeded) -> None:
        self._front, self._again = front, again

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        again, front = self._again, self._front
        mean, _ = in_the_mean(front, again)
        configs = {member.trial_id: member.config for member in front.front}
        # Who is neither breaks the limits that this front keeps, or is on it no more.
        them = [member for member in again.members if member.trial_id in configs or member.baseline]
        head, *rows = _aligned(
            ("trial", "method", front.score_label, "test", "FLOPs", "memory", "front"),
            *(self._row(member, mean.full, configs.get(member.trial_id)) for member in them),
        )
        yield _title(f"{again.sweep}: candidates with {len(again.seeds)} other seeds (mean ± standard deviation)")
        yield from _head(head, options.max_width)
        for member, row in zip(them, rows, strict=True):
            yield _line(row, "bold" if member.trial_id == front.knee else "")
        yield _title("front: the probability that no other member is better in everything")

    def _row(
        self, member: ReseededMember, full: Mapping[str, float] | None, config: TrialConfig | None
    ) -> tuple[str, ...]:
        tested = [run.test_accuracy for run in member.runs if run.test_accuracy is not None]
        return (
            member.trial_id + (" *" if member.trial_id == self._front.knee else ""),
            method_label(config, member.baseline) if config else BASELINES[member.baseline or "full"],
            f"{member.mean['accuracy']:.4f} ± {member.spread['accuracy']:.4f}",
            f"{fmean(tested):.4f}" if tested else "-",
            _over_seeds(member, full, "train_flops", human_flops),
            _over_seeds(member, full, "peak_bytes", human_bytes),
            f"{member.front_probability:.0%}",
        )


def _aligned(*rows: Sequence[str]) -> list[str]:
    """Put cells under one another: two columns of names, the others of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        [
            cell.ljust(size) if place < 2 else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return ["  ".join(cells) for cells in padded]


def _head(head: str, width: int) -> Iterator[Text]:
    yield _line(head, "bold")
    yield Text("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * min(width, len(head)))


def _line(row: str, style: str = "") -> Text:
    return Text(row.rstrip(), style, no_wrap=True, overflow="ignore")


def _over_seeds(
    member: ReseededMember, full: Mapping[str, float] | None, cost: str, absolute: Callable[[float], str]
) -> str:
    """Write a mean cost and its spread, if that is as much, in percent of full fine-tuning's where that is known."""
    mean, spread = member.mean[cost], member.spread[cost]
    if not full:
        return absolute(mean)
    apart = f"{spread / full[cost]:.0%}"
    return f"{mean / full[cost]:.0%}" + ("" if apart == "0%" else f" ± {apart}")


def describe(values: Mapping[str, object], title: str) -> Table:
    """Lay out names and values in two columns."""
    table = Table(title=_title(title), show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(Text(safe(name)), Text(safe(value)))
    return table
