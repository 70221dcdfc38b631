"""Runs a search algorithm on a table of real runs, by the table's own clock: hundreds of searches in minutes."""

import hashlib
import heapq
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alast_tune.config import SweepConfig, TrialConfig, apply_params, parse, point_of
from alast_tune.errors import ConfigError
from alast_tune.results import OBJECTIVES
from alast_tune.storage import atomic_write
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.space import point, trial_config
from benchmarks.tabular import read, sweep_of

BUDGET = 30.0
"""Full fine-tuning runs' worth of FLOPs after which a replay ends."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Every configuration's curves: C of them, S seeds, E epochs, M objectives in the order of ``OBJECTIVES``.

    First come the points of the space, in the order of ``SweepConfig.combinations``, then the baselines.
    """

    sweep: SweepConfig
    """What all configurations have in common, and the space."""
    baselines: dict[str, dict[str, Any]]
    """Names and methods of the last configurations, those beside the space; `full` is one."""
    seeds: list[int]
    """Those that every configuration was run with; rows of others are left out."""
    values_CSEM: Floats
    """Cumulative, each objective in its own unit."""
    seconds_CSE: Floats
    forecasts_C2: Floats
    """Training FLOPs and peak bytes of the points of the space as they are forecast, without training."""

    @classmethod
    def read(cls, spec: dict[str, Any], results: Path, settings: Sequence[str] = ()) -> "Table":
        """Read the rows that a spec names, and the forecasts beside them, which are made the first time.

        Args:
            spec: of benchmarks/tabular.py.
            results: its rows.
            settings: of the trial, as ``data/root=/images``; forecasts need its images.

        Raises:
            ConfigError: no seed was run with every configuration.
        """
        given = dict(setting.split("=", 1) for setting in settings)
        sweep = sweep_of(spec)
        sweep = sweep.model_copy(update={"trial": apply_params(sweep.trial, given)})
        points = list(sweep.combinations())
        found = {(_key(row["params"] if "params" in row else row["name"]), row["seed"]): row for row in read(results)}
        keys = [_key(entry) for entry in [*points, *spec["methods"]]]
        ran = {seed: sum((key, seed) in found for key in keys) for seed in sorted({seed for _, seed in found})}
        seeds = [seed for seed, count in ran.items() if count == len(keys)]
        if not seeds:
            most = max(ran.values(), default=0)
            remedy = f"{most} of {len(keys)} configurations have a run of one seed, all need one: benchmarks/tabular.py"
            raise ConfigError("results", results, remedy)
        cells = [[found[key, seed] for seed in seeds] for key in keys]
        values = [[[row[objective.name] for objective in OBJECTIVES] for row in runs] for runs in cells]
        return cls(
            sweep=sweep,
            baselines=spec["methods"],
            seeds=seeds,
            forecasts_C2=_forecasts(spec, sweep, results.with_suffix(".costs.json")),
            values_CSEM=np.array(values, dtype=np.float64).swapaxes(-1, -2),
            seconds_CSE=np.array([[row["seconds"] for row in runs] for runs in cells]),
        )

    def of_seeds(self, seeds: Sequence[int]) -> "Table":
        """Leave out the runs with other seeds.

        Raises:
            ConfigError: one of them is not in the table.
        """
        if unknown := [seed for seed in seeds if seed not in self.seeds]:
            raise ConfigError("judged-by", unknown, f"the table has {', '.join(map(str, self.seeds))}")
        places = [self.seeds.index(seed) for seed in seeds]
        values_CSEM, seconds_CSE = self.values_CSEM[:, places], self.seconds_CSE[:, places]
        return replace(self, seeds=list(seeds), values_CSEM=values_CSEM, seconds_CSE=seconds_CSE)

    @property
    def epochs(self) -> int:
        """Of every run."""
        return int(self.values_CSEM.shape[2])

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """Parameters of every point of the space, by number."""
        return list(self.sweep.combinations())

    @cached_property
    def full(self) -> Floats:
        """Full fine-tuning's final objectives, mean over the seeds."""
        full: Floats = self.finals[self.baseline("full")]
        return full

    @cached_property
    def finals(self) -> Floats:
        """Final objectives, mean over the seeds, (C, M)."""
        final: Floats = self.values_CSEM[:, :, -1].mean(axis=1)
        return final

    @cached_property
    def configs(self) -> dict[TrialConfig, int]:
        """Find a point's number by its configuration."""
        return {trial_config(self.sweep, params): number for number, params in enumerate(self.points)}

    def index(self, params: dict[str, Any]) -> int:
        """Find a point's number; parameters that are not in force beside the others are ignored."""
        return self._numbers[point(point_of(self.sweep.space, lambda one: params[one.name]))]

    def baseline(self, name: str) -> int:
        """Find the number of a baseline."""
        return len(self.points) + list(self.baselines).index(name)

    def point_of_baseline(self, name: str) -> int | None:
        """Find the point of the space that is the same configuration as a baseline; None if there is none."""
        trial = self.sweep.trial.given_values()
        return self.configs.get(parse(TrialConfig, trial | {"method": self.baselines[name]}))

    @cached_property
    def _numbers(self) -> dict[tuple[tuple[str, Any], ...], int]:
        return {point(params): number for number, params in enumerate(self.points)}


