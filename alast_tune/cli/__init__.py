"""``alast-tune``: one file a command, or two that belong together.

``sweep`` searches, ``submit`` does so as a Ray job;
``front`` prints a front, and brings MLflow up to date (``sync``);
``ui`` opens MLflow and ``list`` names the sweeps; ``report`` draws a sweep's pages again; ``promote``
chooses a member of one for production; ``clean`` deletes the checkpoints that nothing needs; ``train`` trains one
configuration; ``doctor`` looks at the machine; ``guard`` is how all of them end when something is wrong.
"""

from __future__ import annotations

import re
import sys
from inspect import cleandoc
from typing import Any, get_args

from pydantic import BaseModel, Field
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from alast_tune import __version__
from alast_tune.cli import submit
from alast_tune.cli.clean import Clean
from alast_tune.cli.doctor import Doctor
from alast_tune.cli.front import Front, Sync
from alast_tune.cli.guard import STORAGE_FAILED, TRACKING_INCOMPLETE, guarded
from alast_tune.cli.method_options import offer_methods
from alast_tune.cli.promote import Promote
from alast_tune.cli.report import Report
from alast_tune.cli.short_help import TRAIN, true_default
from alast_tune.cli.train import Train
from alast_tune.cli.ui import List, Ui
from alast_tune.config import PromotedConfig, given_file, read_mapping
from alast_tune.errors import ConfigError

__all__ = ["STORAGE_FAILED", "TRACKING_INCOMPLETE", "guarded", "main"]


class ConfigFile(PydanticBaseSettingsSource):
    """The settings in the file that ``train --config`` names: what the command line leaves open."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: the source gives all fields at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Read the file."""
        file = (self.current_state.get("train") or {}).get("config")
        values = read_mapping(given_file("config", file)) if file else {}
        for name in set(values) & set(Train.model_fields) - set(PromotedConfig.model_fields):
            raise ConfigError(name, values[name], f"{file} says what to train, not where to; give it as --{name}")
        return {"train": values} if file else {}


class Sweep(BaseModel):
    """See alast-tune sweep --help, which :mod:`alast_tune.cli.sweep` answers: it has the settings of a sweep."""


class Submit(BaseModel):
    """See alast-tune submit --help, which :mod:`alast_tune.cli.submit` answers."""


class AlastTune(BaseSettings):
    """Fine-tune Vision Transformers with ALaST, and reuse what a sweep has found."""

    model_config = SettingsConfigDict(
        cli_prog_name="alast-tune",
        cli_kebab_case=True,
        cli_exit_on_error=False,
        cli_implicit_flags=True,
        cli_shortcuts={"train.epochs": "epochs", "data.all-data": "all-data", "output": "o"},
    )

    sweep: CliSubCommand[Sweep] = Field(description="search for the front: /data/pets, or --preset demo")
    submit: CliSubCommand[Submit] = Field(description="the same as a Ray job: --preset demo")
    ui: CliSubCommand[Ui] = Field(description="open MLflow on the sweeps")
    list: CliSubCommand[List] = Field(description="list the sweeps under --storage")
    front: CliSubCommand[Front] = Field(description="print a front: demo --max-memory 1GiB")
    promote: CliSubCommand[Promote] = Field(description="choose a member: demo --pick knee -o best.yaml")
    train: CliSubCommand[Train] = Field(description="train a configuration: --config best.yaml")
    report: CliSubCommand[Report] = Field(description="draw a sweep's pages again: demo")
    sync: CliSubCommand[Sync] = Field(description="write to MLflow what it has missed: demo")
    clean: CliSubCommand[Clean] = Field(description="delete checkpoints that nothing needs: demo --dry-run")
    doctor: CliSubCommand[Doctor] = Field(description="look at this machine")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *others: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line first, then the file; no environment variables."""
        return init_settings, ConfigFile(settings_cls)

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


for _field in AlastTune.model_fields.values():
    for _command in get_args(_field.annotation):
        if issubclass(_command, BaseModel):  # argparse prints a docstring as it stands, indents and all
            _command.__doc__ = cleandoc(_command.__doc__ or "")


@guarded
def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``alast-tune``."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["sweep"]:
        from alast_tune.cli import sweep  # Ray and Optuna take seconds to import

        sweep.main(words[1:])
        return
    if words[:1] == ["submit"]:
        submit.main(words[1:])
        return
    if words == ["--version"]:
        print(f"alast-tune {__version__}")
        return
    # Both spellings of a name are taken: --train.batch-size and --train.batch_size.
    words = [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("_", "-"), word) for word in words]
    if words[:1] != ["train"]:
        CliApp.run(AlastTune, cli_args=words)
        return
    left = TRAIN.answer(words, Train.model_fields)
    if left is not None:
        offer_methods(Train)  # which imports torch: seconds that the other commands can do without
        with true_default(left):
            CliApp.run(AlastTune, cli_args=left)
