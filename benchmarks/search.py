"""Search algorithms against one another, replayed on a table of real runs: what does a good front cost?

    python benchmarks/tabular.py benchmarks/specs/all-digits.yaml --seeds 3
    python benchmarks/search.py benchmarks/specs/all-digits.yaml
    python benchmarks/search.py benchmarks/specs/grid-digits.yaml --only ours random --workers 1 4 16 64

Simulated workers train what an algorithm proposes, by the clock and the curves of the table, whose seed is drawn
anew for every trial, so an algorithm sees the noise of single runs. What it has found is judged without luck, each
configuration at its mean over the table's seeds. What it has spent is the training FLOPs of all its trials, baselines
and stopped ones included and epochs counted when they begin, in full fine-tuning runs. It is measured

- until the configurations that were trained to the end have a share of the attainable hypervolume in the region:
  only what comes within 0.05 of the accuracy of full fine-tuning counts;
- until one of them is an answer: within a point of the table's best accuracy, and its training FLOPs are at most 1.1
  times the fewest with which any configuration is as accurate;
- luck, by how much the accuracies on the search's own front are too high: as they were seen minus the means of the
  same configurations' other runs. A table of one seed has none.

Each row has the median over the search's seeds, and between what 10% and 90% of them lie.
"""

import argparse
import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as Printed

from alast_tune.cli import guarded
from alast_tune.config import read_mapping
from alast_tune.errors import ConfigError
from benchmarks.measures import TARGETS, WITHIN, Judge, floor_of, needed, quantiles, share_at
from benchmarks.replay import BUDGET, Found, Searcher, Table, replay
from benchmarks.rivals import PACKAGES, BoTorch, Moasha, Primo
from benchmarks.searchers import Cheapest, Optuna, Ours, Random, RayOptuna

RESULTS = Path(__file__).parent / "results"

_TPE = partial(Optuna, partial(optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True))
_GP = partial(Optuna, optuna.samplers.GPSampler)
SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "random": Random,
    "cheapest first": Cheapest,
    "OptunaSearch": RayOptuna,
    "NSGA-II": partial(Optuna, partial(optuna.samplers.NSGAIISampler, population_size=16)),
    "TPE": _TPE,
    "TPE, constrained": partial(_TPE, constrained=True),
    "GP": _GP,
    "GP, flat": partial(_GP, flat=True),
    "MOASHA": Moasha,
    "qLogNEHVI": BoTorch,
    "PriMO, good priors": Primo,
    "PriMO, wrong priors": partial(Primo, wrong=True),
    "TPE, stopped from epoch 1": partial(Ours, sampler="tpe", grace_epochs=1),
    "ours, none stopped": partial(Ours, scheduler="none"),
    "ours, stopped from epoch 1": partial(Ours, grace_epochs=1),
    "ours": Ours,
}
SLOW = {
    "TPE": 10,
    "TPE, constrained": 10,
    "GP": 10,
    "GP, flat": 10,
    "qLogNEHVI": 5,
    "PriMO, good priors": 5,
    "PriMO, wrong priors": 5,
}
"""Fewer replays for those that take minutes each."""
SPENT = (2, 5, 10, 20, 30)
"""Full runs' worth of FLOPs at which attainment is listed."""

Runs = dict[tuple[str, int], list[list[Found]]]
"""What each search found with each seed, by its name and the number of its workers."""

_TABLE: list[Table] = []
"""That of a process, which it is given once."""


def _prepare(table: Table) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    _TABLE.append(table)


def _replay(name: str, settings: dict[str, Any], options: argparse.Namespace, workers: int, seed: int) -> list[Found]:
    searcher = SEARCHERS[name](_TABLE[0], seed, options.baselines, **settings)
    return replay(_TABLE[0], searcher, seed, workers, options.budget)


def race(table: Table, options: argparse.Namespace) -> Runs:
    """Replay every algorithm with every number of workers and every seed."""
    settings = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in options.sweep)}
    runs: Runs = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _prepare, (table,)) as pool:
        parts = {
            (name, workers): [
                pool.submit(_replay, name, settings if _is_ours(name) else {}, options, workers, seed)
                for seed in range(min(options.seeds, SLOW.get(name, options.seeds)))
            ]
            for name in options.only
            for workers in options.workers
        }
        for (name, workers), replays in parts.items():
            runs[name, workers] = [one.result() for one in replays]
            print(f"{name}, {workers} workers: {len(replays)}", file=sys.stderr, flush=True)
    return runs


def _is_ours(name: str) -> bool:
    searcher = SEARCHERS[name]
    return getattr(searcher, "func", searcher) is Ours


def _family(name: str) -> str:
    return name.split(",")[0]


def _is_installed(name: str) -> bool:
    module, _ = PACKAGES.get(_family(name), ("alast_tune", ""))
    return importlib.util.find_spec(module) is not None


def summarise(judge: Judge, runs: Runs) -> list[dict[str, Any]]:
    """Measure each algorithm, a row an algorithm: quantiles over seeds, in the order of ``QUANTILES``."""
    rows = []
    for (name, workers), founds in runs.items():
        curves = [judge.curve(found) for found in founds]
        row: dict[str, Any] = {"search": name, "workers": workers, "seeds": len(founds)}
        row |= {f"{target:.0%}": quantiles(needed(curve, target) for curve in curves) for target in TARGETS}
        row["answer"] = quantiles(judge.answered(found) for found in founds)
        row["luck"] = quantiles(judge.luck(found) for found in founds)
        row["trials"] = quantiles(len(found) for found in founds)
        row |= {f"after {spent}": quantiles(share_at(curve, spent) for curve in curves) for spent in SPENT}
        rows.append(row)
    return rows


