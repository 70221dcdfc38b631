"""Make a tabular benchmark: every configuration of a space, fine-tuned for real, with the curves of every epoch.

    python benchmarks/tabular.py benchmarks/specs/all-digits.yaml --seeds 3
    python benchmarks/tabular.py benchmarks/specs/grid-digits.yaml
    python benchmarks/tabular.py benchmarks/specs/grid-emoji57.yaml --set data/root=...

A finished run is a line in the results file and is never run again: interrupted, the same command goes on. Several
processes share a table by ``--share 0 2`` and ``--share 1 2``. benchmarks/search.py replays search algorithms on it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig, TrialConfig, apply_params, parse, read_mapping
from alast_tune.results import OBJECTIVES
from alast_tune.run import Run
from benchmarks.accuracy import refuse_others, settings_of

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def everything(spec: dict[str, Any], settings: list[str]) -> Iterator[tuple[Row, TrialConfig]]:
    """Yield each run's key (the method's name, or the point of the space) and its configuration.

    Raises:
        ConfigError: a point of the space that contradicts itself.
    """
    given = dict(setting.split("=", 1) for setting in settings)
    for name, method in spec["methods"].items():
        yield {"name": name}, apply_params(parse(TrialConfig, spec["trial"] | {"method": method}), given)
    sweep = sweep_of(spec)
    for params in sweep.combinations():
        yield {"params": params}, apply_params(sweep.trial, sweep.settings(params) | given)


def sweep_of(spec: dict[str, Any]) -> SweepConfig:
    """Read the trial and the space, which has no real parameters, as a sweep of a grid."""
    return parse(SweepConfig, {"trial": spec["trial"], "space": spec["space"], "sampler": "grid"})


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
    parser.add_argument(
        "spec", type=Path, help="YAML: a trial, a sweep's space without real parameters, methods by name"
    )
    parser.add_argument("--results", type=Path, help="JSON lines; default: benchmarks/results/<spec>.jsonl")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth run, from I")
    parser.add_argument("--threads", type=int, default=1, help="for torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = options.results or RESULTS / f"{options.spec.stem}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    rows = read(results)
    finished = [{key: row[key] for key in row if key in {"name", "params", "seed"}} for row in rows]
    wanted = list(everything(read_mapping(options.spec), options.set))
    for key, config in wanted:
        refuse_others([row for row in rows if key.items() <= row.items()], settings_of(config, "train/seed"), results)
    for seed in range(options.seeds):
        for number, (key, config) in enumerate(wanted):
            key = key | {"seed": seed}
            if key in finished or number % options.share[1] != options.share[0]:
                continue
            settings = {"settings": settings_of(config, "train/seed")}
            row = key | settings | curves(apply_params(config, {"train/seed": seed}))
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number + 1}/{len(wanted)}, seed {seed}: {row['accuracy'][-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
