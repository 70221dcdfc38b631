"""A check of the replays on real runs: the same budget of FLOPs for a sweep of ours and for Ray Tune's OptunaSearch.

    python benchmarks/live.py benchmarks/specs/all-digits.yaml

Every trial is trained on as many workers as there are cores, by both in the same Ray: full fine-tuning first, by
OptunaSearch only where it is a point of the space. No trial
starts once the budget is spent; those that run are finished. What a search has found is judged as in a replay, each
configuration at its mean over the table's seeds, so that luck does not count. FLOPs are those of all epochs that had
been trained when a trial ended, stopped trials included. Searches take turns, seed by seed; a finished one is a line in
the results file and is never run again with the same budget and number of workers.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.search import Searcher

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig, TrialConfig, apply_params, parse, read_mapping
from alast_tune.results import OBJECTIVES, TrialResult
from alast_tune.run import Run
from alast_tune.tune.space import trial_config
from alast_tune.tune.study import run_sweep
from benchmarks.measures import WITHIN, Judge, floor_of
from benchmarks.replay import Found, Table
from benchmarks.search import show, summarise
from benchmarks.searchers import RayOptuna
from benchmarks.tabular import read

RESULTS = Path(__file__).parent / "results"


class Account:
    """What a search has spent and found.

    Args:
        table: of the same space, whose full fine-tuning is the unit.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._flops: dict[object, float] = {}
        self.found: list[Found] = []

    @property
    def spent(self) -> float:
        """FLOPs of all epochs so far, in full fine-tuning runs."""
        return sum(self._flops.values()) / float(self._table.full[1])

    def train(self, trial: object, record: Mapping[str, float]) -> None:
        """Hear of an epoch."""
        self._flops[trial] = record["train_flops"]

    def complete(self, config: int, values: tuple[float, ...]) -> None:
        """Hear of a trial that has ended with all its epochs."""
        self.found.append(Found(self.spent, config, values))


class Listener:
    """Keeps a sweep's account, as its callback."""

    def __init__(self, table: Table, account: Account) -> None:
        self._table, self._account = table, account

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        """Count its FLOPs."""
        self._account.train(number, record)

    def on_trial_end(self, result: TrialResult) -> None:
        """Look its configuration up."""
        if result.values is not None:
            table, baseline = self._table, result.baseline
            self._account.complete(table.baseline(baseline) if baseline else table.index(result.params), result.values)


class Budgeted(Searcher):
    """Ray Tune's OptunaSearch, as long as there are FLOPs left.

    Args:
        search: proposes.
        account: of what it proposes.
        budget: in full fine-tuning runs.
        seed: that all trials train with.
    """

    def __init__(self, search: RayOptuna, account: Account, budget: float, seed: int) -> None:
        super().__init__()
        self._search, self._account, self._budget, self._seed = search, account, budget, seed
        self._params: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Any:
        """Write its proposal down as a whole configuration, for a worker that knows no table."""
        if self._account.spent >= self._budget:
            return Searcher.FINISHED
        self._params[trial_id] = params = self._search.propose(trial_id)
        trial = apply_params(trial_config(self._search.table.sweep, params), {"train/seed": self._seed})
        return {"trial": trial.model_dump(mode="json")}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Count an epoch's FLOPs."""
        self._account.train(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell it."""
        assert result is not None and not error, f"trial {trial_id} has failed"
        self._account.train(trial_id, result)
        self._search.search.on_trial_complete(trial_id, result)
        values = tuple(float(result[objective.name]) for objective in OBJECTIVES)
        self._account.complete(self._search.table.index(self._params[trial_id]), values)


def ours(table: Table, seed: int, budget: float, workers: int) -> Account:
    """Run a sweep, as ``alast-tune sweep`` does."""
    account = Account(table)
    with tempfile.TemporaryDirectory() as storage:
        given = {"name": "live", "storage": storage, "sampler": "ehvi", "seed": seed, "trials": len(table.points)}
        given |= {"flops_budget": f"{budget:g}x", "concurrent": workers}
        sweep = parse(SweepConfig, table.sweep.given_values() | given)
        sweep = sweep.model_copy(update={"trial": apply_params(sweep.trial, {"train/seed": seed})})
        run_sweep(sweep, callbacks=[Listener(table, account)])
    return account


def theirs(table: Table, seed: int, budget: float, workers: int) -> Account:
    """Run OptunaSearch in Ray Tune, with a function that trains."""
    account = Account(table)

    def train(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        run = Run(TrialConfig.model_validate(config["trial"]))
        while not run.finished:
            tune.report(dict(run.train_epoch().metrics()))

    with tempfile.TemporaryDirectory() as storage:
        tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=Budgeted(RayOptuna(table, seed, ["full"]), account, budget, seed),
                num_samples=len(table.points),
                max_concurrent_trials=workers,
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
    return account


SEARCHES = {"ours": ours, "OptunaSearch": theirs}


@guarded
def main() -> None:
    """Run what the results file lacks; print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, help="of benchmarks/tabular.py, whose table is complete")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/live-<spec>.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=12, help="full fine-tuning runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    results = options.results or RESULTS / f"live-{options.spec.stem}.jsonl"
    spec = read_mapping(options.spec)
    table = Table.read(spec, RESULTS / f"{options.spec.stem}.jsonl")
    how = {"budget": options.budget, "workers": options.workers}
    there = [(row["search"], row["seed"]) for row in read(results) if row.items() >= how.items()]
    wanted = [(name, seed) for seed in range(options.seeds) for name in SEARCHES if (name, seed) not in there]
    if wanted:
        ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False)
    for name, seed in wanted:
        account = SEARCHES[name](table, seed, options.budget, options.workers)
        found = [[one.spent, one.config, *one.values] for one in account.found]
        row = {"search": name, "seed": seed, **how, "spent": account.spent, "found": found}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    judge = Judge(table, floor_of(table, WITHIN))
    runs = {
        (name, options.workers): [
            [Found(spent, config, tuple(values)) for spent, config, *values in row["found"]]
            for row in read(results)
            if row["search"] == name and row.items() >= how.items()
        ]
        for name in SEARCHES
    }
    show(summarise(judge, runs), f"live, {options.spec.stem}, accuracy above {judge.floor:.3f}", options.budget)


if __name__ == "__main__":
    main()
