"""Search algorithms against one another, replayed on a table of real runs: what does a good front cost?

    python benchmarks/tabular.py benchmarks/specs/grid-digits.yaml
    python benchmarks/search.py benchmarks/specs/grid-digits.yaml

Simulated workers train what an algorithm proposes, by the clock and the curves of the table, whose seed is drawn
anew for every trial: what an algorithm sees is as noisy as in life. What it has found is judged without luck: the
hypervolume of the configurations it trained to the end, each at its mean over the table's seeds, as a share of the
hypervolume that the whole table attains. What it has spent is the training FLOPs of all its trials, stopped ones
included and epochs counted when they begin, in full fine-tuning runs.
"""

import argparse
import heapq
import importlib
import importlib.util
import itertools
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol, cast

import numpy as np
import optuna
from matplotlib.figure import Figure
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table as Printed

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig, TrialConfig, apply_params, flatten, parse, read_mapping
from alast_tune.errors import ConfigError
from alast_tune.front import hypervolume_share
from alast_tune.results import DIRECTIONS, OBJECTIVES, TrialResult
from alast_tune.tune.forecast import Costs, Forecast
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import enqueue_landmarks

RESULTS = Path(__file__).parent / "results"
TARGETS = (0.90, 0.95, 0.99)
BUDGET = 30.0
"""Full fine-tuning runs' worth of FLOPs after which a replay ends."""
MARGIN = 1.1
"""The reference point lies at this multiple of the cost of full fine-tuning, as in a sweep."""

Floats = NDArray[np.float64]
Decision = Literal["continue", "stop", "pause"]


@dataclass(frozen=True)
class Table:
    """Every configuration's curves: C of them, S seeds, E epochs, M objectives in the order of ``OBJECTIVES``."""

    space: dict[str, list[Any]]
    landmarks: list[str]
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
            landmarks=list(spec["methods"]),
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
        """How many configurations there are without the landmarks."""
        return len(self.values_CSEM) - len(self.landmarks)

    @cached_property
    def full(self) -> Floats:
        """Full fine-tuning's final objectives, mean over the seeds."""
        full: Floats = self.finals[self.grid + self.landmarks.index("full")]
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


@dataclass(frozen=True)
class Job:
    """What a free worker shall do: train a configuration from the start, or go on with a paused trial of it."""

    config: int
    resume: int | None = None


class Searcher(Protocol):
    """A search algorithm; trials are numbered as they start."""

    def suggest(self, number: int) -> Job | None:
        """Propose trial ``number`` or resume another; None: nothing to do before the next report."""

    def report(self, number: int, epoch: int, values: Floats) -> Decision:
        """Hear a trial's objectives so far, after an epoch that is not its last."""

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
    trials: list[Trial] = []
    running: list[tuple[float, int, Trial]] = []
    order = itertools.count()  # of two epochs that end together, the one that began first
    finished: set[int] = set()
    curve: Curve = []
    now, spent, share = 0.0, 0.0, 0.0

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
        while len(running) < workers and (job := searcher.suggest(len(trials))):
            if job.resume is None:
                trials.append(Trial(len(trials), job.config, int(draw.integers(table.values_CSEM.shape[1]))))
            spent += begin(trials[-1 if job.resume is None else job.resume])
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
        elif searcher.report(trial.number, trial.epoch, values) == "continue":
            spent += begin(trial)
    return curve


class Random:
    """Grid points uniformly, each to its end."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._draw = np.random.default_rng(seed)

    def suggest(self, number: int) -> Job | None:
        """Draw a grid point."""
        return Job(int(self._draw.integers(self._table.grid)))

    def report(self, number: int, epoch: int, values: Floats) -> Decision:
        """Never stop."""
        return "continue"

    def complete(self, number: int, values: Floats) -> None:
        """Learn nothing."""


class RayOptuna(Random):
    """Ray Tune's OptunaSearch as it is shipped, driven without a cluster; no scheduler."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        names = [objective.name for objective in OBJECTIVES]
        modes = ["max" if direction == "maximize" else "min" for direction in DIRECTIONS]
        self._search = OptunaSearch(metric=names, mode=modes, seed=seed)
        space = {str(place): tune.choice(values) for place, values in enumerate(table.space.values())}
        self._search.set_search_properties(None, None, space)

    def suggest(self, number: int) -> Job | None:
        """Ask it."""
        params = self._search.suggest(str(number)) or {}
        return Job(self._table.index({path: params[str(place)] for place, path in enumerate(self._table.space)}))

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        result = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        self._search.on_trial_complete(str(number), result)


class Optuna(Random):
    """A sampler of Optuna's by ask and tell; no scheduler."""

    def __init__(self, sampler: Callable[..., optuna.samplers.BaseSampler], table: Table, seed: int) -> None:
        super().__init__(table, seed)
        self._study = optuna.create_study(sampler=sampler(seed=seed), directions=list(DIRECTIONS))
        self._space: dict[str, BaseDistribution] = {
            path: optuna.distributions.CategoricalDistribution(values) for path, values in table.space.items()
        }

    def suggest(self, number: int) -> Job | None:
        """Ask it."""
        return Job(self._table.index(self._study.ask(self._space).params))

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._study.tell(number, [float(value) for value in values])


