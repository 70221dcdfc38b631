"""Which epochs of a run are evaluated, which is the best, and when no more are wanted (early stopping)."""

from __future__ import annotations

import math

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.results import EpochReport


def is_evaluated(train: TrainConfig, epoch: int) -> bool:
    """Whether the validation images are looked at after an epoch, counted from 1; after the last one always."""
    return epoch % train.eval_every == 0 or epoch >= train.epochs


def is_better(report: EpochReport, best: EpochReport | None) -> bool:
    """Whether an epoch has the best validation result so far, the first of several; never if nobody has looked."""
    return not math.isnan(report.quality) and (best is None or report.quality > best.quality)


def out_of_patience(config: TrialConfig, report: EpochReport | None, best: EpochReport | None) -> bool:
    """Whether a run ends before its last epoch, as no epoch of the latest ``train.patience`` was better.

    It follows from what a checkpoint has, so that a resumed run ends where it would have. With ``data.all_data`` there
    is no validation to go by, and all epochs are trained.
    """
    patience = config.train.patience
    if patience is None or config.data.all_data or report is None or best is None or math.isnan(report.quality):
        return False
    return report.epoch - best.epoch >= patience
