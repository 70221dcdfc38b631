"""A sweep's progress: a live panel on a terminal, in a log a line for each trial that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from alast_tune.config import TrialConfig
from alast_tune.labels import method_label, setting_labels
from alast_tune.plots import human_bytes, human_flops
from alast_tune.results import FrontFile, TrialResult
from alast_tune.summary import trial_id
from alast_tune.terminal import printer
from alast_tune.text import safe

_ROWS = 8
"""So many running trials are named; of more, the others are counted."""

_PLOT_ROWS = 8
_PLOT_COLUMNS = 60
_LEFT = 7
"""Columns of the plot's labels of accuracy."""


@dataclass(frozen=True)
class Running:
    """A trial that runs."""

    label: str
    """Its method, and the settings that vary."""
    epochs: int
    """That it shall train."""
    since: float
    """When it began, by the clock of the progress, in seconds."""
    epoch: int = 0
    """Epochs that are done."""


@dataclass(frozen=True)
class SweepState:
    """How far a sweep has come: all that its panel shows."""

    name: str
    total: int
    """Trials that it will have run in the end, baselines included."""
    finished: int
    """Trials that have ended, those of earlier drivers included."""
    front: FrontFile | None = None
    """Of those that have ended; None before the first one of this driver has."""
    running: Mapping[int, Running] = field(default_factory=lambda: MappingProxyType({}))
    at_a_time: int = 0
    """The most that have run at a time."""
    seconds: tuple[float, int] = (0.0, 0)
    """How long the trials of this driver that have ended took together, and how many they are."""
    used: str = ""
    """How much of a budget of FLOPs is used, in words; empty: there is none."""

    def seconds_left(self, now: float) -> float | None:
        """Estimate how long the rest takes: as long a trial as those that have ended; None before one has."""
        spent, ended = self.seconds
        if not ended:
            return None
        mean = spent / ended
        rests = [max(0.0, mean - (now - trial.since)) for trial in self.running.values()]
        waiting = max(0, self.total - self.finished - len(rests))
        return max([(sum(rests) + waiting * mean) / max(1, self.at_a_time), *rests])

    def summary(self, now: float) -> str:
        """Say in a line how many trials have ended, how good the front is, and how long the rest takes."""
        parts = [f"{self.finished} of {self.total} trials done", f"{len(self.running)} running"]
        if self.front is not None:
            parts += [f"{self.front.trials.failed} failed"] if self.front.trials.failed else []
            share = self.front.hypervolume_share
            parts += [] if share is None else [f"hypervolume {share:.3f}"]
        parts += [self.used] if self.used else []
        left = self.seconds_left(now)
        return ", ".join(parts + ([f"about {duration(left)} left"] if left is not None and self._goes_on else []))

    @property
    def _goes_on(self) -> bool:
        return bool(self.running) or self.finished < self.total


class SweepPanel:
    """Draws a sweep's state: a summary, running trials, and the front so far as a small plot.

    No line is wider than the console, and there are no more lines than it has room for.
    """

    def __init__(self, state: SweepState, now: float) -> None:
        self._state = state
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self._state
        room = max(1, options.size.height - 2)  # a line for the cursor, one for what is printed above
        lines = [Text(safe(f"{state.name}: {state.summary(self._now)}"), "bold")]
        shown = list(state.running.items())[: min(_ROWS, max(0, room - 2))]
        for number, trial in shown:
            # The epoch comes first: a long label is cut at its end.
            epoch = f"epoch {min(trial.epoch + 1, trial.epochs)} of {trial.epochs}"
            lines.append(Text(safe(f"  {trial_id(number)}  {epoch}  {trial.label}")))
        if len(shown) < len(state.running):
            lines.append(Text(f"  and {len(state.running) - len(shown)} more"))
        height = min(_PLOT_ROWS, room - len(lines) - 2)
        width = min(_PLOT_COLUMNS, options.max_width - _LEFT - 2)
        if state.front is not None and height >= 3 and width >= 16:
            plot = front_plot(state.front, width, height, ascii_only=options.ascii_only)
            lines += [Text(line, "cyan") for line in plot]
        for line in lines[:room]:
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line


def front_plot(front: FrontFile, width: int, height: int, *, ascii_only: bool = False) -> Iterator[str]:
    """Draw a front in characters: accuracy upwards, training FLOPs to the right; full fine-tuning as ``F``.

    Args:
        front: of one sweep.
        width: columns of the plot, without its labels.
        height: rows of the plot; two more are the axis and its labels. Without members there are none at all.
        ascii_only: the terminal shows nothing else.

    Yields:
        Lines, the topmost first.
    """
    points = [(member.objectives["train_flops"], member.objectives["accuracy"]) for member in front.front]
    if not points:
        return
    marks = [(*point, "o" if ascii_only else "\N{BLACK CIRCLE}") for point in points]
    if front.full:
        marks.append((front.full["train_flops"], front.full["accuracy"], "F"))
    (left, right), (low, high) = (
        (min(values), max(values)) for values in ([m[0] for m in marks], [m[1] for m in marks])
    )
    grid = [[" "] * width for _ in range(height)]
    for flops, accuracy, mark in marks:
        column = round((flops - left) / (right - left) * (width - 1)) if right > left else width - 1
        row = round((high - accuracy) / (high - low) * (height - 1)) if high > low else 0
        grid[row][column] = mark
    side, corner, floor = "|+-" if ascii_only else "\u2502\u2514\u2500"
    for row, cells in enumerate(grid):
        label = f"{high:.3f}" if row == 0 else f"{low:.3f}" if row == height - 1 and high > low else ""
        yield f"{label:>{_LEFT}} {side}{''.join(cells)}".rstrip()
    yield f"{'':>{_LEFT}} {corner}{floor * width}"
    full = front.full["train_flops"] if front.full else 0.0
    first, last = (f"{end / full:.0%}" if full > 0 else human_flops(end) for end in (left, right))
    between = width - len(first) - len(last)
    words = (f"FLOPs{' of full fine-tuning' * (full > 0)}", "FLOPs", "")
    middle = next(text for text in words if not text or len(text) + 2 <= between)
    yield f"{'':>{_LEFT}}  {first}{middle.center(between)}{last}"


