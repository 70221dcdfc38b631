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
from alast_tune.plots import human_bytes, human_flops, short
from alast_tune.results import EpochReport, FrontFile, FrontMember, Reseeded
from alast_tune.scores import SCORES, Score
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


def answers(front: FrontFile, words: Sequence[str], tolerances: Sequence[float] = (0.01, 0.05)) -> Iterator[str]:
    """Say what a sweep has found: who is cheapest near full fine-tuning, who is best under limits, and how to get it.

    Args:
        front: of one sweep.
        words: by which a command finds the sweep.
        tolerances: how much less accuracy than full fine-tuning's each answer allows, in [0, 1].

    Yields:
        A line for each member that is an answer, with all that it is the answer to; and how sure that is, if chance is
        larger than the least tolerance.
    """
    best = max(front.front, key=lambda member: member.objectives["accuracy"], default=None)
    asked = [
        (f"within {points(tolerance)}{_NEAR}", cheapest_within(front, tolerance))
        for tolerance in (tolerances if front.full else ())
    ]
    asked += [] if front.limits == Limits() else [(_BEST, best)]
    questions: dict[str | None, list[str]] = {}
    for question, member in asked:
        questions.setdefault(member.trial_id if member else None, []).append(question)
    members = {member.trial_id: member for member in front.front}
    for name, them in questions.items():
        lead = ", also ".join([them[0], *(question.removesuffix(_NEAR) for question in them[1:])])
        if name is None:
            yield f"{lead}: nothing"
            continue
        member = members[name]
        if member.baseline == "full" and _BEST not in them:
            yield f"{lead}: nothing that is cheaper"
        else:
            promote = shlex.join(["alast-tune", "promote", *words, "--pick", member.trial_id, "-o", "best.yaml"])
            yield f"{lead}: {_in_figures(front, member)}; {promote}"
    if unsure := uncertainty_words(front, min(tolerances)):
        yield f"how sure: {unsure}"


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
        rows = [_row(front, member) for member in front.front]
        head = ("trial", "method", front.score_label, "test", "FLOPs", "memory")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

        def line(cells: Sequence[str], style: str = "") -> Text:
            padded = [
                cell.ljust(size) if place < 2 else cell.rjust(size)
                for place, (cell, size) in enumerate(zip(cells, widths, strict=True))
            ]
            return Text("  ".join(padded).rstrip(), style, no_wrap=True, overflow="ignore")

        yield line(head, "bold")
        yield Text("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * min(width, sum(widths) + 2 * len(widths) - 2))
        paths = differing(front)
        for member, cells in zip(front.front, rows, strict=True):
            yield line(cells, "bold" if member.trial_id == front.knee else "")
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
    """Lay several sweeps' fronts side by side, their hypervolumes measured from one point; see ``together``."""
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


def reseeded_table(reseeded: Reseeded, score: Score = "accuracy") -> Table:
    """Lay out what a front's members come to over seeds, in the front's order."""
    table = Table(
        title=_title(f"{reseeded.sweep}: its front with {len(reseeded.seeds)} other seeds (mean ± standard deviation)"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("trial", "found", SCORES[score], "test", "training", "memory", "on the front"):
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


def describe(values: Mapping[str, object], title: str) -> Table:
    """Lay out names and values in two columns."""
    table = Table(title=_title(title), show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(Text(safe(name)), Text(safe(value)))
    return table