class Moasha(Random):
    """Syne Tune's MOASHA, which stops trials by their objectives so far."""

    MODULE = "syne_tune.optimizer.schedulers.multiobjective.moasha"

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        np.random.seed(seed)  # noqa: NPY002 # it samples from numpy's global generator
        config_space = importlib.import_module("syne_tune.config_space")
        self._trial = importlib.import_module("syne_tune.backend.trial_status").Trial
        names = [objective.name for objective in OBJECTIVES]
        space = {path: config_space.choice(values) for path, values in table.space.items()}
        self._scheduler = importlib.import_module(self.MODULE).MOASHA(
            space, names, time_attr="epoch", max_t=table.epochs, random_seed=seed
        )
        self._trials: dict[int, Any] = {}

    def suggest(self, number: int) -> Job | None:
        """Ask it."""
        config = self._scheduler.suggest().config
        self._trials[number] = self._trial(number, config, None)
        self._scheduler.on_trial_add(self._trials[number])
        return Job(self._table.index(config))

    def report(self, number: int, epoch: int, values: Floats) -> Decision:
        """Let it decide."""
        decision = self._scheduler.on_trial_result(self._trials[number], self._result(epoch, values))
        if decision == "STOP":
            self._scheduler.on_trial_remove(self._trials[number])
        return "stop" if decision == "STOP" else "continue"

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._scheduler.on_trial_complete(self._trials[number], self._result(self._table.epochs, values))

    def _result(self, epoch: int, values: Floats) -> dict[str, float]:
        """Sign the objectives for an algorithm that has one mode for all: minimize."""
        result: dict[str, float] = {"epoch": epoch}
        for objective, value in zip(OBJECTIVES, values, strict=True):
            result[objective.name] = float(-value if objective.direction == "maximize" else value)
        return result


class Unheard:
    """Nobody who wants to know how trials fare."""

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object]) -> None:
        """Nothing."""

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def ended(self, result: TrialResult) -> None:
        """Nothing."""


class Ours(Random):
    """The sweep's own searcher and scheduler, as Ray Tune drives them.

    Args:
        table: what is known.
        seed: of the sampler.
        landmarks: whether full fine-tuning and the paper's configuration come first, as in a sweep.
        settings: of the sweep.
    """

    def __init__(self, table: Table, seed: int, landmarks: bool = False, **settings: Any) -> None:
        super().__init__(table, seed)
        space = {path: {"type": "categorical", "choices": values} for path, values in table.space.items()}
        sweep = parse(SweepConfig, {"trial": table.trial, "space": space, "trials": 10**6, "seed": seed} | settings)
        study = optuna.create_study(directions=list(DIRECTIONS))
        study.set_user_attr("reference_point", [0.0, *(MARGIN * table.full[1:])])
        if landmarks:
            enqueue_landmarks(study, sweep)
        somewhere = Packing(sweep, [Node("", cpu=1e6, memory=1e18)])
        self._searcher = StudySearcher(study, sweep, Unheard(), somewhere, self._forecast)
        self._scheduler = MoAsha(sweep, study)
        self._suggestions: dict[int, SimpleNamespace] = {}

    def suggest(self, number: int) -> Job | None:
        """Ask it."""
        suggestion = self._searcher.suggest(str(number))
        if not isinstance(suggestion, dict):
            return None
        self._suggestions[number] = SimpleNamespace(config=suggestion)
        if suggestion["landmark"]:
            return Job(self._table.grid + self._table.landmarks.index(suggestion["landmark"]))
        return Job(self._index(parse(TrialConfig, suggestion["trial"])))

    def report(self, number: int, epoch: int, values: Floats) -> Decision:
        """Let it decide."""
        result = self._result(epoch, values)
        decision = self._scheduler.on_trial_result(None, cast("TuneTrial", self._suggestions[number]), result)
        if decision == TrialScheduler.STOP:
            self._searcher.on_trial_complete(str(number), result)
            return "stop"
        self._searcher.on_trial_result(str(number), result)
        return "continue"

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._searcher.on_trial_complete(str(number), self._result(self._table.epochs, values))

    def _forecast(self, config: TrialConfig, growth: float) -> Costs:
        if config.method.name != "alast" or config.method.reading == "paper":
            return Costs(0.0, 0)  # a landmark
        flops, peak = self._table.forecasts_C2[self._index(config)]
        return Costs(flops, int(peak))

    def _index(self, config: TrialConfig) -> int:
        return self._table.index(flatten(config))

    def _result(self, epoch: int, values: Floats) -> dict[str, Any]:
        """Put it as Tune does."""
        metrics = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        return {f"report/{name}": value for name, value in metrics.items()} | {"report/epoch": epoch}


