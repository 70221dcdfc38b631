"""ALaST's settings one by one: K (table 4, figure 8), alpha, token floors, readings, frozen blocks, initial budgets.

    python sweeps/ablate.py --preset embedded
    python sweeps/ablate.py --preset paper --only blocks alpha

Interrupted, the same command goes on. The report is in <storage>/ablate-<preset>.
"""

import sys
from pathlib import Path

from rich.console import Console

from alast_tune.cli import TRACKING_INCOMPLETE, guarded
from alast_tune.reports import Ablations, ablate, arguments
from alast_tune.terminal import printer
from alast_tune.tracking import pending


@guarded
def main() -> None:
    """Run what is missing; write the report."""
    given = arguments(sys.argv[1:], Path(__file__), Ablations, __doc__)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = ablate(given.plan, given.name, given.storage, given.only, given.run, given.command, console)
    printer(console)(f"report: {report}")
    if given.run and any(pending(folder) for folder in given.storage.glob(f"{given.name}-*")):
        sys.exit(TRACKING_INCOMPLETE)


if __name__ == "__main__":
    main()
