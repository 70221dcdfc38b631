"""Runs a search algorithm on a table of real runs, by the table's own clock: hundreds of searches in minutes."""

import heapq
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alast_tune.config import TrialConfig, apply_params, parse
from alast_tune.errors import ConfigError
from alast_tune.front import hypervolume_share
from alast_tune.results import DIRECTIONS, OBJECTIVES
from alast_tune.tune.forecast import Forecast

TARGETS = (0.90, 0.95, 0.99)
BUDGET = 30.0
"""Full fine-tuning runs' worth of FLOPs after which a replay ends."""
MARGIN = 1.1
"""The reference point lies at this multiple of the cost of full fine-tuning, as in a sweep."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Every configuration's curves: C of them, S seeds, E epochs, M objectives in the order of ``OBJECTIVES``."""

    space: dict[str, list[Any]]
    baselines: list[str]
    """Names of the last configurations, those beside the grid; `full` is one."""
    trial: dict[str, Any]
    """What all configurations have in common."""
    values_CSEM: Floats
    """Cumulative, each objective in its own unit."""
    seconds_CSE: Floats
    forecasts_C2: Floats
    """Training FLOPs and peak bytes of the grid's configurations as they are forecast, without training."""

    @classmethod
    def read(cls, spec: dict[str, Any], results: Path, settings: Sequence[str] = ()) -> "Table":
        """Read the rows that a spec names.

        Args:
            spec: of benchmarks/tabular.py.
            results: its rows.
            settings: of the trial, as ``data/root=/images``; forecasts need its images.

        Raises:
            ConfigError: rows are missing.
        """
        lines = results.read_text().splitlines() if results.exists() else []
        rows = [json.loads(line) for line in lines]
        found = {(_key(row.get("params", row.get("name"))), row["seed"]): row for row in rows}
        grid = [dict(zip(spec["grid"], values, strict=True)) for values in itertools.product(*spec["grid"].values())]
        keys = [_key(entry) for entry in [*grid, *spec["methods"]]]
        seeds = sorted({seed for _, seed in found})
        missing = [key for key in itertools.product(keys, seeds or [0]) if key not in found]
        if missing:
            total = len(keys) * max(1, len(seeds))
            raise ConfigError("results", results, f"{len(missing)} of {total} runs are missing: benchmarks/tabular.py")
        cells = [[found[key, seed] for seed in seeds] for key in keys]
        values = [[[row[objective.name] for objective in OBJECTIVES] for row in runs] for runs in cells]
        given = dict(setting.split("=", 1) for setting in settings)
        base = apply_params(parse(TrialConfig, spec["trial"]), given)
        forecast = Forecast()
        costs = [forecast.costs(apply_params(base, params)) for params in grid]
        return cls(
            space=spec["grid"],
            baselines=list(spec["methods"]),
            trial=base.model_dump(exclude_unset=True),
            forecasts_C2=np.array([(cost.train_flops, cost.peak_bytes) for cost in costs]),
            values_CSEM=np.array(values, dtype=np.float64).swapaxes(-1, -2),
            seconds_CSE=np.array([[row["seconds"] for row in runs] for runs in cells]),
        )

    @property
    def epochs(self) -> int:
        """Of every run."""
        return int(self.values_CSEM.shape[2])

    @property
    def grid(self) -> int:
        """How many configurations there are without the baselines."""
        return len(self.values_CSEM) - len(self.baselines)

    @cached_property
    def full(self) -> Floats:
        """Full fine-tuning's final objectives, mean over the seeds."""
        full: Floats = self.finals[self.grid + self.baselines.index("full")]
        return full

    @cached_property
    def finals(self) -> Floats:
        """Final objectives, mean over the seeds."""
        final: Floats = self.values_CSEM[:, :, -1].mean(axis=1)
        return final

    @cached_property
    def attainable(self) -> float:
        """Hypervolume of all there is."""
        return self._hypervolume(range(len(self.finals)))

    def share(self, configs: "set[int]") -> float:
        """Compare the hypervolume of some configurations with the attainable one."""
        return self._hypervolume(configs) / self.attainable

    def index(self, params: dict[str, Any]) -> int:
        """Find a grid point's number."""
        places = [values.index(params[path]) for path, values in self.space.items()]
        return int(np.ravel_multi_index(places, [len(values) for values in self.space.values()]))

    def params(self, config: int) -> dict[str, Any]:
        """Look up a grid point's parameters."""
        places = np.unravel_index(config, [len(values) for values in self.space.values()])
        return {path: values[place] for (path, values), place in zip(self.space.items(), places, strict=True)}

    def _hypervolume(self, configs: "set[int] | range") -> float:
        reference = (0.0, MARGIN * self.full[1], MARGIN * self.full[2])
        return hypervolume_share(self.finals[list(configs)], reference, (1.0, 0.0, 0.0), DIRECTIONS)


def _key(entry: "str | dict[str, Any]") -> str:
    return entry if isinstance(entry, str) else json.dumps(entry)


class Searcher(Protocol):
    """A search algorithm; trials are numbered as they start."""

    def suggest(self, number: int) -> int | None:
        """Propose a configuration for trial ``number``; None: nothing to do before the next report."""

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


Curve = list[tuple[float, float]]
"""(FLOPs spent in full fine-tuning runs, share of the attainable hypervolume), a point a finished trial."""


def replay(table: Table, searcher: Searcher, seed: int, workers: int) -> Curve:
    """Run a search on the simulated clock until it has all that is asked for, or spent its budget."""
    draw = np.random.default_rng(seed)
    running: list[tuple[float, int, Trial]] = []
    order = itertools.count()  # of two epochs that end together, the one that began first
    finished: set[int] = set()
    curve: Curve = []
    number, now, spent, share = 0, 0.0, 0.0, 0.0

    def begin(trial: Trial) -> float:
        flops_E, seconds_E = (
            table.values_CSEM[trial.config, trial.seed, :, 1],
            table.seconds_CSE[trial.config, trial.seed],
        )
        before = trial.epoch - 1
        duration = seconds_E[trial.epoch] - (seconds_E[before] if trial.epoch else 0.0)
        heapq.heappush(running, (now + duration, next(order), trial))
        return float(flops_E[trial.epoch] - (flops_E[before] if trial.epoch else 0.0))

    while spent < BUDGET * table.full[1] and share < TARGETS[-1]:
        while len(running) < workers and (config := searcher.suggest(number)) is not None:
            spent += begin(Trial(number, config, int(draw.integers(table.values_CSEM.shape[1]))))
            number += 1
        if not running:
            break
        now, _, trial = heapq.heappop(running)
        values = table.values_CSEM[trial.config, trial.seed, trial.epoch]
        trial.epoch += 1
        if trial.epoch == table.epochs:
            searcher.complete(trial.number, values)
            finished.add(trial.config)
            share = table.share(finished)
            curve.append((spent / table.full[1], share))
        elif searcher.go_on(trial.number, trial.epoch, values):
            spent += begin(trial)
    return curve
