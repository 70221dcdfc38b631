"""What a report is made from: a preset, the grid sweeps that it stands for, and their trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator
from rich.console import Console

from alast_tune.config import (
    Choice,
    Distribution,
    IntRange,
    Record,
    SweepConfig,
    TrialConfig,
    Variants,
    apply_params,
    stored_sweep,
)
from alast_tune.errors import ConfigError, NothingCompleteError
from alast_tune.reports.paper import read_paper
from alast_tune.results import TrialResult
from alast_tune.storage import fetch
from alast_tune.terminal import printer
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trials import open_study, results

Settings = dict[str, JsonValue]
"""Path in the trial (method/alpha), or a whole record (method), and what it is set to."""

Space = dict[str, Distribution]

FULL = "full"
"""Name of full fine-tuning, to which everything is put in proportion."""


class Preset(Record):
    """What reports of both kinds have in common."""

    trial: TrialConfig = Field(default_factory=TrialConfig, description="what all trials have in common")
    seeds: int = Field(3, ge=1, description="each trial is run with the seeds 0, 1, ... of so many")
    concurrent: int | None = Field(None, ge=1, description="trials at a time; unset: as many as fit")
    cpus_per_trial: int = Field(1, ge=1, description="also the threads torch uses on a CPU")

    def sweep(self, name: str, storage: Path, settings: Settings, space: Space) -> SweepConfig:
        """Make the grid sweep of a part of the report, with these settings on top of the common ones.

        Raises:
            ConfigError: settings that there are not, or that choose by another measure than the report's tables.
        """
        trial = apply_params(self.trial, settings)
        if trial.train.score != "accuracy":
            remedy = "the tables of reports are of accuracy, as the paper's are; leave it out"
            raise ConfigError("train.score", trial.train.score, remedy)
        return SweepConfig(
            name=name,
            storage=storage,
            sampler="grid",
            concurrent=self.concurrent,
            cpus_per_trial=self.cpus_per_trial,
            trial=trial,
            space=space,
        )


class MethodPlan(Record):
    """One row of a comparison."""

    set: Settings = Field(description="the method, and what else it changes")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="those to choose from; unset: the comparison's"
    )
    paper: str | None = Field(None, description="name of its row in the paper's tables")


class Pair(Record):
    """One model on one dataset."""

    set: Settings = Field(default_factory=dict)
    paper: tuple[str, str] | None = Field(None, description="its model and dataset in the paper's tables")


class Comparison(Preset):
    """Every method on every pair of model and dataset, each at its own best learning rate."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="tried with the first seed; the best on validation gets the others"
    )
    methods: dict[str, MethodPlan] = Field(min_length=1)
    pairs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Pair] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if FULL not in self.methods:
            raise ConfigError("methods", ", ".join(self.methods), f"needs {FULL}, to which the others are compared")
        printed = read_paper()
        for name, method in self.methods.items():
            if method.paper and method.paper not in printed.methods:
                there = ", ".join(printed.methods)
                raise ConfigError(f"methods.{name}.paper", method.paper, f"the paper's tables have: {there}")
        for name, pair in self.pairs.items():
            if pair.paper and pair.paper not in printed.pairs:
                there = "; ".join(", ".join(place) for place in printed.pairs)
                raise ConfigError(f"pairs.{name}.paper", ", ".join(pair.paper), f"the paper's tables have: {there}")
        return self

    def rates(self, method: str) -> Sequence[float]:
        """List a method's learning rates to choose from."""
        return self.methods[method].learning_rates or self.learning_rates

    def first(self, name: str, storage: Path, pair: str) -> SweepConfig:
        """Make the sweep over methods and learning rates, at the first seed."""
        variants = {
            variant(method, rate): self._at(method, rate) for method in self.methods for rate in self.rates(method)
        }
        return self.sweep(name, storage, self.pairs[pair].set, {"method": Variants(variants=variants)})

    def others(self, name: str, storage: Path, pair: str, rates: Mapping[str, float]) -> SweepConfig:
        """Make the sweep over the other seeds, each method at its learning rate."""
        variants = {variant(method, rate): self._at(method, rate) for method, rate in rates.items()}
        seeds = IntRange(low=1, high=self.seeds - 1)
        space: Space = {"method": Variants(variants=variants), "train/seed": seeds}
        return self.sweep(f"{name}-seeds", storage, self.pairs[pair].set, space)

    def _at(self, method: str, rate: float) -> Settings:
        return {"train/seed": 0, **self.methods[method].set, "train/learning_rate": rate}


