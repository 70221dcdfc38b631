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
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from alast_tune.cli import guarded
from alast_tune.config import SweepConfig
from alast_tune.lease import exclusive_driver
from benchmarks.made_up import Driver, studies, sweep_in

RESULTS = Path(__file__).parent / "results" / "scale.json"


def measure(sweep: SweepConfig, database: Path, trials: int, counter: str | None) -> dict[str, float]:
    """Measure one row, in a process of its own."""

    def sent() -> int:
        return int(urllib.request.urlopen(counter).read()) if counter else 0

    with threadpool_limits(limits=1), exclusive_driver(sweep.storage / sweep.name) as lease:
        driver = Driver(sweep, database, lease)
        first, _ = driver.run("first")
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
        "a trial, ms": 1e3 * median(seconds for seconds, _ in took),
        "of it on a processor, ms": 1e3 * median(worked for _, worked in took),
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