SEARCHERS: dict[str, Callable[[Table, int], Searcher]] = {
    "random": Random,
    "OptunaSearch": RayOptuna,
    "NSGA-II": partial(Optuna, optuna.samplers.NSGAIISampler),
    "TPE": partial(Optuna, partial(optuna.samplers.TPESampler, multivariate=True, constant_liar=True)),
    "GP": partial(Optuna, optuna.samplers.GPSampler),
    "MOASHA": Moasha,
    "TPE, stopped from epoch 1": partial(Ours, sampler="tpe", grace_epochs=1),
    "ours, none stopped": partial(Ours, scheduler="none"),
    "ours, stopped from epoch 1": partial(Ours, grace_epochs=1),
    "ours": Ours,
    "ours, landmarks first": partial(Ours, landmarks=True),
}
SLOW = {"GP": 10}
"""Fewer replays for those that take minutes each."""


def needed(curve: Curve, target: float) -> float:
    """Look up what it cost to reach a share of the attainable hypervolume; infinite if it was not reached."""
    return next((spent for spent, share in curve if share >= target), math.inf)


def _replays(table: Table, name: str, workers: int, seeds: range) -> list[Curve]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    return [replay(table, SEARCHERS[name](table, seed), seed, workers) for seed in seeds]


def race(table: Table, names: Sequence[str], seeds: int, workers: int, processes: int) -> dict[str, list[Curve]]:
    """Replay every algorithm with every seed."""
    curves: dict[str, list[Curve]] = {name: [] for name in names}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        parts = {
            (name, start): pool.submit(_replays, table, name, workers, range(start, min(start + 5, total)))
            for name in names
            for total in [min(seeds, SLOW.get(name, seeds))]
            for start in range(0, total, 5)
        }
        for (name, _), part in parts.items():
            curves[name] += part.result()
            print(f"{name}: {len(curves[name])}", file=sys.stderr, flush=True)
    return curves


def summarise(curves: dict[str, list[Curve]]) -> list[dict[str, Any]]:
    """Median and quartiles of what each target cost, a row an algorithm."""
    rows = []
    for name, runs in curves.items():
        row: dict[str, Any] = {"search": name, "seeds": len(runs)}
        for target in TARGETS:
            costs = sorted(needed(curve, target) for curve in runs)
            row[f"{target:.0%}"] = [float(np.quantile(costs, q, method="nearest")) for q in (0.5, 0.25, 0.75)]
        rows.append(row)
    return rows


def draw(curves: dict[str, list[Curve]], title: str) -> Figure:
    """Draw the share of the attainable hypervolume against FLOPs spent: medians, and quartiles as bands."""
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    spent_X = np.geomspace(0.3, BUDGET, 200)
    for place, (name, runs) in enumerate(curves.items()):
        shares_RX = np.array([[_share_at(curve, spent) for spent in spent_X] for curve in runs])
        low, middle, high = np.quantile(shares_RX, (0.25, 0.5, 0.75), axis=0)
        colour = f"C{place}"
        axes.plot(spent_X, middle, label=name, color=colour, lw=2.5 if name.startswith("ours") else 1.2)
        axes.fill_between(spent_X, low, high, color=colour, alpha=0.12, lw=0)
    axes.axhline(0.95, color="0.6", lw=0.8, ls=":")
    axes.set(xscale="log", ylim=(0.4, 1.01), xlabel="training FLOPs spent, in full fine-tuning runs")
    axes.set(ylabel="share of the attainable hypervolume", title=title)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _share_at(curve: Curve, spent: float) -> float:
    return max((share for cost, share in curve if cost <= spent), default=0.0)


@guarded
def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="of benchmarks/tabular.py")
    parser.add_argument("--results", type=Path, help="its JSON lines; default: benchmarks/results/<spec>.jsonl")
    parser.add_argument("--only", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4, help="simulated ones")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--png", type=Path, help="picture of the curves")
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    if "MOASHA" in options.only and not importlib.util.find_spec("syne_tune"):
        raise ConfigError("only", "MOASHA", "pip install --no-deps syne-tune, or leave it out")
    spec = read_mapping(options.spec)
    table = Table.read(spec, options.results or RESULTS / f"{options.spec.stem}.jsonl", options.set)
    curves = race(table, options.only, options.seeds, options.workers, options.processes)
    rows = summarise(curves)
    if options.png:
        draw(curves, f"{options.spec.stem}: {table.grid} configurations").savefig(options.png)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    title = f"{options.spec.stem}: FLOPs spent, in full fine-tuning runs, to reach a share of the hypervolume"
    printed = Printed(title=title, title_justify="left")
    for column in rows[0]:
        printed.add_column(column, justify="left" if column == "search" else "right")
    for row in rows:
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*v) if isinstance(v, list) else str(v) for v in row.values()]
        printed.add_row(*cells)
    Console(width=150).print(printed)


if __name__ == "__main__":
    main()
