"""``fit``: the only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from alast_tune import checkpoint
from alast_tune.config import TrialConfig
from alast_tune.cost import STEPS
from alast_tune.errors import InterruptedTrainingError, WorkersError
from alast_tune.fingerprints import keep_fingerprints
from alast_tune.parallel import largest_over_ranks, world
from alast_tune.results import EpochReport
from alast_tune.run import CHECK_EVERY, Run


def fit(
    config: TrialConfig,
    folder: Path | None = None,
    on_step: Callable[[int], None] | None = None,
    checkpoint_every: float | None = None,
    is_to_end: Callable[[], bool] = lambda: False,
) -> Iterator[EpochReport]:
    """Fine-tune; yield a report an epoch.

    Args:
        config: everything that determines the run.
        folder: keeps a checkpoint an epoch and resumes from one that is there. Its ``model.safetensors``
            is the model of the epoch with the highest validation accuracy so far (of the last one if it trains
            on the validation images), ``adapter`` its adapters alone if it has any, ``last.safetensors`` the model of
            the last epoch, once all are done. In a process group all ranks read it, and the first one writes.
        on_step: called with the steps done in the running epoch.
        checkpoint_every: seconds after which the folder gets a checkpoint within an epoch too.
        is_to_end: asked after each step whether to leave a checkpoint and end. Several ranks, which have to agree,
            look at this and at the time only after every ``CHECK_EVERY`` steps.

    Raises:
        ConfigError: whatever cannot work, before any training.
        WorkersError: the ranks do not see the same checkpoint.
        InterruptedTrainingError: ``is_to_end`` said so.
    """
    run = Run(config)
    began = folder is not None and (folder / checkpoint.FILE).exists()
    if folder and began:
        run.load(folder)
    rank, ranks = world()
    found = run.epoch, run.steps_done
    if largest_over_ranks(*found, *(-number for number in found)) != (*found, *(-number for number in found)):
        raise WorkersError(f"processes have found different checkpoints in {folder}: all of them have to see it")
    kept = folder is not None
    if rank:
        folder = None  # all ranks hold the same, and the first one writes it
    if folder:
        keep_fingerprints(run.fingerprints, folder, "checkpoint", new=not began)
        run.meter.ledger.keep_in(folder / STEPS)
    if folder and run.report and not run.steps_done:
        _keep_best(run, folder)  # it may have been killed between the two
    saved = time.monotonic()

    def after_step(done: int) -> None:
        nonlocal saved
        if on_step:
            on_step(done)
        ends = is_to_end()
        if ranks > 1 and done % CHECK_EVERY:
            return
        due = checkpoint_every is not None and time.monotonic() - saved >= checkpoint_every
        ends, due = map(bool, largest_over_ranks(ends, due))
        if kept and (ends or due):
            run.save(folder)
            saved = time.monotonic()
        if ends:
            where = f"after {done} of {run.steps_per_epoch} steps of epoch {run.epoch + 1}"
            raise InterruptedTrainingError(f"told to end, {where}; the same command goes on from there")

    while not run.finished:
        report = run.train_epoch(after_step)
        if folder:
            run.save(folder)
            _keep_best(run, folder)
        saved = time.monotonic()
        yield report
    if folder:
        with run.averaged():
            checkpoint.save_weights(run.method.export(), folder / checkpoint.LAST)


def _keep_best(run: Run, folder: Path) -> None:
    """Keep the model of the epoch just done, if it is the best so far."""
    if run.best == run.report:
        with run.averaged():
            checkpoint.save_model(run.method, folder)


def last_report(folder: Path) -> EpochReport | None:
    """Read the last finished epoch of the run in a folder; None without a checkpoint, or without such an epoch."""
    if not (folder / checkpoint.FILE).exists():
        return None
    report = checkpoint.load(folder)["report"]
    return checkpoint.read_report(report) if report else None  # of the first epoch, some steps
