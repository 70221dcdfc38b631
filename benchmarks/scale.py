r"""What a trial costs the driver when many have ended, and how long the end of such a sweep takes.

    python benchmarks/scale.py
    python benchmarks/scale.py --models deit_small_patch16_224 vit_base_patch16_224 --storages local s3 \
        --finished 100 1000 10000 100000
    python benchmarks/scale.py --at-once 64 1000 --models deit_small_patch16_224

Searcher, forecast, scheduler, MLflow, front and the saving of the folder are a sweep's own; so is its end. Trials are
made up (a smooth function and noise), and Ray has no part in it. Models have random weights, their images are the
embedded digits; s3 is a server (moto) on this machine, and bytes are counted on the way to it. Each row is a process of
its own, whose peak memory is the row's. Rows that --results has already are not measured again. With --at-once so many
slots are free when a new sweep starts: how long until each has its trial.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig, TrialConfig, flatten, parse
from alast_tune.lease import SweepLease, exclusive_driver
from alast_tune.results import OBJECTIVES
from alast_tune.storage import STUDY, is_copy
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker, default_uri
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.queue import Queue
from alast_tune.train import load_trial
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
RESULTS = Path(__file__).parent / "results" / "scale.json"


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
    reference, full = _reference(sweep)
    space, chance = to_optuna(sweep.space), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draw = np.random.default_rng(0)
    study = open_study(sweep, folder, new=True)
    study.set_user_attr("reference_point", reference)
    there = len(study.trials)
    for size, file in files.items():
        while there < size:
            before = []
            for _ in range(min(1000, size - there)):
                params = chance.ask(space).params
                curve = [objectives(params, epoch, full, draw) for epoch in range(1, EPOCHS + 1)]
                attributes: dict[str, Any] = {"epochs": EPOCHS} | {
                    epoch_key(epoch): [*values, 30.0 * epoch] for epoch, values in enumerate(curve, start=1)
                }
                before.append(
                    create_trial(
                        state=TrialState.COMPLETE, params=params, distributions=space, values=curve[-1],
                        user_attrs=attributes,
                    )
                )  # fmt: skip
            study.add_trials(before)
            there += len(before)
        if not file.exists():
            with closing(sqlite3.connect(folder / STUDY)) as source, closing(sqlite3.connect(file)) as target:
                source.backup(target)
    return files


def _reference(sweep: SweepConfig) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """The sweep's reference point, and what full fine-tuning costs."""
    found = reference_point(sweep.trial, *load_trial(sweep.trial))
    return found, (found[1] / MARGIN, found[2] / MARGIN)


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
        self.sweep, own = sweep, sweep.storage / sweep.name
        shared = "://" in (sweep.study or "")
        grows = is_copy(own)  # a file that only grows, of which object storage gets the difference
        if not shared and not grows:
            shutil.copy(database, own / STUDY)
            with closing(sqlite3.connect(own / STUDY)) as connection:
                connection.execute("update studies set study_name = ?", (sweep.name,))
                connection.commit()
        self.study = open_study(sweep, own, new=shared or grows, alone=True)
        reference, self._full = _reference(sweep)
        self.study.set_user_attr("reference_point", reference)
        if shared or grows:
            there = optuna.load_study(study_name="scale", storage=f"sqlite:///{database}")
            self.study.add_trials(there.get_trials(deepcopy=False))
        before = results(self.study, sweep)
        on_front = {int(m.trial_id) for m in summarise(sweep.name, before, reference).front}
        with closing(Queue(own)) as queue:  # their runs are known
            for number in range(len(self.study.get_trials(deepcopy=False))):
                if number not in on_front:
                    queue.ask(Operation(f"{number:04d}", "end", 1, status="FINISHED"))
                    queue.opened(f"{number:04d}", f"{number:032x}")
                    queue.done(queue.batch())
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
        self._searcher = StudySearcher(self.study, sweep, self.timed, somewhere, Forecast().costs)
        self._scheduler = MoAsha(sweep, self.study)
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
        values = objectives(params, epoch, self._full, self.draw)
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

    def run(self, key: str) -> float:
        """Run a trial from asking to its end; returns the driver's seconds."""
        started, epoch = time.perf_counter(), 1
        self.ask(key)
        while self.report(key, epoch):
            epoch += 1
        return time.perf_counter() - started

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


