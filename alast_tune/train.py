"""``fit``: the only training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from alast_tune import checkpoint
from alast_tune.config import TrialConfig
from alast_tune.cost import STEPS
from alast_tune.errors import WorkersError
from alast_tune.fingerprints import keep_fingerprints
from alast_tune.parallel import largest_over_ranks, world
from alast_tune.results import EpochReport
from alast_tune.run import Run, read_report


def fit(
    config: TrialConfig, folder: Path | None = None, on_step: Callable[[int], None] | None = None
) -> Iterator[EpochReport]:
    """Fine-tune; yield a report an epoch.

    Args:
        config: everything that determines the run.
        folder: keeps a checkpoint an epoch and resumes from one that is there. Its ``model.safetensors``
            is the model of the epoch with the highest validation accuracy so far (of the last one if it trains
            on the validation images), ``adapter`` its adapters alone if it has any, ``last.safetensors`` the model of
            the last epoch, once all are done. In a process group all ranks read it, and the first one writes.
        on_step: called with the steps done in the running epoch.

    Raises:
        ConfigError: whatever cannot work, before any training.
        WorkersError: the ranks do not see the same checkpoint.
    """
    run = Run(config)
    began = folder is not None and (folder / checkpoint.FILE).exists()
    if folder and began:
        run.load(folder)
    if largest_over_ranks(run.epoch, -run.epoch) != (run.epoch, -run.epoch):
        raise WorkersError(f"processes have found different checkpoints in {folder}: all of them have to see it")
    if world()[0]:
        folder = None  # all ranks hold the same, and the first one writes it
    if folder:
        keep_fingerprints(run.fingerprints, folder, "checkpoint", new=not began)
        run.meter.ledger.keep_in(folder / STEPS)
    if folder and run.report:
        _keep_best(run, folder)  # it may have been killed between the two
    while not run.finished:
        report = run.train_epoch(on_step)
        if folder:
            run.save(folder)
            _keep_best(run, folder)
        yield report
    if folder:
        checkpoint.save_weights(run.method.export(), folder / checkpoint.LAST)


def _keep_best(run: Run, folder: Path) -> None:
    """Keep the model of the epoch just done, if it is the best so far."""
    if run.best == run.report:
        checkpoint.save_model(run.method, folder)


def last_report(folder: Path) -> EpochReport | None:
    """Read how far the run in a folder has come; None without a checkpoint."""
    if not (folder / checkpoint.FILE).exists():
        return None
    return read_report(checkpoint.load(folder)["report"])