class Ablation(Record):
    """One question: what varies, everything else being equal."""

    title: str
    set: Settings = Field(default_factory=dict, description="what all its trials have, on top of the preset's")
    vary: dict[str, tuple[bool | int | float | str, ...] | dict[str, Settings]] = Field(
        min_length=1, max_length=2, description="path -> values, or any name -> named sets of settings"
    )
    log: bool = Field(False, description="what varies first is drawn on a logarithmic axis")
    paper: Literal[4] | None = Field(None, description="the paper's table that has the same")

    def space(self, seeds: int) -> Space:
        """Make the space of its sweep: what varies, and the seeds."""
        space: Space = {
            path: Variants(variants=dict(values)) if isinstance(values, dict) else Choice(choices=values)
            for path, values in self.vary.items()
        }
        return space | {"train/seed": IntRange(low=0, high=seeds - 1)}


class Ablations(Preset):
    """Several questions about one method, on one model and dataset, beside full fine-tuning."""

    full: Settings = Field(description="what makes full fine-tuning of the trial")
    ablations: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Ablation] = Field(min_length=1)

    def sweeps(self, name: str, storage: Path, only: Sequence[str] = ()) -> Iterator[tuple[str, SweepConfig]]:
        """Yield the name and the sweep of full fine-tuning, then of each question."""
        reference: Space = {
            FULL: Variants(variants={FULL: self.full}),
            "train/seed": IntRange(low=0, high=self.seeds - 1),
        }
        yield FULL, self.sweep(f"{name}-{FULL}", storage, {}, reference)
        for question in only or self.ablations:
            plan = self.ablations[question]
            yield question, self.sweep(f"{name}-{question}", storage, plan.set, plan.space(self.seeds))


def variant(method: str, rate: float) -> str:
    """Name a method at a learning rate, as MLflow shows it."""
    return f"{method} at {rate:g}"


def trials(sweep: SweepConfig, run: bool, console: Console) -> list[TrialResult]:
    """Run a sweep or go on with it, and read its complete trials; ``run=False`` only reads what there is."""
    folder = sweep.storage / sweep.name
    fetch(folder)
    there = (folder / "sweep.json").exists()
    if run:
        printer(console)(f"{sweep.name}: {sweep.trials} trials")
        ended = run_sweep(sweep, resume=there, console=console)
    else:
        stored = stored_sweep(folder) if there else sweep
        ended = results(open_study(stored, folder), stored) if there else []
    return [result for result in ended if result.state == "complete"]


def check_none_empty(found: Mapping[str, Sequence[object]], report: Path) -> None:
    """Refuse to call a report done of which a sweep has not one complete trial.

    Args:
        found: complete trials by the names of the sweeps that were run.
        report: which is written nevertheless.

    Raises:
        NothingCompleteError: names these sweeps.
    """
    if empty := [name for name, complete in found.items() if not complete]:
        them = f"sweep{'s' * (len(empty) > 1)} {', '.join(empty)}"
        raise NothingCompleteError(f"no complete trial in {them}; {report} is written, without them")


def select(known: Mapping[str, Any], only: Sequence[str]) -> list[str]:
    """Take the names that were asked for by ``--only``, all if none were.

    Raises:
        ConfigError: a name that is not known.
    """
    for name in only:
        if name not in known:
            raise ConfigError("only", name, f"there are: {', '.join(known)}")
    return list(only or known)
