"""What a trial costs the driver when many have ended, and whether it keeps many workers busy.

    python benchmarks/scale.py
    python benchmarks/scale.py --study postgresql://optuna@127.0.0.1/optuna

First: the searcher (its study in SQLite, or where --study says), the scheduler, MLflow and the front as a sweep has
them, on a study that already holds so many finished trials; the time is that which Tune's loop spends in them for one
trial, from asking for it to its end. MLflow's writes go on in a thread of their own; how long they take is a column
too.

Second: simulated workers whose trials only take their time. The driver serves them one after the other, as Tune's
loop does; a worker is idle from the end of a trial until it has the next one.

Trials are made up (a smooth function and noise); Ray has no part in it.
"""

import argparse
import heapq
import json
import math
import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import sqlalchemy
from optuna.trial import TrialState, create_trial
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from rich.table import Table

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig, TrialConfig, flatten, parse
from alast_tune.hold import Hold
from alast_tune.results import OBJECTIVES
from alast_tune.storage import STUDY
from alast_tune.tracking import Tracker, default_uri
from alast_tune.tune.forecast import Costs
from alast_tune.tune.observer import SweepObserver
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.space import to_optuna
from alast_tune.tune.trials import open_study

EPOCHS = 4
SPACE = {
    "method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "method/trainable_blocks": {"type": "int", "low": 2, "high": 12},
    "method/floors/early": {"type": "float", "low": 0.1, "high": 1.0},
    "method/floors/middle": {"type": "float", "low": 0.1, "high": 1.0},
    "method/floors/late": {"type": "float", "low": 0.1, "high": 1.0},
}
REFERENCE = (0.0, 1.1e12, 1.1e9)


def costs(params: dict[str, Any]) -> Costs:
    """Make up what a configuration costs."""
    floors = [params[f"method/floors/{depth}"] for depth in ("early", "middle", "late")]
    blocks = params["method/trainable_blocks"] / 12
    return Costs(1e12 * statistics.mean(floors) * (1 + 2 * blocks) / 3, int(1e9 * floors[0] * (0.5 + blocks / 2)))


def objectives(params: dict[str, Any], epoch: int, draw: np.random.Generator) -> list[float]:
    """Make up what it comes to after some of its epochs."""
    whole = costs(params)
    learnt = 1 - math.exp(-4 * whole.train_flops / 1e12 - 0.5 * epoch)
    accuracy = min(1.0, max(0.0, learnt + 0.01 * draw.standard_normal()))
    return [accuracy, whole.train_flops * epoch / EPOCHS, float(whole.peak_bytes)]


def sweep_in(folder: Path, sampler: str, trials: int, url: str | None = None, name: str = "scale") -> SweepConfig:
    """Make up a sweep."""
    values = {
        "storage": folder,
        "name": name,
        "study": url or "sqlite",
        "trials": trials,
        "sampler": sampler,
        "space": SPACE,
    }
    return parse(SweepConfig, values | {"trial": {"train": {"epochs": EPOCHS}}})


def studies(folder: Path, sizes: list[int]) -> dict[int, Path]:
    """Write a database with so many finished trials, for each size."""
    sweep = sweep_in(folder, "random", 1)
    space, chance = to_optuna(sweep.space), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draw, growing, there, files = np.random.default_rng(0), folder / STUDY, 0, {}
    study = open_study(sweep, folder)
    study.set_user_attr("reference_point", REFERENCE)
    for size in sorted(sizes):
        before = []
        for _ in range(size - there):
            params = chance.ask(space).params
            curve = [objectives(params, epoch, draw) for epoch in range(1, EPOCHS + 1)]
            before.append(
                create_trial(
                    state=TrialState.COMPLETE, params=params, distributions=space, values=curve[-1],
                    user_attrs={"epochs": EPOCHS, "curve": curve},
                )
            )  # fmt: skip
        study.add_trials(before)
        there, files[size] = size, folder / f"{size}.db"
        with closing(sqlite3.connect(growing)) as source, closing(sqlite3.connect(files[size])) as target:
            source.backup(target)
    return files


def study_after(sweep: SweepConfig, database: Path) -> optuna.Study:
    """Open a new study that begins with what is in a database: a copy of the file, or all of it again at a URL."""
    own = sweep.storage / sweep.name
    if sweep.study == "sqlite":
        shutil.copy(database, own / STUDY)
        with closing(sqlite3.connect(own / STUDY)) as connection:
            connection.execute("update studies set study_name = ?", (sweep.name,))
            connection.commit()
        return open_study(sweep, own)
    study = open_study(sweep, own, new=True)
    study.set_user_attr("reference_point", REFERENCE)
    study.add_trials(optuna.load_study(study_name="scale", storage=f"sqlite:///{database}").get_trials(deepcopy=False))
    return study


