"""Plant small faults in the package, one at a time, and see whether the tests of that room notice.

    just mutants                                  60 faults, drawn by seed 0, over the rooms below
    just mutants --rooms cost front --faults 10
    just mutants --again before.json              the same faults in today's code, and what has changed

Faults are flipped comparisons, dropped statements, off-by-one constants and swapped arguments. Each is planted in a
copy of the checkout, and those tests of the room are run that execute its line (found by coverage once a room); where
no test does, all of the room's are. A fault that no test notices is printed as MISSED: a test is missing, or the fault
changes nothing that matters. Nothing here is part of CI.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT = 900

ROOMS: dict[str, tuple[int, list[str], list[str]]] = {
    "methods": (12, ["methods"], ["tests/unit/methods", "tests/golden"]),
    "cost": (9, ["cost"], ["tests/unit/cost"]),
    "train": (
        9,
        ["train.py", "optimizers.py", "evaluate.py", "checkpoint.py", "parallel.py"],
        ["tests/unit/test_train.py", "tests/unit/test_parallel.py"],
    ),
    "tune": (12, ["tune"], ["tests/unit/tune"]),
    "tracking": (6, ["tracking"], ["tests/unit/tracking", "tests/integration/test_tracking.py"]),
    "front": (5, ["front.py", "summary.py"], ["tests/unit/test_front.py", "tests/unit/test_summary.py"]),
    "data": (7, ["data"], ["tests/unit/data"]),
}
"""Faults of 60, files of the package, and the tests that are to notice them."""

FLIPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One change of one statement; found again in other versions of the code by the statement's text."""

    room: str
    file: str
    kind: str
    statement: str
    nth: int
    """Among such changes of equal statements of the file."""


def candidates(room: str, file: str, tree: ast.Module) -> Iterator[tuple[Fault, ast.AST, int]]:
    """Every fault that can be planted in a file, with the node to change and the statement's line."""
    seen: dict[tuple[str, str], int] = {}
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for statement in ast.walk(function):
            if not isinstance(statement, ast.stmt) or isinstance(statement, ast.FunctionDef):
                continue
            for kind, node in changes(statement):
                text = ast.unparse(statement).partition("\n")[0]
                key = kind, text
                seen[key] = seen.get(key, -1) + 1
                yield Fault(room, file, kind, text, seen[key]), node, statement.lineno


def changes(statement: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    """What can be changed in a statement itself, not in those below it."""
    if isinstance(statement, ast.AugAssign) or (
        isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant | ast.Yield)
    ):
        yield "dropped", statement
    expressions = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.expr)]
    for node in (inner for expression in expressions for inner in ast.walk(expression)):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
            yield "flipped", node
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield "off by one", node
        elif isinstance(node, ast.Call) and len(node.args) > 1 and not isinstance(node.args[1], ast.Starred):
            yield "swapped", node


