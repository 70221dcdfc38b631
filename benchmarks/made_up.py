"""A sweep whose trials are made up: the driver is a sweep's own, what it hears of the trials a smooth function."""

import json
import math
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import RandomSampler
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig, flatten, parse
from alast_tune.lease import SweepLease
from alast_tune.results import OBJECTIVES
from alast_tune.storage import STUDY, is_copy
from alast_tune.summary import summarise, trial_id
from alast_tune.tracking import Tracker, default_uri
from alast_tune.tracking.kept import ENDED
from alast_tune.tune.cluster import Stop
from alast_tune.tune.conclude import conclude
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.observer import SweepObserver
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.space import to_optuna
from alast_tune.tune.study import MARGIN, reference_point
from alast_tune.tune.trials import epoch_key, open_study, results

EPOCHS = 4
SPACE = {
    "method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "method/trainable_blocks": {"type": "int", "low": 2, "high": 12},
    "method/floors/early": {"type": "float", "low": 0.1, "high": 1.0},
    "method/floors/middle": {"type": "float", "low": 0.1, "high": 1.0},
    "method/floors/late": {"type": "float", "low": 0.1, "high": 1.0},
}


def objectives(params: dict[str, Any], epoch: int, full: tuple[float, float], draw: np.random.Generator) -> list[float]:
    """Make up what a trial comes to after some of its epochs; ``full`` is what full fine-tuning costs."""
    floors = [params[f"method/floors/{depth}"] for depth in ("early", "middle", "late")]
    blocks = params["method/trainable_blocks"] / 12
    flops, peak = mean(floors) * (1 + 2 * blocks) / 3, floors[0] * (0.5 + blocks / 2)
    learnt = 1 - math.exp(-4 * flops - 0.5 * epoch)
    accuracy = min(1.0, max(0.0, learnt + 0.01 * draw.standard_normal()))
    return [accuracy, flops * full[0] * epoch / EPOCHS, peak * full[1]]


def sweep_in(storage: str | Path, trials: int, model: str = "embedded", **options: Any) -> SweepConfig:
    """Make up a sweep of a model with random weights; the embedded one has its own."""
    trial = {
        "train": {"epochs": EPOCHS, "device": "cpu"},
        "model": {"name": model, "pretrained": model == "embedded"},
    }
    values = {"storage": str(storage), "name": "scale", "trials": trials, "space": SPACE, "trial": trial}
    return parse(SweepConfig, values | options)


def studies(folder: Path, sizes: list[int], model: str = "embedded") -> dict[int, Path]:
    """Write a database with so many finished trials, for each size; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {size: folder / f"{size}.db" for size in sorted(sizes)}
    sweep = sweep_in(folder, 1, model)
    reference = reference_point(sweep, Forecast())
    full = reference[1] / MARGIN, reference[2] / MARGIN
    study = open_study(sweep, folder, new=True)
    study.set_user_attr("reference_point", reference)
    with closing(sqlite3.connect(folder / STUDY)) as database:
        (there,) = database.execute("select count(*) from trials").fetchone()
        draw = np.random.default_rng(there)
        for size, file in files.items():
            for start in range(there, size, 1000):
                _insert(database, range(start, min(start + 1000, size)), to_optuna(sweep.space), full, draw)
            there = max(there, size)
            if not file.exists():
                with closing(sqlite3.connect(file)) as target:
                    database.backup(target)
    return files


def _insert(
    database: sqlite3.Connection,
    numbers: range,
    space: dict[str, BaseDistribution],
    full: tuple[float, float],
    draw: np.random.Generator,
) -> None:
    """Add finished trials to Optuna's tables, a hundred times as fast as Optuna does."""
    trials, parameters, values, attributes = [], [], [], []
    chance = RandomSampler(seed=numbers.start)
    when = "2026-01-01 00:00:00.000000"
    for number in numbers:
        key = number + 1
        params = {path: chance.sample_independent(None, None, path, item) for path, item in space.items()}  # type: ignore[arg-type]
        curve = [objectives(params, epoch, full, draw) for epoch in range(1, EPOCHS + 1)]
        own: dict[str, Any] = {"epochs": EPOCHS} | {
            epoch_key(epoch): [*row, 30.0 * epoch] for epoch, row in enumerate(curve, start=1)
        }
        trials.append((key, number, when, when))
        parameters += [
            (key, path, item.to_internal_repr(params[path]), distribution_to_json(item)) for path, item in space.items()
        ]
        values += [(key, objective, value) for objective, value in enumerate(curve[-1])]
        attributes += [(key, name, json.dumps(value)) for name, value in own.items()]
    with database:
        database.executemany("insert into trials values (?, ?, 1, 'COMPLETE', ?, ?)", trials)
        columns = "trial_id, param_name, param_value, distribution_json"
        database.executemany(f"insert into trial_params ({columns}) values (?, ?, ?, ?)", parameters)
        columns = "trial_id, objective, value, value_type"
        database.executemany(f"insert into trial_values ({columns}) values (?, ?, ?, 'FINITE')", values)
        columns = "trial_id, key, value_json"
        database.executemany(f"insert into trial_user_attributes ({columns}) values (?, ?, ?)", attributes)


