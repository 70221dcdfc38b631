"""One rank of a data-parallel run: ``python parallel_worker.py config.json rank ranks rendezvous folder``."""

import sys
from pathlib import Path

import torch
from torch import distributed

from alast_tune.config import TrialConfig
from alast_tune.train import Run


def main() -> None:
    config, rank, ranks, rendezvous, folder = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=int(rank), world_size=int(ranks))
    run = Run(TrialConfig.model_validate_json(Path(config).read_text()))
    report = run.train_epoch()
    outcome = {
        "model": run.model.state_dict(),
        "report": report.metrics() | {"own_peak_bytes": run.meter.ledger.records[0].measured_peak_bytes},
        "plans": [(r.plan.tokens_L, r.plan.trainable_L, r.budgets) for r in run.meter.ledger.records],
    }
    torch.save(outcome, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