def measure(sweep: SweepConfig, database: Path, trials: int, counter: str | None) -> dict[str, float]:
    """Measure one row, in a process of its own."""

    def sent() -> int:
        return int(urllib.request.urlopen(counter).read()) if counter else 0

    with threadpool_limits(limits=1), exclusive_driver(sweep.storage / sweep.name) as lease:
        driver = Driver(sweep, database, lease)
        first = driver.run("first")
        lease.save()  # of what was there before
        driver.tracker._writer.flush(60)
        before, tracking, took = sent(), driver.timed.seconds, []
        for number in range(trials):
            took.append(driver.run(str(number)))
            driver.tracker._writer.flush(60)  # a sweep has pauses, in which MLflow is written to
        after, tracked = sent(), 1e3 * (driver.timed.seconds - tracking)
        searched = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        end = driver.conclude()
    return {
        "first proposal, s": first,
        "a trial, ms": 1e3 * median(took),
        "of it tracking, front and saving, ms": tracked / trials,
        "sent a trial, KB": (after - before) / 1e3 / trials,
        "end, s": end,
        "peak while searching, MiB": searched / 1024,
        "peak, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_at_once(sweep: SweepConfig, database: Path, slots: int) -> dict[str, Any]:
    """Hand out so many trials one after another, none of which has ended; in a process of its own."""
    with threadpool_limits(limits=1), exclusive_driver(sweep.storage / sweep.name) as lease:
        driver = Driver(sweep, database, lease)
        started, seconds = time.perf_counter(), list[float]()
        while len(seconds) < slots:
            if driver.ask(str(len(seconds))):
                seconds.append(time.perf_counter() - started)
    return {"first, s": seconds[0], "half of them, s": seconds[slots // 2 - 1], "all, s": seconds[-1]}


@contextmanager
def object_storage() -> Iterator[tuple[dict[str, str], str]]:
    """Run an S3 server behind a counter; the environment that leads to it, and the address that tells the count."""
    ports = [_free_port() for _ in range(3)]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    count = [0]

    def copy(source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                count[0] += len(data) * counted
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def admit(listener: socket.socket) -> None:
        while True:
            visitor = listener.accept()[0]
            inside = socket.create_connection(("127.0.0.1", ports[0]))
            for one in ((visitor, inside, True), (inside, visitor, False)):
                threading.Thread(target=copy, args=one, daemon=True).start()

    def tell(listener: socket.socket) -> None:
        while True:
            visitor = listener.accept()[0]
            visitor.recv(1 << 16)
            visitor.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d" % count[0])
            visitor.close()

    for port, serve in ((ports[1], admit), (ports[2], tell)):
        threading.Thread(target=serve, args=(socket.create_server(("127.0.0.1", port)),), daemon=True).start()
    try:
        end = time.monotonic() + 60
        while True:
            with suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{ports[0]}/scale", method="PUT"))
                break
            if time.monotonic() > end:
                raise TimeoutError("no S3 server")
            time.sleep(0.2)
        address = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[1]}", "AWS_DEFAULT_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        yield address | keys, f"http://127.0.0.1:{ports[2]}"
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Measure what --results does not have yet."""
    spawn = multiprocessing.get_context("spawn")
    with object_storage() as (environment, counter):
        os.environ |= environment | {"XDG_CACHE_HOME": str(scratch / "cache")}
        for model in options.models:
            files = studies(scratch / model, options.finished, model)
            for storage in options.storages:
                for finished, file in files.items():
                    key = {"model": model, "storage": storage, "finished": finished, "sampler": options.sampler}
                    if any(key.items() <= row.items() for row in _known(options.results)):
                        continue
                    place = scratch / "rows" / f"{model}-{storage}-{finished}"
                    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}.db"
                    place.parent.mkdir(exist_ok=True)
                    address = f"s3://scale/{place.name}" if storage == "s3" else place
                    sweep = sweep_in(address, finished + options.trials + 1, model, sampler=options.sampler)
                    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                        asked = (sweep, file, options.trials, counter if storage == "s3" else None)
                        yield key | pool.submit(measure, *asked).result()


def rows_at_once(options: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Measure the start of a sweep with many free slots, by each kind of study that a folder may have."""
    spawn = multiprocessing.get_context("spawn")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/mlflow.db"
    for model in options.models:
        empty = studies(scratch / model, [0], model)[0]
        for study in ("journal", "sqlite"):
            for slots in options.at_once:
                place = scratch / f"{model}-{study}-{slots}"
                sweep = sweep_in(place, slots, model, sampler=options.sampler, study=study, concurrent=slots)
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    found = pool.submit(measure_at_once, sweep, empty, slots).result()
                yield {"model": model, "study": study, "slots": slots} | found


def _known(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text()) if file.exists() else []


@guarded
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["embedded"], help="embedded, or timm's")
    parser.add_argument("--storages", nargs="+", default=["local"], choices=["local", "s3"])
    parser.add_argument("--finished", type=int, nargs="+", default=[100, 1_000, 10_000], help="trials before")
    parser.add_argument("--sampler", default="ehvi")
    parser.add_argument("--trials", type=int, default=20, help="timed, a row")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows are kept, as JSON")
    parser.add_argument("--at-once", type=int, nargs="+", help="free slots of a new sweep; times nothing else")
    options = parser.parse_args()
    if options.at_once:
        with tempfile.TemporaryDirectory() as scratch:
            for row in rows_at_once(options, Path(scratch)):
                print(json.dumps(row), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(options, Path(scratch)):
            options.results.parent.mkdir(parents=True, exist_ok=True)
            known = [*_known(options.results), row]
            options.results.write_text("[\n" + ",\n".join(map(json.dumps, known)) + "\n]\n")
    known = _known(options.results)
    table = Table(title="the driver, with so many finished trials", title_justify="left")
    for column in known[0]:
        table.add_column(column, justify="right")
    for row in known:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
