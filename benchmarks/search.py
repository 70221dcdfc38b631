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
import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as Printed

from alast_tune.cli import guarded
from alast_tune.config import read_mapping
from alast_tune.errors import ConfigError
from benchmarks.replay import BUDGET, TARGETS, Curve, Searcher, Table, replay
from benchmarks.searchers import Moasha, Optuna, Ours, Random, RayOptuna

RESULTS = Path(__file__).parent / "results"

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
    "ours, baselines first": partial(Ours, baselines=True),
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