def draw(judge: Judge, runs: Runs, title: str, budget: float) -> Figure:
    """Draw the share of the attainable hypervolume against FLOPs spent: medians, and 10 to 90% of seeds as bands."""
    figure = Figure(figsize=(9, 5.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    spent_X = np.geomspace(0.3, budget, 200)
    several = len({workers for _, workers in runs}) > 1
    for place, ((name, workers), founds) in enumerate(runs.items()):
        curves = [judge.curve(found) for found in founds]
        shares_RX = np.array([[share_at(curve, spent) for spent in spent_X] for curve in curves])
        low, middle, high = np.quantile(shares_RX, (0.1, 0.5, 0.9), axis=0, method="inverted_cdf")
        colour, label = f"C{place % 10}", f"{name}, {workers} workers" if several else name
        style = "-" if place < 10 else "--"
        axes.plot(spent_X, middle, style, label=label, color=colour, lw=2.5 if name.startswith("ours") else 1.2)
        axes.fill_between(spent_X, low, high, color=colour, alpha=0.08, lw=0)
    axes.axhline(0.9, color="0.6", lw=0.8, ls=":")
    axes.set(xscale="log", ylim=(0.0, 1.01), xlabel="training FLOPs spent, in full fine-tuning runs")
    axes.set(ylabel="share of the attainable hypervolume", title=title)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def show(rows: list[dict[str, Any]], title: str, budget: float) -> None:
    """Print the measures in two tables."""
    costs = ["search", "workers", "seeds", *(f"{target:.0%}" for target in TARGETS), "answer"]
    found = ["search", "workers", *(f"after {spent}" for spent in SPENT if spent <= budget), "luck", "trials"]
    for names, words in ((costs, f"{title}; FLOPs spent, in full fine-tuning runs"), (found, "Share attained by then")):
        printed = Printed(title=words, title_justify="left")
        for name in names:
            printed.add_column(name, justify="left" if name == "search" else "right", no_wrap=True)
        for row in rows:
            printed.add_row(*(_cell(row[name], name, budget) for name in names))
        Console(width=170).print(printed)


def _cell(value: Any, name: str, budget: float) -> str:
    if not isinstance(value, list):
        return str(value)
    form = {"luck": "{:+.3f}", "trials": "{:.0f}"}.get(name, "{:.2f}" if name.startswith("after") else "{:.1f}")
    if math.isnan(value[0]):
        return "-"
    middle, low, high = (f">{budget:g}" if math.isinf(x) else form.format(x) for x in value)
    return f"{middle} [{low}, {high}]"


@guarded
def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="of benchmarks/tabular.py")
    parser.add_argument("--results", type=Path, help="its JSON lines; default: benchmarks/results/<spec>.jsonl")
    parser.add_argument("--only", nargs="+", choices=list(SEARCHERS), metavar="NAME", help="default: what is installed")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--judged-by", type=int, nargs="+", help="seeds of the table that judge; default: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[4], help="simulated ones; several: a row for each")
    parser.add_argument("--baselines", nargs="*", default=["full"], help="methods of the spec, first for all")
    parser.add_argument("--region", choices=["full", "all"], default="full", help="all: any accuracy counts")
    parser.add_argument("--budget", type=float, default=BUDGET, help="full fine-tuning runs")
    parser.add_argument("--sweep", nargs="+", default=[], metavar="SETTING=VALUE", help="settings of our sweeps")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--png", type=Path, help="picture of the curves")
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    missing = [name for name in options.only or SEARCHERS if not _is_installed(name)]
    for name in missing if options.only else []:
        raise ConfigError("only", name, f"{PACKAGES[_family(name)][1]}; or leave it out")
    for name in missing:
        print(f"{name} is left out: {PACKAGES[_family(name)][1]}", file=sys.stderr)
    options.only = [name for name in options.only or SEARCHERS if name not in missing]
    spec = read_mapping(options.spec)
    if unknown := [name for name in options.baselines if name not in spec["methods"]]:
        raise ConfigError("baselines", ", ".join(unknown), f"the spec has {', '.join(spec['methods'])}")
    table = Table.read(spec, options.results or RESULTS / f"{options.spec.stem}.jsonl", options.set)
    means = table.of_seeds(options.judged_by or table.seeds)
    judge = Judge(means, floor_of(means, WITHIN if options.region == "full" else None))
    runs = race(table, options)
    rows = summarise(judge, runs)
    if means.seeds != table.seeds:  # a run may be in its configuration's mean, or not
        rows = [row | {"luck": [math.nan]} for row in rows]
    seeds = ", ".join(map(str, means.seeds))
    title = f"{options.spec.stem}: {len(table.points)} configurations, seeds {seeds}, accuracy above {judge.floor:.3f}"
    if options.png:
        draw(judge, runs, title, options.budget).savefig(options.png)
    if options.json:
        about = {"table": options.spec.stem, "seeds": means.seeds, "floor": judge.floor, "baselines": options.baselines}
        print(json.dumps(about | {"rows": rows}, indent=2))
        return
    show(rows, title, options.budget)


if __name__ == "__main__":
    main()
