"""Search for the Pareto front of accuracy, training FLOPs and peak memory.

    alast-tune sweep /data/pets --max-memory 6GiB --time-budget 2h
    alast-tune sweep --list-presets
    alast-tune sweep --preset demo
    alast-tune sweep --preset deit-s-cifar100 --trials 64 --trial.train.epochs 10
    alast-tune sweep --resume demo
    alast-tune sweep --resume demo --reseed 3

Every setting below can be given; what is not comes from the preset, or is chosen for the folder.
`python sweeps/pareto.py` is the same.
"""

from __future__ import annotations

import re
import sys
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    CliImplicitFlag,
    CliPositionalArg,
    CliSuppress,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from alast_tune.cli.guard import guarded
from alast_tune.cli.short_help import SWEEP
from alast_tune.config import ModelConfig, SweepConfig, given_file, read_mapping, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.storage import copy_of, listing, names_with

PRESETS = Path(__file__).parents[1] / "presets"

_OF_WEIGHTS = {"name", "checkpoint", "checkpoint_key"}
"""Settings of a preset's model that ``--model`` replaces."""


def _names_of(given: Any) -> Any:
    """Read names that commas separate."""
    return [name.strip() for name in given.split(",")] if isinstance(given, str) else given


class Preset(PydanticBaseSettingsSource):
    """What the command line leaves open: of a folder as chosen, of a preset, or of the sweep to resume."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: the source gives all fields at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Look at the folder, or read the file that ``--preset`` or ``--resume`` names."""
        given = self.current_state
        folder, preset, resume, model = (given.get(name) for name in ("folder", "preset", "resume", "model"))
        if folder and (preset or resume):
            other = "--preset" if preset else "--resume"
            raise ConfigError("folder", folder, f"{other} says which images; leave out the one or the other")
        for field in ("model", "methods"):
            if resume and given.get(field):
                said = ",".join(_names_of(given[field])) if field == "methods" else given[field]
                raise ConfigError(field, said, "a resumed sweep keeps its own; leave it out")
        file, values = self._preset(preset) if preset is not None else (None, {})
        place = given.get("storage", values.get("storage", "runs"))
        try:
            storage = copy_of(place)
        except ValueError as error:
            raise ConfigError("storage", place, str(error)) from None
        if resume:
            return self._stored(storage / resume, place)
        if folder:
            return self._of_folder(folder, storage)
        if file is None:
            presets_are = f"give a folder of images, --preset (one of {', '.join(presets())}) or --resume"
            raise ConfigError("folder", "not given", presets_are)
        if model:
            from alast_tune.choices import model_settings  # torch and timm take seconds to import

            trial = values.setdefault("trial", {})
            kept = {name: value for name, value in trial.get("model", {}).items() if name not in _OF_WEIGHTS}
            trial["model"] = kept | model_settings(model, ModelConfig())
        return {"name": self._name(storage, file.stem)} | values

    def _name(self, storage: Path, wish: str) -> str:
        given = self.current_state
        goes_on = "name" in given or str(given.get("go_on")).lower() == "true"
        return wish if goes_on else free_name(storage, wish)

    def _stored(self, folder: Path, place: str) -> dict[str, Any]:
        stored = stored_sweep(folder).given_values()
        return {name: value for name, value in stored.items() if name != "storage"} | {"storage": place}

    def _of_folder(self, folder: str, storage: Path) -> dict[str, Any]:
        from alast_tune.choices import data_settings, is_named, model_settings, name_of, sweep_of_folder

        given = dict(self.current_state)
        name = given.get("name") or self._name(storage, name_of(folder))
        goes_on = str(given.get("go_on")).lower() == "true" and name in names_with(storage, "sweep.json")
        if not Path(folder).is_dir() and (folder in presets() or Path(folder).suffix in {".yaml", ".yml"}):
            raise ConfigError("folder", folder, f"is a preset, not a folder of images; give it as --preset {folder}")
        own = {name: value for name, value in given.items() if name in SweepConfig.model_fields}
        place = folder if is_named(folder) else given_file("folder", folder)
        if goes_on:  # what is another sweep's is then found out as for any that is resumed
            values, model = self._stored(storage / name, given.get("storage", "runs")), given.get("model")
            asked = {"data": data_settings(place), "model": model_settings(model, ModelConfig()) if model else {}}
            values["trial"] |= {group: values["trial"].get(group, {}) | own for group, own in asked.items()}
            return values
        methods = _names_of(given.get("methods", []))
        choices = sweep_of_folder(place, model=given.get("model"), methods=methods, **own | {"name": name})
        return choices.sweep.given_values() | {"chosen": [str(line) for line in choices.lines]}

    def _preset(self, preset: str) -> tuple[Path, dict[str, Any]]:
        file = preset_file(preset)
        return file, read_mapping(file)


