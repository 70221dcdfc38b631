"""Every method on every pair of model and dataset, with the paper's own figures beside: tables 2, 3, 5, 6, 7, figure 5.

    python sweeps/compare.py --preset embedded
    python sweeps/compare.py --preset paper --only deit-s-cifar100 deit-t-cifar100

Interrupted, the same command goes on. The report is in <storage>/compare-<preset>.
"""

import sys
from pathlib import Path

from rich.console import Console

from alast_tune.cli import TRACKING_INCOMPLETE, guarded
from alast_tune.reports import Comparison, arguments, compare
from alast_tune.terminal import printer
from alast_tune.tracking import pending


@guarded
def main() -> None:
    """Run what is missing; write the report."""
    given = arguments(sys.argv[1:], Path(__file__), Comparison, __doc__)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = compare(given.plan, given.name, given.storage, given.only, given.run, given.command, console)
    printer(console)(f"report: {report}")
    if given.run and any(pending(folder) for folder in given.storage.glob(f"{given.name}-*")):
        sys.exit(TRACKING_INCOMPLETE)


if __name__ == "__main__":
    main()
