"""Measure which lines and branches of the package the tests run, folder by folder.

    just coverage                           all tests that CI runs
    just coverage tests/unit -m "not slow"  arguments are pytest's
    just coverage --data FILE               of a run that has been measured before

Ray's workers and other processes that the tests start count too, as far as they end in order.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]

SETTINGS = """\
[run]
branch = true
source = alast_tune
parallel = true
data_file = {folder}/data
patch = subprocess, _exit
"""

TESTS = ["-m", "not nightly and not gpu", "-n", "2", "--dist", "loadgroup"]
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def by_room(report: Path) -> dict[str, Counter[str]]:
    """Add up coverage's counts by folder of the package; files at its top are rooms of their own."""
    rooms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for file, entry in json.loads(report.read_text())["files"].items():
        rooms[Path(file).parts[1]].update({name: entry["summary"][name] for name in COUNTS})
    return dict(sorted(rooms.items()))


def main() -> None:
    """Run the tests; print a line a room."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="do not run tests: coverage's data file of a run")
    given, tests = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder) / "coveragerc", Path(folder) / "report.json"
        settings.write_text(SETTINGS.format(folder=folder))

        def run(*command: str) -> int:
            return subprocess.run([sys.executable, "-m", "coverage", *command], cwd=ROOT, check=False).returncode

        if given.data:
            shutil.copy(given.data, Path(folder) / "data")
            code = 0
        else:
            code = run("run", f"--rcfile={settings}", "-m", "pytest", *(tests or TESTS))
            run("combine", "-q", f"--rcfile={settings}")
        run("json", "-q", f"--rcfile={settings}", "-o", str(report))
        print(f"{'room':20}" + "".join(f"{name.removeprefix('num_'):>20}" for name in COUNTS) + f"{'covered':>10}")
        for room, counts in by_room(report).items():
            run_ = counts["covered_lines"] + counts["covered_branches"]
            share = run_ / max(1, counts["num_statements"] + counts["num_branches"])
            print(f"{room:20}" + "".join(f"{counts[name]:20}" for name in COUNTS) + f"{share:10.1%}")
    sys.exit(code)


if __name__ == "__main__":
    main()
