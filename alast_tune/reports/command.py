"""The command line that sweeps/compare.py and sweeps/ablate.py share."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from pydantic_settings import SettingsError

from alast_tune.config import given_file, parse, read_mapping
from alast_tune.errors import ConfigError
from alast_tune.reports.plan import Preset
from alast_tune.storage import copy_of

T = TypeVar("T", bound=Preset)


@dataclass(frozen=True)
class Arguments(Generic[T]):
    """What was asked for."""

    plan: T
    name: str
    """Of the report's folder: ``compare-embedded``."""
    storage: Path
    only: tuple[str, ...]
    run: bool
    command: str
    """Which makes this report anywhere: without the folder, and whether or not it ran anything this time."""


class _Parser(argparse.ArgumentParser):
    """Leaves it to its caller to complain, in one line."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def arguments(words: list[str], script: Path, kind: type[T], described: str) -> Arguments[T]:
    """Read the command line and the preset that it names, from ``presets/<script's name>`` beside the script.

    Args:
        words: without the program's name.
        script: the file that is run.
        kind: of the preset.
        described: what --help says.

    Raises:
        ConfigError: no such preset, or one that is not valid.
        SettingsError: not a valid command line.
    """
    folder = script.parent / "presets" / script.stem
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    parser = _Parser(prog=script.name, description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help=f"{', '.join(known)}, or a YAML file")
    parser.add_argument("--storage", type=copy_of, default=Path("runs"), help="folder of the sweeps and the report")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of the preset; default: all")
    parser.add_argument("--report-only", action="store_true", help="run nothing: report on what there is")
    given = parser.parse_args(words)
    file = given_file("preset", given.preset)
    if file.suffix not in {".yaml", ".yml", ".json"}:
        file = folder / f"{given.preset}.yaml"
    if not file.exists():
        raise ConfigError("preset", given.preset, f"not a file and none of {', '.join(known)}")
    only = ["--only", *given.only] if given.only else []
    return Arguments(
        plan=parse(kind, read_mapping(file)),
        name=f"{script.stem}-{file.stem}",
        storage=given.storage,
        only=tuple(given.only),
        run=not given.report_only,
        command=shlex.join(["python", f"sweeps/{script.name}", "--preset", given.preset, *only]),
    )
