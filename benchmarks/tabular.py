"""Make a tabular benchmark: every configuration of a grid, fine-tuned for real, with the curves of every epoch.

    python benchmarks/tabular.py benchmarks/specs/grid-digits.yaml
    python benchmarks/tabular.py benchmarks/specs/grid-emoji57.yaml --set data/root=...

A finished run is a line in the results file and is never run again: interrupted, the same command goes on. Several
processes share a grid by ``--share 0 2`` and ``--share 1 2``. benchmarks/search.py replays search algorithms on it.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from alast_tune.cli import guarded
from alast_tune.config import TrialConfig, apply_params, parse, read_mapping
from alast_tune.results import OBJECTIVES
from alast_tune.run import Run

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def grid(spec: dict[str, Any], settings: list[str]) -> Iterator[tuple[Row, TrialConfig]]:
    """Yield each run's key (the method's name, or the grid's parameters) and its configuration."""
    given = dict(setting.split("=", 1) for setting in settings)
    base = apply_params(parse(TrialConfig, spec["trial"]), given)
    for name, method in spec["methods"].items():
        yield {"name": name}, apply_params(parse(TrialConfig, spec["trial"] | {"method": method}), given)
    for values in itertools.product(*spec["grid"].values()):
        params = dict(zip(spec["grid"], values, strict=True))
        yield {"params": params}, apply_params(base, params)


def curves(config: TrialConfig) -> Row:
    """Fine-tune once; the objectives and the seconds since the start, after every epoch."""
    started, run, seconds = time.monotonic(), Run(config), []
    row: Row = {objective.name: [] for objective in OBJECTIVES}
    while not run.finished:
        metrics = run.train_epoch().metrics()
        for name, values in row.items():
            values.append(round(metrics[name], 6) if name == "accuracy" else int(metrics[name]))
        seconds.append(round(time.monotonic() - started, 2))
    return row | {"seconds": seconds}


def read(results: Path) -> list[Row]:
    """Read the finished runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@guarded
def main() -> None:
    """Run what the results file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="YAML: a trial, a grid (path: values), and methods by name")
    parser.add_argument("--results", type=Path, help="JSON lines; default: benchmarks/results/<spec>.jsonl")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth run, from I")
    parser.add_argument("--threads", type=int, default=1, help="for torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = options.results or RESULTS / f"{options.spec.stem}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    finished = [{key: row[key] for key in row if key in {"name", "params", "seed"}} for row in read(results)]
    everything = list(grid(read_mapping(options.spec), options.set))
    for seed in range(options.seeds):
        for number, (key, config) in enumerate(everything):
            key = key | {"seed": seed}
            if key in finished or number % options.share[1] != options.share[0]:
                continue
            row = key | curves(apply_params(config, {"train/seed": seed}))
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number + 1}/{len(everything)}, seed {seed}: {row['accuracy'][-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