class SweepProgress:
    """Shows how far a sweep has come: on a terminal as a panel that is drawn anew, elsewhere a line an ended trial.

    Args:
        name: of the sweep.
        total: how many trials it will have run in the end.
        finished: how many have ended before.
        console: where.
        clock: seconds, by which the rest is estimated.
    """

    def __init__(
        self, name: str, total: int, finished: int, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.note = printer(console)
        """Prints a line, above the panel if there is one."""
        self._clock = clock
        self._state = SweepState(name, total, finished)  # replaced as a whole: another thread draws it
        live = console.is_terminal and not console.is_dumb_terminal
        self._live = (
            Live(console=console, get_renderable=self._panel, refresh_per_second=2, transient=True) if live else None
        )
        if self._live:
            self._live.start()
        self._skipped = 0
        self.used: Callable[[], str] = str
        """Says how much of a budget is used, if there is one."""

    def _panel(self) -> SweepPanel:
        return SweepPanel(self._state, self._clock())

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        """One more trial runs."""
        self._say_skipped()
        trial = Running(label(config, params, baseline), config.train.epochs, self._clock())
        running = {**self._state.running, number: trial}
        most = max(self._state.at_a_time, len(running))
        self._state = replace(self._state, running=MappingProxyType(running), at_a_time=most)

    def reported(self, number: int, epoch: int) -> None:
        """Note that a trial has finished ``epoch`` epochs."""
        trial = self._state.running.get(number)
        if trial is not None:
            running = {**self._state.running, number: replace(trial, epoch=epoch)}
            self._state = replace(self._state, running=MappingProxyType(running), used=self.used())

    def ended(self, result: TrialResult, front: FrontFile) -> None:
        """A trial has ended, which may never have begun; the front is that of all so far."""
        running = dict(self._state.running)
        trial = running.pop(result.number, None)
        spent, ended = self._state.seconds
        if trial is not None:
            spent, ended = spent + self._clock() - trial.since, ended + 1
        self._state = replace(
            self._state,
            finished=self._state.finished + 1,
            front=front,
            running=MappingProxyType(running),
            seconds=(spent, ended),
            used=self.used(),
        )
        if self._live:
            self._live.refresh()  # trials may be shorter than the time between two frames
        if self._live is None or result.state == "failed":
            self.note(f"{outcome(result, front)} | {self._state.summary(self._clock())}")

    def skipped(self, result: TrialResult) -> None:
        """Say why a trial is not launched; of many in a row the first alone, and at their end how many more."""
        self._skipped += 1
        if self._skipped == 1:
            self.note(f"trial {trial_id(result.number)}: {result.reason}")

    def _say_skipped(self) -> None:
        if self._skipped > 1:
            more = self._skipped - 1
            self.note(f"{more} more {'trial was' if more == 1 else 'trials were'} never launched, for such a reason")
        self._skipped = 0

    def close(self) -> None:
        """Leave the terminal as it was, but for a line that says how far the sweep has come."""
        self._say_skipped()
        if self._live:
            self._live.stop()
            self._live = None
            self.note(f"{self._state.name}: {self._state.summary(self._clock())}")


def label(config: TrialConfig, params: Mapping[str, object], baseline: str | None = None) -> str:
    """Name a trial's method and the settings that its sweep has chosen: ``ALaST, K 9, lr 0.001``."""
    settings = [] if baseline else setting_labels(params)
    return ", ".join([method_label(config, baseline), *settings])


def outcome(result: TrialResult, front: FrontFile) -> str:
    """Say in a line what a trial was and how it ended.

    Args:
        result: of the trial.
        front: of all trials so far; says what full fine-tuning costs, if that is known.
    """
    what = label(result.config, result.params, result.baseline)
    lead = f"trial {trial_id(result.number)} {result.state} ({what})"
    parts = []
    if result.values:
        accuracy, flops, peak = result.values
        full = front.full["train_flops"] if front.full else 0.0
        share = f"{flops / full:.0%} of the FLOPs" if full > 0 else human_flops(flops)
        parts.append(f"{front.score_label} {accuracy:.4f}, {share}, {human_bytes(peak)}")
    if result.reason:
        parts.append(result.reason)
    if any(member.trial_id == trial_id(result.number) for member in front.front):
        parts.append("on the front")
    return ": ".join([lead, ", ".join(parts)]) if parts else lead


def duration(seconds: float) -> str:
    """Write a time for people, in two units at most: ``duration(5400) == "1 h 30 min"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
