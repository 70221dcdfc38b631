"""One rank of data-parallel runs in turn: ``python parallel_worker.py folder rank ranks config.json ...``."""

import sys
from pathlib import Path

import torch
from torch import distributed

from alast_tune.config import TrialConfig
from alast_tune.train import Run


def main() -> None:
    folder, rank, ranks, *files = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=int(rank), world_size=int(ranks))
    for file in map(Path, files):
        run = Run(TrialConfig.model_validate_json(file.read_text()))
        report = run.train_epoch()
        outcome = {
            "model": run.model.state_dict(),
            "report": report.metrics() | {"own_peak_bytes": run.meter.ledger.records[0].measured_peak_bytes},
            "plans": [(r.plan.tokens_L, r.plan.trainable_L, r.budgets) for r in run.meter.ledger.records],
        }
        torch.save(outcome, Path(folder) / f"{file.stem}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
