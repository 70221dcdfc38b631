"""How much several sweeps at a time get done on one MLflow server and, if so wished, on studies in one PostgreSQL.

    mlflow server --backend-store-uri postgresql+psycopg://mlflow@127.0.0.1/mlflow ...
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python benchmarks/sweeps.py --study postgresql://...

Each sweep is a process with a driver as in made_up.py, which hands out made-up trials without a pause, and then waits
until MLflow has all that it wrote of them. Hence two rates: trials that the drivers carry, and writes that the server
takes; a sweep of real trials is slower than either. Rates depend on whoever else is on the machine, CPU time (of a
driver a trial, of servers a write) much less. Checked at the end: every trial's run is in MLflow, once.
"""

import argparse
import json
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from alast_tune.cli import guarded
from alast_tune.lease import SweepLease
from alast_tune.tracking import pending
from benchmarks.made_up import Driver, studies, sweep_in


def one_sweep(name: str, sampler: str, database: Path, trials: int, url: str | None, gate: Barrier) -> dict[str, float]:
    """Run a sweep's trials one after the other, once all sweeps stand at the gate."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).mkdir()
        sweep = sweep_in(folder, 10**6, name=name, sampler=sampler, study=url or "sqlite")
        driver = Driver(sweep, database, SweepLease(folder / name))
        gate.wait()
        began, busy = time.time(), time.process_time()
        for number in range(trials):
            driver.ask(str(number))
            epoch = 1
            while driver.report(str(number), epoch):
                epoch += 1
        drove, busy = time.time(), time.process_time() - busy
        driver.close()
        written = time.time()
        with closing(sqlite3.connect(folder / name / "mlflow-queue.db")) as queue:
            (asked,) = queue.execute("select seq from sqlite_sequence where name = 'operations'").fetchone()
        left = pending(folder / name)
        return {"began": began, "drove": drove, "written": written, "busy": busy, "writes": asked, "left": left}


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes and all they started have taken so far."""
    roots = [psutil.Process(pid) for pid in pids]
    return sum(sum(process.cpu_times()[:4]) for root in roots for process in (root, *root.children(recursive=True)))


def together(
    count: int, sampler: str, database: Path, trials: int, url: str | None, servers: list[int]
) -> dict[str, Any]:
    """Run so many sweeps at a time.

    Raises:
        SystemExit: MLflow lacks a run, or has one twice.
    """
    names = [f"scale-{uuid4().hex[:12]}" for _ in range(count)]
    context, before = multiprocessing.get_context("spawn"), cpu_seconds(servers)
    with context.Manager() as manager, ProcessPoolExecutor(count, context) as pool:
        gate = manager.Barrier(count)
        futures = [pool.submit(one_sweep, name, sampler, database, trials, url, gate) for name in names]
        ends = [future.result() for future in futures]
    taken, writes = cpu_seconds(servers) - before, sum(end["writes"] for end in ends)
    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    for name in names:
        (parent,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
        query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        children = client.search_runs([experiment.experiment_id], query, max_results=10 * trials)
        numbers = {child.data.tags["alast.trial"] for child in children}
        if not len(numbers) == len(children) == trials:
            sys.exit(f"{name}: {len(children)} runs of {len(numbers)} trials in MLflow, {trials} expected")
    began = min(end["began"] for end in ends)
    drove, written = (max(end[key] for end in ends) - began for key in ("drove", "written"))
    return {
        "sweeps": count,
        "trials": count * trials,
        "drivers, trials/s": count * trials / drove,
        "MLflow, trials/s": count * trials / written,
        "MLflow, writes/s": writes / written,
        "driver's CPU a trial, ms": 1e3 * sum(end["busy"] for end in ends) / (count * trials),
        "servers' CPU a write, ms": 1e3 * taken / writes if servers else None,
        "writes left": int(sum(end["left"] for end in ends)),
    }


@guarded
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, nargs="+", default=[1, 2, 4, 8], help="at a time")
    parser.add_argument("--trials", type=int, default=50, help="a sweep")
    parser.add_argument("--sampler", default="ehvi")
    parser.add_argument("--study", metavar="URL", help="of the database with the studies; unset: SQLite, a file each")
    parser.add_argument("--servers", type=int, nargs="*", default=[], metavar="PID", help="whose CPU time is measured")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    options = parser.parse_args()
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        sys.exit("error: MLFLOW_TRACKING_URI is no server's address; start one, and set it")
    with tempfile.TemporaryDirectory() as folder:
        database = studies(Path(folder), [100])[100]
        rows = [
            together(count, options.sampler, database, options.trials, options.study, options.servers)
            for count in options.sweeps
        ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(title="several sweeps on one MLflow server", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