class Sweep(BaseSettings, SweepConfig):
    """The command line: every setting of a sweep, and where the others come from."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, cli_prog_name="alast-tune sweep", cli_exit_on_error=False
    )

    folder: CliPositionalArg[str | None] = Field(
        None,
        description="of your images, <folder>/<class>/* or <folder>/{train,val,test}/<class>/*; or a .csv or .parquet "
        "file, or hf:user/name: what you leave open is chosen, and said",
    )
    model: str | None = Field(
        None,
        description="a timm name (vit_base_patch16_224), local weights (a file or a folder), or embedded",
    )
    methods: Annotated[list[str], BeforeValidator(_names_of)] = Field(
        [],
        description="which methods space: auto searches, as lora,apla; unset: all that the model allows but top_k "
        "and bsr",
    )
    help_all: CliImplicitFlag[bool] = Field(False, description="print this: every setting, of a trial too")
    dry_run: CliImplicitFlag[bool] = Field(
        False, description="print what was chosen, the forecast, and the YAML that it amounts to; run nothing"
    )
    chosen: CliSuppress[list[str]] = Field([], description="what was chosen for the folder, a line each")
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

    callbacks: list[str] = Field(
        [], description="told what happens, each as module:Class, say alast_tune.callbacks:TensorBoard"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *others: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line first, then the preset; no environment variables."""
        return init_settings, Preset(settings_cls)


Sweep.__doc__ = __doc__  # which --help-all shows


def free_name(storage: Path, wish: str) -> str:
    """Name a new sweep as its preset, with a number behind where that is taken."""
    names = (wish if number == 1 else f"{wish}-{number}" for number in count(1))
    return next(name for name in names if not listing(storage / name))


def preset_file(preset: str) -> Path:
    """Find a preset by its name, or by the path of a YAML file.

    Raises:
        ConfigError: there is none.
    """
    known = Path(preset).suffix not in {".yaml", ".yml", ".json"}
    file = PRESETS / f"{preset}.yaml" if known else given_file("preset", preset)
    if not file.exists():
        raise ConfigError("preset", preset, f"not a file and none of {', '.join(presets())}")
    return file


def goes_on(options: Sweep, sweep: SweepConfig) -> bool:
    """Whether to resume a sweep: one that is named, or with ``go_on`` one of this name.

    Raises:
        ConfigError: it searches other methods than those that are given.
    """
    if options.resume is None and not (options.go_on and sweep.name in names_with(sweep.storage, "sweep.json")):
        return False
    if options.methods:
        from alast_tune.choices import check_methods

        check_methods(stored_sweep(sweep.storage / sweep.name), options.methods)
    return True


def presets() -> list[str]:
    """Name the presets."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


@guarded
def main(arguments: list[str] | None = None) -> None:
    """Answer what is asked about the command, or search."""
    given = sys.argv[1:] if arguments is None else arguments
    # Both spellings of a name are taken: --max-memory and --max_memory.
    underscored = [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in given]
    words = SWEEP.answer(underscored, Sweep.model_fields)
    if words is None:
        return
    if "--list_presets" in words:
        for name in presets():
            print(f"{name:20}{(PRESETS / f'{name}.yaml').read_text().splitlines()[0].removeprefix('# ')}")
        return
    from alast_tune.cli.search import search  # Ray, Optuna and MLflow take seconds to import

    search(words)
