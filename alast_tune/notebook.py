"""A sweep in a notebook: its front as a table and a picture, redrawn in its place while the sweep runs."""

from __future__ import annotations

import base64
import html
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.labels import method_label
from alast_tune.plots import front_png, human_bytes, human_flops
from alast_tune.results import FrontFile, FrontMember, TrialResult
from alast_tune.scores import SCORES
from alast_tune.text import safe

PAUSE = 10.0
"""Seconds at least between two drawings of the front: each takes about one, and the search waits for it."""


def log_console() -> Console:
    """Make the console of a sweep that a program runs: standard error, so that the program's own output stays its own.

    A notebook gets the lines that a log would get. What moves on a terminal would need a widget there;
    :class:`NotebookProgress` draws instead.
    """
    if Console().is_jupyter:
        return Console(file=sys.stdout, force_jupyter=False, force_terminal=False, width=120)
    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def front_as_html(
    members: Sequence[FrontMember], front: FrontFile | None = None, results: Sequence[TrialResult] = ()
) -> str:
    """Lay out a front as a table, and draw it if there are results; no scripts, so that any notebook shows it.

    Args:
        members: of the front.
        front: which they are of; None: costs stand alone, without their percentage of full fine-tuning's.
        results: all trials of the sweep.
    """
    full = front.full if front else None
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(m, full))}</tr>" for m in members)
    score = SCORES[members[0].config.train.score] if members else "accuracy"
    heads = "".join(f"<th>{head}</th>" for head in ("trial", "method", score, "test", "training", "memory"))
    title = (
        f"<p><b>{html.escape(safe(front.sweep))}</b>: {len(members)} of {front.candidates} on the front</p>"
        if front
        else ""
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    if front is None or not any(result.values for result in results):
        return title + table
    picture = base64.b64encode(front_png(front, results)).decode()
    return (
        f'{title}{table}<img alt="the front" style="max-width: 100%" width="825" src="data:image/png;base64,{picture}">'
    )


def _cells(member: FrontMember, full: Mapping[str, float] | None) -> Iterator[str]:
    yield member.trial_id
    yield method_label(member.config, member.baseline, key=True)
    yield f"{member.objectives['accuracy']:.4f}"
    yield "-" if member.test_accuracy is None else f"{member.test_accuracy:.4f}"
    for name, words in (("train_flops", human_flops), ("peak_bytes", human_bytes)):
        value = member.objectives[name]
        yield words(value) + (f" ({100 * value / full[name]:.0f}%)" if full else "")


class Drawable(Protocol):
    """What a notebook can show."""

    def _repr_html_(self) -> str: ...


class NotebookProgress:
    """A callback that shows in one place of a notebook how far a sweep is, and its front so far.

    Args:
        sweep: which it is.
        clock: seconds.
    """

    def __init__(self, sweep: Drawable, clock: Callable[[], float] = time.monotonic) -> None:
        self._sweep = sweep
        self._clock = clock
        self._drawn = -PAUSE
        self._picture = ""
        self._stale = False
        self._running: dict[int, str] = {}
        self._ended = self._total = 0
        self._handle: Any = None

    def on_sweep_start(self, config: SweepConfig) -> None:
        """Take a place in the notebook."""
        from IPython.display import HTML, display

        self._total = config.trials
        self._handle = display(HTML("starting"), display_id=True)

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        """One more runs."""
        self._running[number] = f"{number:04d} {method_label(config)}"
        self._show()

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        """It is an epoch further."""
        name = self._running.get(number, f"{number:04d}").partition(",")[0]
        self._running[number] = f"{name}, epoch {record['epoch']:.0f}"
        self._show()

    def on_trial_end(self, result: TrialResult) -> None:
        """One has ended."""
        self._running.pop(result.number, None)
        self._ended += result.launched and result.baseline is None
        self._stale = True
        self._show()

    def on_sweep_end(self, front: FrontFile) -> None:
        """Leave the front as it is at the end."""
        self._running.clear()
        self._stale, self._drawn = True, -PAUSE
        self._show("ended")

    def _show(self, word: str = "running") -> None:
        if self._stale and self._clock() - self._drawn >= PAUSE:
            self._picture, self._stale = self._sweep._repr_html_(), False
            self._drawn = self._clock()
        from IPython.display import HTML

        now = ", ".join(self._running.values()) or word
        bar = f'<progress value="{self._ended}" max="{self._total}"></progress>'
        line = f"<p>{bar} {self._ended} of {self._total} trials beside the baselines; {html.escape(safe(now))}</p>"
        self._handle.update(HTML(line + self._picture))
