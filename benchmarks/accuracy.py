"""Every method on one dataset, each at its own best learning rate: accuracy over seeds, and what it cost.

    python benchmarks/accuracy.py benchmarks/specs/digits.yaml
    python benchmarks/accuracy.py benchmarks/specs/emoji57.yaml --set data/root=... model/checkpoint=...
    python benchmarks/accuracy.py benchmarks/specs/controls-digits.yaml --seeds 5 --against "alast fast"

The first seed tries every learning rate of the spec; the best of them on the validation images is used for
the others. ``--against`` compares every method with one of them, seed by seed. A finished run is a line in the
results file and is never run again: interrupted, the same command goes on. ``--jobs`` runs several at a time, whose
seconds then do not compare. A run that diverges is a line, too, which is never chosen and in no mean. Needs neither Ray
nor MLflow.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from alast_tune.config import PLACES, TrialConfig, apply_params, parse, read_mapping
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.run import Run

RESULTS = Path(__file__).parent / "results"
KEY = ("train/learning_rate", "train/seed")
"""What a method's runs differ by."""
Row = dict[str, Any]
SCORES: dict[str, Callable[[Row], float | None]] = {
    "validation": lambda row: float(row["accuracies"][-1]),
    "test": lambda row: None if row["test_accuracy"] is None else float(row["test_accuracy"]),
}


def trials(
    spec: dict[str, Any], settings: list[str], only: list[str]
) -> Iterator[tuple[str, TrialConfig, list[float]]]:
    """Yield each method's name, its trial and its learning rates."""
    for name, entry in spec["methods"].items():
        if only and name not in only:
            continue
        rates = entry.get("learning_rates", spec["learning_rates"])
        base = spec["trial"] | {part: values for part, values in entry.items() if part != "learning_rates"}
        base |= {part: spec["trial"][part] | entry.get(part, {}) for part in ("data", "model", "train")}
        params = dict(setting.split("=", 1) for setting in settings)
        yield name, apply_params(parse(TrialConfig, base), params), rates


def settings_of(config: TrialConfig, *besides: str) -> str:
    """Hash what was given of a trial, but places and ``besides``: a setting that the package gains changes no hash."""
    given = config.given_values()
    for path in (*PLACES, *besides):
        part, name = path.split("/")
        given.get(part, {}).pop(name, None)
    given = {part: values for part, values in given.items() if values}
    return sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def refuse_others(rows: Iterable[Row], settings: str, results: Path) -> None:
    """Refuse finished runs of other settings than these; older rows do not say theirs, and are taken as equal.

    Raises:
        ConfigError: there is one.
    """
    if any(row.get("settings", settings) != settings for row in rows):
        raise ConfigError("results", results, "has runs of other settings; give another file by --results")


def run(name: str, config: TrialConfig) -> Row:
    """Fine-tune once; a row of plain values, without costs if the training diverges."""
    started, reports = time.monotonic(), []
    row = {
        "name": name,
        "learning_rate": config.train.learning_rate,
        "seed": config.train.seed,
        "settings": settings_of(config, *KEY),
        "method": config.method.model_dump(mode="json"),
    }
    try:
        training = Run(config)
        while not training.finished:
            reports.append(training.train_epoch())
    except DivergedError as error:
        row["diverged"] = str(error)
    row["accuracies"] = [round(report.accuracy, 6) for report in reports if not math.isnan(report.accuracy)]
    if "diverged" in row:
        return row
    cost = reports[-1].cost
    return row | {
        "test_accuracy": round(training.evaluate("test").accuracy, 6) if training.has_test else None,
        "train_flops": cost.train_flops,
        "peak_bytes": cost.peak_bytes,
        "steady_peak_bytes": cost.steady_peak_bytes,
        "train_seconds": round(cost.train_seconds, 1),
        "tokens": [round(count, 1) for count in reports[-1].tokens],
        "trained": [sum(steps) for steps in zip(*(report.trained for report in reports), strict=True)],
        "seconds": round(time.monotonic() - started, 1),
        "device": torch.cuda.get_device_name() if training.device.type == "cuda" else "cpu",
    }


def measure(spec: dict[str, Any], options: argparse.Namespace, results: Path) -> None:
    """Run what the results file lacks: the first seed with every learning rate, then the others with the best."""
    found = list(trials(spec, options.set, options.only))
    rows = read(results)
    for name, base, _ in found:
        refuse_others([row for row in rows if row["name"] == name], settings_of(base, *KEY), results)
    first = [(name, base, rate, 0) for name, base, rates in found for rate in rates]
    run_missing(first, options, results)
    rows = read(results)
    best = {name: best_rate([row for row in rows if row["name"] == name]) for name, _, _ in found}
    chosen = [(name, base, rate) for name, base, _ in found if (rate := best[name]) is not None]
    seeds = range(1, options.seeds)  # seed by seed: what is there at any time has every method
    run_missing([(*one, seed) for seed in seeds for one in chosen], options, results)


