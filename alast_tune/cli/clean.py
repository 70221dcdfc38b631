"""``alast-tune clean``: the checkpoints of sweeps that nothing needs any more, deleted."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg
from rich.console import Console

from alast_tune.cli.front import find_sweep
from alast_tune.storage import Place
from alast_tune.terminal import printer


class Clean(BaseModel):
    """Delete the checkpoints of sweeps but for the last ones of their fronts, and of trials that are to go on.

    Example: alast-tune clean demo --dry-run
    """

    sweeps: CliPositionalArg[list[Place]] = Field(min_length=1, description="their folders, or names under --storage")
    storage: Place = Field(Path("runs"), description="where sweeps are")
    dry_run: bool = Field(False, description="delete nothing, say what would be")

    def cli_cmd(self) -> None:
        """Delete, and say what has been freed."""
        from alast_tune.tune.retention import clean  # Ray and Optuna take seconds to import

        say = printer(Console())
        for sweep in self.sweeps:
            folder = find_sweep(sweep, self.storage)
            freed = clean(folder, say, dry_run=self.dry_run)
            say(f"{folder.name}: {'would delete' if self.dry_run else 'deleted'} {freed}")
