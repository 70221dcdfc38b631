"""Share of the trials' wall time that is training, from what a sweep has logged.

    python sweeps/pareto.py --preset demo --name overhead --trials 6 --trial.train.epochs 10
    python benchmarks/overhead.py runs/overhead

A trial's wall time is that of its MLflow run: from when it was handed to a worker to when the driver was
told its end. The first trial of each worker carries the worker's start and imports.
"""

import argparse
import json
import statistics
from pathlib import Path

import mlflow

from alast_tune.results import FrontFile
from alast_tune.tracking import default_uri


def main() -> None:
    """Read the sweep's runs and print a line a trial, then the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="its folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    front = FrontFile.read(options.sweep / "front.json")
    client = mlflow.MlflowClient(default_uri(options.sweep.parent))
    parent = client.get_run(client.get_run(str(front.front[0].mlflow_run_id)).data.tags["mlflow.parentRunId"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", order_by=["start_time"]
    )
    rows = []
    for run in children:
        wall = (run.info.end_time - run.info.start_time) / 1000
        train, inside = run.data.metrics["train_seconds"], run.data.metrics["wall_seconds"]
        rows.append(
            {
                "trial": run.data.tags["alast.trial"],
                "wall_seconds": wall,
                "training": train / wall,
                "validation": (inside - train) / wall,
                "other": (wall - inside) / wall,
            }
        )
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(*(f"{name} {value if isinstance(value, str) else round(value, 3)}" for name, value in row.items()))
    for part in ("training", "validation", "other"):
        print(f"median {part} {statistics.median(float(row[part]) for row in rows):.3f}")


if __name__ == "__main__":
    main()
