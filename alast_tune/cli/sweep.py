"""Search for the Pareto front of accuracy, training FLOPs and peak memory.

    alast-tune sweep --list-presets
    alast-tune sweep --preset demo
    alast-tune sweep --preset deit-s-cifar100 --trials 64 --trial.train.epochs 10
    alast-tune sweep --resume demo
    alast-tune sweep --resume demo --reseed 3

Every setting below can be given; what is not comes from the preset. `python sweeps/pareto.py` is the same.
"""

from __future__ import annotations

import re
import shlex
import sys
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, CliImplicitFlag, PydanticBaseSettingsSource, SettingsConfigDict
from rich.console import Console

from alast_tune.cli.front import words_for
from alast_tune.cli.guard import TRACKING_INCOMPLETE, guarded
from alast_tune.config import SweepConfig, given_file, parse, read_mapping, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile
from alast_tune.storage import copy_of, display_path, listing, names_with
from alast_tune.summary import check_complete
from alast_tune.terminal import answers, front_table, printer, reseeded_table
from alast_tune.tracking import pending
from alast_tune.tune.reseed import reseed
from alast_tune.tune.study import run_sweep

PRESETS = Path(__file__).parents[1] / "presets"


class Preset(PydanticBaseSettingsSource):
    """The settings of the preset, or of the sweep to resume: what the command line leaves open."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: the source gives all fields at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Read the file that ``--preset`` or ``--resume`` names."""
        given = self.current_state
        preset, resume = given.get("preset"), given.get("resume")
        file, values = self._preset(preset) if preset is not None else (None, {})
        place = given.get("storage", values.get("storage", "runs"))
        try:
            storage = copy_of(place)
        except ValueError as error:
            raise ConfigError("storage", place, str(error)) from None
        if resume:
            stored = stored_sweep(storage / resume).given_values()
            return {name: value for name, value in stored.items() if name != "storage"} | {"storage": place}
        if file is None:
            raise ConfigError("preset", "not given", f"give --preset (one of {', '.join(presets())}) or --resume")
        goes_on = "name" in given or str(given.get("go_on")).lower() == "true"
        return {"name": file.stem if goes_on else free_name(storage, file.stem)} | values

    def _preset(self, preset: str) -> tuple[Path, dict[str, Any]]:
        known = Path(preset).suffix not in {".yaml", ".yml", ".json"}
        file = PRESETS / f"{preset}.yaml" if known else given_file("preset", preset)
        if not file.exists():
            raise ConfigError("preset", preset, f"not a file and none of {', '.join(presets())}")
        return file, read_mapping(file)


class Sweep(BaseSettings, SweepConfig):
    """The command line: every setting of a sweep, and where the others come from."""

    __doc__ = __doc__  # --help shows the module's
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, cli_prog_name="alast-tune sweep", cli_exit_on_error=False
    )

    preset: str | None = Field(None, description="a name, see --list-presets, or a YAML file")
    list_presets: CliImplicitFlag[bool] = Field(False, description="print the presets' names and what they are")
    resume: str | None = Field(
        None,
        description="name of a sweep to go on with, under --storage or that of --preset; only --trials, places "
        "of files and resources may differ",
    )
    go_on: CliImplicitFlag[bool] = Field(
        False,
        description="resume the sweep of this name if it is there, else start it: one command for all attempts",
    )
    retry_failed: CliImplicitFlag[bool] = Field(
        False, description="with --resume: run trials that have failed again, under new numbers"
    )
    reseed: int | None = Field(
        None,
        ge=2,
        description="afterwards train each member of the front again with this many other seeds; report "
        "means, spreads, and how likely each belongs there",
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *others: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line first, then the preset; no environment variables."""
        return init_settings, Preset(settings_cls)


def free_name(storage: Path, wish: str) -> str:
    """Name a new sweep as its preset, with a number behind where that is taken."""
    names = (wish if number == 1 else f"{wish}-{number}" for number in count(1))
    return next(name for name in names if not listing(storage / name))


def is_begun(sweep: SweepConfig) -> bool:
    """Whether there is a sweep of this name."""
    return sweep.name in names_with(sweep.storage, "sweep.json")


def presets() -> list[str]:
    """Name the presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


@guarded
def main(arguments: list[str] | None = None) -> None:
    """Run or resume a sweep; print its front and where to look at it."""
    given = sys.argv[1:] if arguments is None else arguments
    # Both spellings of a name are taken: --max-memory and --max_memory.
    words = [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in given]
    if "--list_presets" in words:
        for name in presets():
            print(f"{name:20}{(PRESETS / f'{name}.yaml').read_text().splitlines()[0].removeprefix('# ')}")
        return
    options = CliApp.run(Sweep, cli_args=words)
    sweep = parse(SweepConfig, options.given_values())
    console = Console(width=None if sys.stdout.isatty() else 120)
    resume = options.resume is not None or (options.go_on and is_begun(sweep))
    if options.retry_failed and not resume:
        raise ConfigError("retry_failed", True, "there is nothing yet that has failed; give --resume")
    results = run_sweep(sweep, resume=resume, retry_failed=options.retry_failed, console=console)
    file = sweep.storage / sweep.name / "front.json"
    front = FrontFile.read(file)
    say = printer(console)
    storage = words_for(sweep.storage)
    for line in answers(front, [sweep.name, *storage]):
        say(line)
    console.print(front_table(front))
    if options.reseed is not None and any(result.state == "complete" for result in results):
        console.print(reseeded_table(reseed(file.parent, options.reseed, console)))
    say(f"front: {display_path(file)}")
    say(f"MLflow: {shlex.join(['alast-tune', 'ui', *storage])}")
    check_complete(sweep.name, results)
    if pending(file.parent):  # the tracker has said so
        sys.exit(TRACKING_INCOMPLETE)