def plant(kind: str, node: ast.AST) -> None:
    """Change the node in place."""
    if isinstance(node, ast.Compare) and kind == "flipped":
        node.ops[0] = FLIPPED[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value += 1  # type: ignore[operator]
    elif isinstance(node, ast.Call) and kind == "swapped":
        node.args[:2] = node.args[1], node.args[0]
    else:
        node.__class__, node.__dict__ = ast.Pass, {"lineno": 1, "col_offset": 0}


def found(root: Path, room: str) -> list[tuple[Fault, ast.Module, ast.AST, int]]:
    """Every fault of a room; each with a tree of its own file, in which it is not planted yet."""
    files = [path for name in ROOMS[room][1] for path in sorted((root / "alast_tune" / name).rglob("*.py"))]
    files += [root / "alast_tune" / name for name in ROOMS[room][1] if name.endswith(".py")]
    every = []
    for path in files:
        tree = ast.parse(path.read_text())
        name = path.relative_to(root).as_posix()
        every += [(fault, tree, node, line) for fault, node, line in candidates(room, name, tree)]
    return every


def draw(root: Path, rooms: list[str], faults: int, seed: int) -> list[Fault]:
    """Draw faults, each kind as often as the others as far as there are any."""
    chosen = []
    for room in rooms:
        generator = random.Random(f"{seed} {room}")
        kinds: dict[str, list[Fault]] = {}
        for fault, *_ in found(root, room):
            kinds.setdefault(fault.kind, []).append(fault)
        for turn in range(round(faults * ROOMS[room][0] / 60) if len(rooms) > 1 else faults):
            kind = sorted(kinds)[turn % len(kinds)]
            chosen.append(kinds[kind].pop(generator.randrange(len(kinds[kind]))))
    return chosen


class Contexts:
    """A plugin of pytest that tells coverage which test runs."""

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured = measured

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._measured.switch_context(item.nodeid)
        return (yield)


def trace(data: Path, tests: list[str]) -> int:
    """Run tests, in this process, and keep which of them executes which line; returns pytest's exit code."""
    measured = coverage.Coverage(data_file=str(data), source=["alast_tune"], config_file=False)
    measured.start()
    options = ["-q", "-p", "no:cacheprovider", "-m", "not nightly and not gpu"]
    code = pytest.main([*options, *tests], plugins=[Contexts(measured)])
    measured.stop()
    measured.save()
    return code


def run(root: Path, arguments: list[str]) -> int:
    """Run Python in a checkout; returns the exit code, pytest's for a failed test if it does not end."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=root, env=environment, timeout=TIMEOUT, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return pytest.ExitCode.TESTS_FAILED
    return done.returncode


def is_noticed(copy: Path, fault: Fault, data: coverage.CoverageData) -> bool | None:
    """Plant a fault in the copy, run the tests, and take it out again; None if today's code has no such statement."""
    match = [entry for entry in found(copy, fault.room) if entry[0] == fault]
    if not match:
        return None
    _, tree, node, line = match[0]
    plant(fault.kind, node)
    file = copy / fault.file
    before = file.read_text()
    by_line = {}
    for name in data.measured_files():
        if name.endswith(f"/{fault.file}"):
            by_line = data.contexts_by_lineno(name)
    running = sorted({test.partition("|")[0] for test in by_line.get(line, []) if "::" in test})
    tests = ROOMS[fault.room][2]
    selected = [test for test in running if test.startswith(tuple(tests))] or tests
    file.write_text(ast.unparse(tree))
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not nightly and not gpu"]
        code = run(copy, ["-m", "pytest", *options, *selected])
        if code == pytest.ExitCode.USAGE_ERROR:
            raise RuntimeError(f"pytest does not find one of {selected}")
        return code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    finally:
        file.write_text(before)


def main() -> None:
    """Plant, test, and print a line a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rooms", nargs="+", choices=list(ROOMS), default=list(ROOMS))
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to test")
    parser.add_argument("--again", type=Path, help="results of an earlier run: plant these faults")
    parser.add_argument("--results", type=Path, default=Path("mutants.json"))
    parser.add_argument("--contexts", type=Path, help="folder for which test runs which line, kept from run to run")
    parser.add_argument("--trace", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trace:
        sys.exit(trace(Path(given.trace[0]), given.trace[1:]))
    earlier = json.loads(given.again.read_text()) if given.again else []
    faults = [Fault(**entry["fault"]) for entry in earlier if entry["fault"]["room"] in given.rooms]
    faults = faults or draw(given.root, given.rooms, given.faults, given.seed)
    noticed_before = {Fault(**entry["fault"]): entry["noticed"] for entry in earlier}
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "checkout"
        shutil.copytree(given.root, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        contexts = given.contexts or Path(scratch)
        contexts.mkdir(parents=True, exist_ok=True)
        for room in given.rooms:
            file = (contexts / f"{room}.coverage").absolute()
            if not file.exists() and run(copy, [str(Path(__file__).absolute()), "--trace", str(file), *ROOMS[room][2]]):
                sys.exit(f"the tests of {room} fail without any fault")
            data = coverage.CoverageData(str(file))
            data.read()
            for fault in (fault for fault in faults if fault.room == room):
                noticed = is_noticed(copy, fault, data)
                results.append({"fault": asdict(fault), "noticed": noticed})
                words = {True: "noticed", False: "MISSED", None: "gone"}
                before = f" (before: {words[noticed_before[fault]]})" if fault in noticed_before else ""
                print(f"{words[noticed]}{before} {fault.file} {fault.kind}: {fault.statement}", flush=True)
                given.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{sum(entry['noticed'] is True for entry in results)} of {len(results)} faults were noticed")


if __name__ == "__main__":
    main()
