"""``alast-tune report``: what a sweep has found, written and drawn again from its study."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg
from rich.console import Console

from alast_tune.cli.front import find_sweep
from alast_tune.cli.guard import TRACKING_INCOMPLETE
from alast_tune.storage import Place, display_path
from alast_tune.terminal import front_table


class Report(BaseModel):
    """Write a sweep's front.json, report.html and MLflow tags again, from its study: no cluster, no images needed.

    Example: alast-tune report demo
    """

    sweep: CliPositionalArg[Place] = Field(description="its folder, or its name under --storage")
    storage: Place = Field(Path("runs"), description="where sweeps are")

    def cli_cmd(self) -> None:
        """Make the report, and print the front; exit code 3 if MLflow lacks some of it."""
        from alast_tune.tracking import REPORT, pending  # MLflow, Optuna and Ray take seconds to import
        from alast_tune.tune.conclude import report

        folder = find_sweep(self.sweep, self.storage)
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(front_table(report(folder, Console(stderr=True))))
        for name in ("front.json", REPORT):
            console.print(f"{name}: {display_path(folder / name)}", soft_wrap=True, highlight=False)
        if pending(folder):  # the tracker has said so
            sys.exit(TRACKING_INCOMPLETE)
