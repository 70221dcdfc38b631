"""``alast-tune``: train one config, print a front, look at the machine."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ParamSpec

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliImplicitFlag,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
)
from rich.console import Console
from rich.progress import Progress

from alast_tune.config import TrialConfig, parse, read_mapping
from alast_tune.errors import ConfigError, explain
from alast_tune.plots import human_bytes, human_flops
from alast_tune.results import FrontFile
from alast_tune.terminal import describe, front_table
from alast_tune.train import fit

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a setting that cannot work into one line and exit code 2; an interruption into 130."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            command(*arguments, **options)
        except ConfigError as error:
            sys.exit(_complain(str(error)))
        except ValidationError as error:
            sys.exit(_complain(explain(error)))
        except SettingsError as error:
            sys.exit(_complain(f"{str(error).removeprefix('error parsing CLI: ')}; see --help"))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run


def _complain(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


class Front(BaseModel):
    """Print the front of a sweep."""

    sweep: CliPositionalArg[Path] = Field(description="its folder, its front.json, or its name under --storage")
    storage: Path = Field(Path("runs"), description="where sweeps are")
    as_json: CliImplicitFlag[bool] = Field(False, alias="json", description="print front.json itself")

    def cli_cmd(self) -> None:
        """Read front.json and print it."""
        candidates = (self.sweep, self.sweep / "front.json", self.storage / self.sweep / "front.json")
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            known = sorted(path.parent.name for path in self.storage.glob("*/front.json"))
            there = f"there are: {', '.join(known)}" if known else f"none under {self.storage} has one yet"
            raise ConfigError("sweep", self.sweep, f"no front.json; {there}")
        try:
            front = FrontFile.read(file)
        except ValidationError as error:
            raise ConfigError("sweep", file, f"is not a front.json: {explain(error)}") from None
        if self.as_json:
            print(front.model_dump_json(indent=2, by_alias=True))
        else:
            Console().print(front_table(front))


class Train(BaseModel):
    """Fine-tune one configuration on its own; resumes from its output folder."""

    config: Path = Field(description="a TrialConfig in YAML or JSON")
    output: Path = Field(Path("runs/train"), description="gets the checkpoint, report.json and model.safetensors")

    def cli_cmd(self) -> None:
        """Train, a line an epoch."""
        trial = parse(TrialConfig, read_mapping(self.config))
        console = Console()
        report = None
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("epoch", total=None)
            for report in fit(trial, self.output, lambda step: progress.update(task, completed=step)):
                cost = report.cost
                console.print(
                    f"epoch {report.epoch}/{trial.train.epochs} accuracy {report.accuracy:.4f} "
                    f"loss {report.train_loss:.4f} {human_flops(cost.train_flops)} "
                    f"peak {human_bytes(cost.peak_bytes)} steady {human_bytes(cost.steady_peak_bytes)} "
                    f"{cost.wall_seconds:.1f} s",
                    highlight=False,
                )
                (self.output / "report.json").write_text(json.dumps(report.metrics(), indent=2) + "\n")
        if report is None:
            console.print("nothing to do: all epochs were done before", highlight=False)
        console.print(f"model: {self.output / 'model.safetensors'}", highlight=False, soft_wrap=True)


class Doctor(BaseModel):
    """Say what machine, devices and versions are seen."""

    def cli_cmd(self) -> None:
        """Print a table."""
        Console().print(describe(machine(), "alast-tune doctor"))


class AlastTune(BaseSettings):
    """Fine-tune Vision Transformers with ALaST, and reuse what a sweep has found."""

    model_config = SettingsConfigDict(cli_prog_name="alast-tune", cli_kebab_case=True, cli_exit_on_error=False)

    front: CliSubCommand[Front]
    train: CliSubCommand[Train]
    doctor: CliSubCommand[Doctor]

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


def machine() -> dict[str, object]:
    """Collect versions, processors, memory and devices, without starting or connecting to anything."""
    seen: dict[str, object] = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("alast-tune", "torch", "torchvision", "timm", "ray", "optuna", "mlflow"):
        try:
            seen[package] = version(package)
        except PackageNotFoundError:
            seen[package] = "not installed"
    seen["CPUs"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    seen["torch threads"] = torch.get_num_threads()
    if hasattr(os, "sysconf"):
        seen["memory"] = human_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    seen["GPUs"] = ", ".join(f"{d.name} ({human_bytes(d.total_memory)})" for d in devices) or "none"
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "HF_HOME", "HF_HUB_OFFLINE"):
        seen[name] = os.environ.get(name, "not set")
    return seen


@guarded
def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``alast-tune``."""
    CliApp.run(AlastTune, cli_args=sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