class Timed:
    """Adds up the seconds that an observer takes."""

    def __init__(self, observer: SweepObserver) -> None:
        self._observer = observer
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        """Call the observer."""

        def call(*arguments: Any) -> None:
            started = time.perf_counter()
            getattr(self._observer, name)(*arguments)
            self.seconds += time.perf_counter() - started

        return call


class Driver:
    """What Tune's loop calls for each trial, on a study with so many finished ones.

    Args:
        sweep: whose folder is empty.
        database: the study before.
        lease: on the sweep's folder.
    """

    def __init__(self, sweep: SweepConfig, database: Path, lease: SweepLease) -> None:
        self.draw = np.random.default_rng(0)
        forecast = Forecast()
        reference = reference_point(sweep, forecast)
        self._full = reference[1] / MARGIN, reference[2] / MARGIN
        self.sweep, own = sweep, sweep.storage / sweep.name
        shared = "://" in (sweep.study or "")
        grows = is_copy(own) or sweep.study == "journal"  # a file that only grows
        if not shared and not grows:
            shutil.copy(database, own / STUDY)
            with closing(sqlite3.connect(own / STUDY)) as connection:
                connection.execute("update studies set study_name = ?", (sweep.name,))
                connection.commit()
        self.study = open_study(sweep, own, new=shared or grows, alone=True)
        self.study.set_user_attr("reference_point", reference)
        if shared or grows:
            there = optuna.load_study(study_name="scale", storage=f"sqlite:///{database}")
            self.study.add_trials(there.get_trials(deepcopy=False))
        before = results(self.study, sweep)
        on_front = {int(m.trial_id) for m in summarise(sweep.name, before, reference).front}
        ended = [trial_id(number) for number in range(len(before)) if number not in on_front]
        (own / ENDED).mkdir()
        for place, start in enumerate(range(0, len(ended), 200)):  # their runs are known, as a queue puts them away
            runs = [[run, f"{int(run):032x}", "FINISHED", EPOCHS] for run in ended[start : start + 200]]
            (own / ENDED / f"{place:05d}.json").write_text(json.dumps(runs))
        self.tracker = Tracker(default_uri(sweep.storage), sweep.storage)
        self.tracker.start_sweep(sweep)
        self.observer = SweepObserver(sweep, reference, before, self.tracker, lease, Console(quiet=True), sweep.trials)
        for number in on_front:  # these have real runs, to be tagged once they leave the front
            self.tracker.start_trial(number, before[number].config, before[number].params)
            self.tracker.end_trial(number, "FINISHED")
        self.tracker.tag_front([member.trial_id for member in self.observer.front.front])
        self.tracker._writer.flush(600)
        somewhere = Packing(sweep, [Node("", cpu=1e6, memory=1e18)])
        self.timed = Timed(self.observer)
        self._searcher = StudySearcher(self.study, sweep, self.timed, somewhere, forecast.costs)
        self._scheduler = MoAsha(sweep, self.study)
        self._out: dict[str, dict[str, Any]] = {}
        self._params: dict[str, dict[str, Any]] = {}

    def ask(self, key: str) -> bool:
        """Hand out a trial; returns whether there was one."""
        suggestion = self._searcher.suggest(key)
        if isinstance(suggestion, dict):
            self._out[key] = suggestion
            self._params[key] = flatten(parse(TrialConfig, suggestion["trial"]))
        return isinstance(suggestion, dict)

    def report(self, key: str, epoch: int) -> bool:
        """Take in an epoch; returns whether the trial goes on."""
        suggestion = self._out[key]
        values = objectives(self._params[key], epoch, self._full, self.draw)
        result: dict[str, Any] = {f"report/{o.name}": v for o, v in zip(OBJECTIVES, values, strict=True)}
        result["report/epoch"] = epoch
        stand_in = cast("TuneTrial", SimpleNamespace(config=suggestion))
        goes_on = epoch < EPOCHS and self._scheduler.on_trial_result(None, stand_in, result) == TrialScheduler.CONTINUE
        if goes_on:
            self._searcher.on_trial_result(key, result)
        else:
            self._searcher.on_trial_complete(key, result)
            del self._out[key]
        return goes_on

    def run(self, key: str) -> tuple[float, float]:
        """Run a trial from asking to its end; returns the driver's seconds, and how long its thread had a processor."""
        started, worked, epoch = time.perf_counter(), time.thread_time(), 1
        self.ask(key)
        while self.report(key, epoch):
            epoch += 1
        return time.perf_counter() - started, time.thread_time() - worked

    def close(self) -> None:
        """Leave the terminal, and MLflow, as a sweep would."""
        self.observer.close()
        self.tracker.end_sweep("FINISHED")

    def conclude(self) -> float:
        """End the sweep as one does; returns the seconds that takes."""
        started = time.perf_counter()
        self.observer.close()
        conclude(self.sweep, self.study, self.tracker, Stop(), lambda line: print(line, file=sys.stderr))
        return time.perf_counter() - started