class Driver:
    """What Tune's loop calls for each trial, on a study with so many finished ones.

    Args:
        folder: for the study and the MLflow store.
        sampler: of the sweep.
        database: the study before.
        trials: in all.
        url: of the study; unset: in SQLite.
        name: of the sweep.
    """

    def __init__(
        self, folder: Path, sampler: str, database: Path, trials: int, url: str | None = None, name: str = "scale"
    ) -> None:
        self.draw = np.random.default_rng(0)
        sweep = sweep_in(folder, sampler, trials, url, name)
        own = folder / name
        own.mkdir(parents=True)
        self.study = study = study_after(sweep, database)
        self.tracker = Tracker(default_uri(folder), folder)
        self.tracker.start_sweep(sweep)
        observer = SweepObserver(sweep, study, self.tracker, Hold(own), Console(quiet=True))
        somewhere = Packing(sweep, [Node("", cpu=1e6, memory=1e18)])
        self._searcher = StudySearcher(study, sweep, observer, somewhere, lambda config, growth: costs(flatten(config)))
        self._scheduler = MoAsha(sweep, study)
        self._progress = observer.progress
        self._out: dict[str, dict[str, Any]] = {}

    def ask(self, key: str) -> bool:
        """Hand out a trial; returns whether there was one."""
        suggestion = self._searcher.suggest(key)
        if isinstance(suggestion, dict):
            self._out[key] = suggestion
        return isinstance(suggestion, dict)

    def report(self, key: str, epoch: int) -> bool:
        """Take in an epoch; returns whether the trial goes on."""
        suggestion = self._out[key]
        params = flatten(parse(TrialConfig, suggestion["trial"]))
        values = objectives(params, epoch, self.draw)
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

    def close(self) -> None:
        """Leave the terminal, and MLflow, as a sweep would."""
        self._progress.close()
        self.tracker.end_sweep("FINISHED")


def statements(study: optuna.Study) -> list[str]:
    """Collect from now on what a study sends to its database; over a network each is a round trip."""
    sent: list[str] = []

    @sqlalchemy.event.listens_for(study._storage._backend.engine, "before_cursor_execute")  # type: ignore[attr-defined]
    def _sent(_: object, __: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    return sent


def per_trial(sampler: str, finished: int, database: Path, trials: int, url: str | None) -> dict[str, Any]:
    """Time the driver's part in one trial, with so many finished ones."""
    with tempfile.TemporaryDirectory() as folder:
        driver, asking, telling = Driver(Path(folder), sampler, database, finished + trials, url), [], []
        sent = statements(driver.study)
        for number in range(trials):
            started = time.perf_counter()
            driver.ask(str(number))
            asked = time.perf_counter()
            epoch = 1
            while driver.report(str(number), epoch):
                epoch += 1
            asking.append(asked - started)
            telling.append(time.perf_counter() - asked)
            time.sleep(0.2)  # a sweep has pauses, in which MLflow is written to
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        driver.close()
        waited = time.perf_counter() - started
    return {
        "sampler": sampler,
        "finished": finished,
        "ask, ms": 1e3 * statistics.median(asking),
        "tell, ms": 1e3 * statistics.median(telling),
        "both, mean, ms": 1e3 * statistics.mean([a + t for a, t in zip(asking, telling, strict=True)]),
        "statements": len(sent) / trials,
        "MLflow behind at the end, s": waited,
        "driver's peak memory, MiB": memory / 2**20,
    }


def idle_share(sampler: str, database: Path, workers: int, seconds: float, rounds: int) -> float:
    """Serve simulated workers in real time; returns the share of their time in which they had no trial.

    Args:
        sampler: of the sweep.
        database: the study before.
        workers: simulated.
        seconds: a trial's length, epochs together.
        rounds: trials a worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(Path(folder), sampler, database, 10**6)
        events: list[tuple[float, int, int, int]] = []  # when, worker, its trial, epoch that ends
        free_since = dict.fromkeys(range(workers), time.monotonic())
        began, idle, handed = time.monotonic(), 0.0, 0
        while time.monotonic() - began < seconds * rounds:
            for worker in list(free_since):
                driver.ask(str(handed))
                idle += time.monotonic() - free_since.pop(worker)
                length = seconds * driver.draw.uniform(0.5, 1.5) / EPOCHS
                heapq.heappush(events, (time.monotonic() + length, worker, handed, 1))
                handed += 1
                if events[0][0] <= time.monotonic():
                    break
            when, worker, trial, epoch = events[0]
            if when > time.monotonic():
                if not free_since:
                    time.sleep(min(0.05, when - time.monotonic()))
                continue
            heapq.heappop(events)
            late = time.monotonic() - when  # the worker waited for the driver to hear it
            if driver.report(str(trial), epoch):
                idle += late
                length = seconds * driver.draw.uniform(0.5, 1.5) / EPOCHS
                heapq.heappush(events, (time.monotonic() + length, worker, trial, epoch + 1))
            else:
                free_since[worker] = when
        took = time.monotonic() - began
        driver.close()
    return idle / (workers * took)


@guarded
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--samplers", nargs="+", default=["ehvi", "tpe", "nsga2", "random"])
    parser.add_argument("--trials", type=int, default=40, help="timed, a size")
    parser.add_argument("--study", metavar="URL", help="of the database with the studies, of the table; unset: SQLite")
    parser.add_argument("--workers", type=int, default=64, help="simulated ones; 0 leaves them out")
    parser.add_argument("--seconds", type=float, default=60, help="that a simulated trial takes")
    parser.add_argument("--rounds", type=int, default=3, help="trials a simulated worker")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = studies(Path(folder), options.finished)
        rows = [
            per_trial(sampler, size, file, options.trials, options.study)
            for sampler in options.samplers
            for size, file in files.items()
        ]
        sampler, idle = options.samplers[0], None
        if options.workers:
            idle = idle_share(sampler, files[min(files)], options.workers, options.seconds, options.rounds)
    if options.json:
        print(json.dumps({"per trial": rows, "idle share": idle}, indent=2))
        return
    table = Table(title="the driver's time a trial", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=130).print(table)
    if idle is not None:
        print(f"{options.workers} workers, trials of {options.seconds:g} s, {sampler}: idle {idle:.1%}")


if __name__ == "__main__":
    main()