def run_missing(
    wanted: Sequence[tuple[str, TrialConfig, float, int]], options: argparse.Namespace, results: Path
) -> None:
    """Run those of (method, trial, learning rate, seed) that the results file lacks, ``--jobs`` at a time."""
    there = {(row["name"], row["learning_rate"], row["seed"]) for row in read(results)}
    missing = [
        (name, apply_params(base, {"train/learning_rate": rate, "train/seed": seed}))
        for name, base, rate, seed in wanted
        if (name, rate, seed) not in there
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), set_threads, (options.threads,)) as pool:
        for future in as_completed([pool.submit(run, name, config) for name, config in missing]):
            row = future.result()
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rate, seed = row["learning_rate"], row["seed"]
            outcome = row.get("diverged") or f"{row['accuracies'][-1]:.4f}"
            print(f"{row['name']}, learning rate {rate:g}, seed {seed}: {outcome}", flush=True)


def set_threads(count: int | None) -> None:
    """Let torch take so many threads, if it is said how many."""
    if count:
        torch.set_num_threads(count)


def best_rate(rows: list[Row]) -> float | None:
    """Learning rate of the most accurate run of the first seed; None if all of them diverged."""
    first = [row for row in rows if row["seed"] == 0 and "diverged" not in row]
    return max(first, key=lambda row: row["accuracies"][-1])["learning_rate"] if first else None


def read(results: Path) -> list[Row]:
    """Read the finished runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def difference(
    runs: Sequence[Row], others: Sequence[Row], score: Callable[[Row], float | None]
) -> tuple[float, float] | None:
    """Compare two methods over the seeds that both have, by Student's t for pairs.

    Returns:
        Mean difference, and the half of its 95% interval; None with fewer than two such seeds.
    """
    theirs = {row["seed"]: score(row) for row in others}
    pairs = [(score(row), theirs.get(row["seed"])) for row in runs]
    found = [mine - other for mine, other in pairs if mine is not None and other is not None]
    if len(found) < 2:
        return None
    half = student.ppf(0.975, len(found) - 1) * statistics.stdev(found) / len(found) ** 0.5
    return statistics.mean(found), float(half)


def summarise(rows: list[Row], seeds: int, against: str | None = None) -> list[Row]:
    """Average each method over its seeds, at its best learning rate; costs as ratios to those of `full`.

    With ``against``, the name of a method, costs are ratios to its, and differences in accuracy to it are added.
    Runs that diverged are counted, if there are any: those at a method's rate, or all where none is left.
    """

    def mean(runs: list[Row], key: str) -> float | None:
        values = [row[key] for row in runs if row[key] is not None]
        return float(statistics.mean(values)) if values else None

    rates, chosen, diverged = {}, {}, {}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name and row["seed"] < seeds]
        rates[name] = rate = best_rate(mine)
        chosen[name] = [row for row in mine if row["learning_rate"] == rate and "diverged" not in row]
        diverged[name] = sum("diverged" in row for row in mine if rate in (None, row["learning_rate"]))
    if against is not None and not chosen.get(against):
        others = ", ".join(name for name, runs in chosen.items() if runs)
        raise ConfigError("--against", against, f"has no finished run; give one of {others}")
    full = chosen.get(against or "full", [])
    table = []
    for name, runs in chosen.items():
        accuracies = [row["accuracies"][-1] for row in runs]
        entry = {
            "method": name,
            "learning_rate": rates[name],
            "seeds": len(runs),
            "accuracy": statistics.mean(accuracies) if runs else None,
            "spread": (statistics.stdev(accuracies) if len(runs) > 1 else 0.0) if runs else None,
            "test_accuracy": mean(runs, "test_accuracy"),
        }
        if any("diverged" in row for row in rows):
            entry["diverged"] = diverged[name]
        for key, label in (
            ("train_flops", "flops_ratio"), ("peak_bytes", "peak_ratio"),
            ("steady_peak_bytes", "steady_ratio"), ("train_seconds", "time_ratio"),
        ):  # fmt: skip
            own, theirs = mean(runs, key), mean(full, key)
            entry[label] = own / theirs if own is not None and theirs else None
        if against is not None:
            for label, score in SCORES.items():
                found = difference(runs, chosen[against], score) if name != against else None
                entry[f"{label}_difference"] = None if found is None else f"{found[0]:+.4f} \u00b1 {found[1]:.4f}"
        table.append(entry)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="YAML: a trial, learning rates, and methods by name, each with its own")
    parser.add_argument("--results", type=Path, help="JSON lines; default: benchmarks/results/<spec>.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="names of methods")
    parser.add_argument("--set", nargs="+", default=[], help="settings of the trial, as data/root=/images")
    parser.add_argument("--against", metavar="NAME", help="compare with this method: mean difference, 95%% interval")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--threads", type=int, help="for torch, in each of them")
    parser.add_argument("--print", action="store_true", help="only the table of what is finished")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    results = options.results or RESULTS / f"{options.spec.stem}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    if not options.print:
        measure(read_mapping(options.spec), options, results)
    table = summarise(read(results), options.seeds, options.against)
    if options.json:
        print(json.dumps(table, indent=2))
        return
    printed = Table(title=options.spec.stem, title_justify="left")
    for column in table[0] if table else []:
        printed.add_column(column.replace("_", " "), justify="left" if column == "method" else "right")
    for row in table:
        printed.add_row(*("-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=150).print(printed)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
