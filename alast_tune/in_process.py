"""A sweep in somebody's own process, a program's or a notebook's: its settings, how it is shown, how it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.notebook import Drawable, NotebookProgress, log_console
from alast_tune.summary import check_complete


def run_in_process(
    config: SweepConfig,
    drawable: Drawable,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    callbacks: Sequence[object],
    console: Console | None,
) -> None:
    """Run a sweep as ``alast-tune sweep`` does.

    Args:
        config: of the sweep.
        drawable: what a notebook shows of it while it runs.
        resume: go on with the sweep of this name.
        retry_failed: run trials that have failed again.
        callbacks: told what happens.
        console: prints progress; None: on standard error, in a notebook below the cell.

    Raises:
        ConfigError: a setting that cannot work, before any trial starts.
        NothingCompleteError: not one trial has run its whole budget.
        KeyboardInterrupt: it was stopped, in order.
    """
    from alast_tune.tune.reseed import reseed  # Ray and Optuna take seconds to import
    from alast_tune.tune.study import run_sweep

    drawing = [NotebookProgress(drawable)] if console is None and Console().is_jupyter else []
    console = console or log_console()
    with _interrupted_as_python_is():
        results = run_sweep(
            config,
            resume=resume,
            retry_failed=retry_failed,
            console=console,
            callbacks=[*callbacks, *drawing],
        )
        check_complete(config.name, results)
        if config.reseed:
            reseed(config.storage / config.name, config.reseed, console)


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings into nested values, as the command line puts its options into a preset's."""
    found = dict(values)
    for name, value in settings.items():
        old, new = found.get(name), value.given_values() if isinstance(value, TrialConfig) else value
        new = str(new) if isinstance(new, Path) else new
        found[name] = merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return found


@contextmanager
def _interrupted_as_python_is() -> Iterator[None]:
    """Let Ctrl-C, or a notebook's stop, end a sweep in order, and come out as Python's own exception."""
    try:
        yield
    except SystemExit as stop:
        if stop.code == 130:
            raise KeyboardInterrupt from None
        raise
