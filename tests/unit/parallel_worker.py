"""Two ranks of data-parallel runs in turn: ``python -m tests.unit.parallel_worker folder config.json ...``.

What is imported takes longer than the runs: one process imports it, and then becomes two.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from alast_tune import parallel
from alast_tune.config import TrialConfig
from alast_tune.run import Run

RANKS = 2


def outcome(config: TrialConfig) -> dict[str, Any]:
    """Train an epoch; returns the weights, the numbers and the plans that this process has come to."""
    run = Run(config)
    report = run.train_epoch()
    records = list(run.meter.ledger.read())
    return {
        "model": run.model.state_dict(),
        "report": report.metrics() | {"own_peak_bytes": records[0].measured_peak_bytes},
        "plans": [(r.tokens_L, r.trainable_L, r.budgets_L) for r in records],
    }


def main() -> None:
    folder, *files = sys.argv[1:]
    torch.set_num_threads(1)
    parallel.BUCKET_BYTES = 1 << 16  # gradients of so small a model fill more than one
    child = os.fork()
    rank = 0 if child else 1
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    for file in map(Path, files):
        config = TrialConfig.model_validate_json(file.read_text())
        torch.save(outcome(config), Path(folder) / f"{file.stem}-{rank}.pt")
    distributed.destroy_process_group()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
