"""Two ranks of data-parallel runs in turn: ``python -m tests.unit.parallel_worker folder config.json ...``.

What is imported takes longer than the runs: one process imports it, and then becomes two.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from alast_tune import parallel
from alast_tune.config import TrialConfig
from alast_tune.parallel import world
from alast_tune.run import Run

RANKS = 2


def outcome(config: TrialConfig, folder: Path | None = None) -> dict[str, Any]:
    """Train an epoch; returns the weights, the numbers and the plans that this process has come to.

    Of a process group with a folder, the run ends after its first step, and another one goes on from there.
    """
    run = Run(config)

    def cut(step: int) -> None:
        run.save(folder if world()[0] == 0 else None)
        raise KeyboardInterrupt

    if folder is not None:
        with suppress(KeyboardInterrupt):
            run.train_epoch(cut)
        distributed.barrier()
        run = Run(config)
        run.load(folder)
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
        resumed = Path(folder) / file.stem if file.stem.endswith("resumed") else None
        torch.save(outcome(config, resumed), Path(folder) / f"{file.stem}-{rank}.pt")
    distributed.destroy_process_group()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
