"""What ``alast-tune sweep`` does once it has been told: plan, search, other seeds, the answer."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from pydantic_settings import CliApp
from rich.console import Console

from alast_tune.callbacks import callback_of
from alast_tune.choices import space_words, with_auto_space
from alast_tune.cli.guard import TRACKING_INCOMPLETE
from alast_tune.cli.method_options import offer_methods
from alast_tune.cli.plan import plan_of, yaml_of
from alast_tune.cli.short_help import true_default
from alast_tune.cli.sweep import Sweep, goes_on
from alast_tune.config import AUTO, SweepConfig, TrialConfig, check_sweep_effects, parse
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile, Reseeded
from alast_tune.storage import display_path, words_for
from alast_tune.summary import check_complete
from alast_tune.terminal import printer, show
from alast_tune.tracking import REPORT, pending
from alast_tune.tune.feasible import check_limits
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.preview import without_cache
from alast_tune.tune.reseed import reseed
from alast_tune.tune.study import run_sweep


def search(words: list[str]) -> None:
    """Run or resume a sweep; print its front and where to look at it.

    Args:
        words: of the command line, the names of options with underscores.
    """
    offer_methods(TrialConfig)
    words, auto = _without_auto(words)
    with true_default(words):
        options = CliApp.run(Sweep, cli_args=words, **auto)
    sweep = parse(SweepConfig, options.given_values())
    console = Console(width=None if sys.stdout.isatty() else 120)
    resume = goes_on(options, sweep)
    say = printer(console)
    if not resume and not options.chosen and (options.methods or not sweep.space):
        sweep = with_auto_space(sweep, options.methods)
        line = f"space: {', '.join(space_words(sweep.space))}"
        print(f"# {line}") if options.dry_run else say(line)
    if options.dry_run:
        if not resume:
            check_sweep_effects(sweep)
        for line in plan_of(sweep, options.chosen):
            print(f"# {line}")
        if not resume and sweep.warm_start is None:
            check_limits(sweep.model_copy(update={"trial": without_cache(sweep.trial)}), Forecast().costs)
        print(yaml_of(sweep), end="")
        return
    if options.chosen and not resume:
        for line in plan_of(sweep, options.chosen):
            say(line)
    if options.retry_failed and not resume:
        raise ConfigError("retry_failed", True, "there is nothing yet that has failed; give --resume")
    callbacks = [callback_of(path) for path in options.callbacks]
    results = run_sweep(sweep, resume=resume, retry_failed=options.retry_failed, console=console, callbacks=callbacks)
    file = sweep.storage / sweep.name / "front.json"
    storage = words_for(sweep.storage)
    words = [sweep.name, *storage]
    show(console, FrontFile.read(file), words, Reseeded.find(file.parent))
    if sweep.reseed and any(result.state == "complete" for result in results):
        again = reseed(file.parent, sweep.reseed, console)
        show(console, FrontFile.read(file), words, again)
    say(f"front: {display_path(file)}")
    if (page := file.with_name(REPORT)).exists():
        say(f"report: {display_path(page)}")
    say(f"MLflow: {shlex.join(['alast-tune', 'ui', *storage])}")
    check_complete(sweep.name, results)
    if pending(file.parent):  # the tracker has said so
        sys.exit(TRACKING_INCOMPLETE)


def _without_auto(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--space auto`` out, a word where pydantic-settings reads mappings alone; give it as a value."""
    for n, word in enumerate(words):
        if word == f"--space={AUTO}":
            return [*words[:n], *words[n + 1 :]], {"space": AUTO}
        if words[n : n + 2] == ["--space", AUTO]:
            return [*words[:n], *words[n + 2 :]], {"space": AUTO}
    return words, {}