def _key(entry: "str | dict[str, Any]") -> str:
    return entry if isinstance(entry, str) else json.dumps(entry)


def _forecasts(spec: dict[str, Any], sweep: SweepConfig, file: Path) -> Floats:
    """Forecast the costs of every point, (C, 2), or read them: for some models it takes minutes, and their images."""
    digest = hashlib.sha256(json.dumps([spec["trial"], spec["space"]]).encode()).hexdigest()
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("spec") != digest:
        forecast = Forecast()
        costs = [forecast.costs(trial_config(sweep, params)) for params in sweep.combinations()]
        kept = {"spec": digest, "costs": [[cost.train_flops, cost.peak_bytes] for cost in costs]}
        with atomic_write(file) as scratch:
            scratch.write_text(json.dumps(kept) + "\n")
    return np.array(kept["costs"], dtype=np.float64)


class Searcher(Protocol):
    """A search algorithm; trials are numbered as they start."""

    def suggest(self, number: int) -> int | None:
        """Propose a configuration for trial ``number``; None: nothing to do before the next report."""

    def continues(self, number: int) -> int | None:
        """Name the stopped trial with which the trial ``number`` goes on; None: it begins anew."""

    def go_on(self, number: int, epoch: int, values: Floats) -> bool:
        """Decide on a trial by its objectives so far, after an epoch that is not its last."""

    def complete(self, number: int, values: Floats) -> None:
        """Hear the final objectives of a trial that ran to its end."""


@dataclass
class Trial:
    """A trial on a simulated worker."""

    number: int
    config: int
    seed: int
    epoch: int = 0
    """Epochs finished."""


@dataclass(frozen=True)
class Found:
    """A trial that ran to its end."""

    spent: float
    """FLOPs that the whole search had spent by then, in full fine-tuning runs."""
    config: int
    values: tuple[float, ...]
    """Final objectives, as the search saw them."""


def replay(table: Table, searcher: Searcher, seed: int, workers: int, budget: float = BUDGET) -> list[Found]:
    """Run a search on the simulated clock until it has nothing more to propose, or spent its budget.

    Args:
        table: of real runs.
        searcher: proposes.
        seed: draws, for every trial anew, which of the table's seeds it runs with.
        workers: number of trials that run at a time.
        budget: in full fine-tuning runs.
    """
    draw = np.random.default_rng([seed, 1])  # a search may draw from the stream of the seed alone
    running: list[tuple[float, int, Trial]] = []
    order = itertools.count()  # of two epochs that end together, the one that began first
    found: list[Found] = []
    trials: list[Trial] = []
    now = spent = 0.0

    def begin(trial: Trial) -> float:
        flops_E, seconds_E = (
            table.values_CSEM[trial.config, trial.seed, :, 1],
            table.seconds_CSE[trial.config, trial.seed],
        )
        before = trial.epoch - 1
        duration = seconds_E[trial.epoch] - (seconds_E[before] if trial.epoch else 0.0)
        heapq.heappush(running, (now + duration, next(order), trial))
        return float(flops_E[trial.epoch] - (flops_E[before] if trial.epoch else 0.0))

    while spent < budget * table.full[1]:
        while len(running) < workers and (config := searcher.suggest(len(trials))) is not None:
            trial = Trial(len(trials), config, int(draw.integers(len(table.seeds))))
            earlier = searcher.continues(trial.number)
            if earlier is not None:
                trial.seed, trial.epoch = trials[earlier].seed, trials[earlier].epoch
            trials.append(trial)
            spent += begin(trial)
        if not running:
            break
        now, _, trial = heapq.heappop(running)
        values = table.values_CSEM[trial.config, trial.seed, trial.epoch]
        trial.epoch += 1
        if trial.epoch == table.epochs:
            searcher.complete(trial.number, values)
            found.append(Found(spent / table.full[1], trial.config, tuple(values.tolist())))
        elif searcher.go_on(trial.number, trial.epoch, values):
            spent += begin(trial)
    return found
