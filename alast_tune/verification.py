"""A member of a front trained again from scratch, and its numbers set beside those that the sweep has measured."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit
from torch import Tensor

from alast_tune.config import stored_sweep
from alast_tune.data import batch_count
from alast_tune.errors import VerificationError
from alast_tune.plots import human_bytes
from alast_tune.results import EpochReport, FrontMember, Reseeded
from alast_tune.run import load_trial
from alast_tune.scores import SCORES, Score
from alast_tune.storage import path_below
from alast_tune.terminal import TrainingProgress
from alast_tune.train import fit

PEAK_TOLERANCE = 0.05
"""Share by which the peak memory of a repetition may differ: allocators and drivers do."""


@dataclass(frozen=True)
class Check:
    """One quantity of a repetition beside what the trial had measured."""

    quantity: str
    expected: str
    got: str
    allowed: str
    passed: bool


def chance_between_seeds(sweep: Path) -> float | None:
    """Half the 95% interval of the difference in accuracy between two runs, by other seeds; None if there were none.

    t(0.975) sqrt(2) s, with s pooled over the members that were run again, who have few runs each.
    """
    again = Reseeded.find(sweep)
    if again is None:
        return None
    pooled = math.sqrt(fmean(member.spread["accuracy"] ** 2 for member in again.members))
    freedom = len(again.members) * (len(again.seeds) - 1)
    return float(stdtrit(freedom, 0.975)) * math.sqrt(2) * pooled


def repeat(member: FrontMember, sweep: Path, on_step: Callable[[int], None] | None = None) -> Iterator[EpochReport]:
    """Train a member's configuration again from scratch, as the sweep did and ``train`` does.

    Args:
        member: of the front.
        sweep: folder of the sweep; the repetition is left in its ``verify/<trial id>``.
        on_step: called with the steps done in the running epoch.

    Raises:
        ConfigError: it cannot be trained here.
    """
    folder = path_below(sweep, "verify", member.trial_id)
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(stored_sweep(sweep, "sweep").cpus_per_trial)  # other numbers of threads round differently
    yield from fit(member.config, folder, on_step)


def compare(member: FrontMember, report: EpochReport, images: float, between_seeds: float | None = None) -> list[Check]:
    """Compare a repetition with the trial: training FLOPs exactly, accuracy within chance, peak memory within 5%.

    On one machine a CPU repeats every bit; elsewhere sums come in another order, and accuracy may differ by what it
    differs by between seeds, or while that is not known by what 95% of samples of as many validation images do,
    1.96 sqrt(p (1 - p) / n). "Accuracy" is what ``train.score`` names.

    Args:
        member: as measured by the sweep.
        report: of the repetition's last epoch.
        images: n, of the validation split; where classes count alike, K times the harmonic mean of the classes' images.
        between_seeds: what :func:`chance_between_seeds` says, where ``--reseed`` has measured it.
    """
    score = SCORES[member.config.train.score]
    accuracy, flops, peak = (member.objectives[name] for name in ("accuracy", "train_flops", "peak_bytes"))
    sampling = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 1 / images) / images)
    chance = between_seeds or sampling
    apart = abs(report.quality - accuracy)
    cost = report.cost
    return [
        Check(
            "training FLOPs",
            f"{flops:,.0f}",
            f"{cost.train_flops:,}",
            "equal",
            float(cost.train_flops) == flops,
        ),
        Check(
            f"validation {score}",
            f"{accuracy:.4f}",
            f"{report.quality:.4f}",
            f"± {chance:.4f}",
            apart <= chance,
        ),
        Check(
            "peak memory",
            human_bytes(peak),
            human_bytes(cost.peak_bytes),
            f"± {PEAK_TOLERANCE:.0%}",
            abs(cost.peak_bytes - peak) <= PEAK_TOLERANCE * peak,
        ),
    ]


def images_behind(labels: Tensor, score: Score) -> float:
    """Count the images that determine the sampling error of a measure; for a mean over classes, an effective number.

    The variance of a mean of K recalls p, over n_k images each, is p (1 - p) sum_k (1 / n_k) / K^2.
    """
    if score == "accuracy":
        return len(labels)
    images_K = labels.unique(return_counts=True)[1].double()
    return float(len(images_K) ** 2 / (1 / images_K).sum())


def verify_member(member: FrontMember, folder: Path, console: Console) -> None:
    """Train a member again, and show what comes out.

    Args:
        member: of the front.
        folder: of the sweep.
        console: shows progress, and the comparison as a table.

    Raises:
        VerificationError: FLOPs, accuracy or memory are others.
    """
    _, splits = load_trial(member.config)
    train, report = member.config.train, None
    with TrainingProgress(console, member.config, batch_count(len(splits.train), train.batch_size)) as progress:
        for report in repeat(member, folder, progress.step):
            progress.epoch(report)
    assert report is not None
    images = images_behind(splits.validation.labels, train.score)
    checks = compare(member, report, images, chance_between_seeds(folder))
    table = Table(title=f"trial {member.trial_id}, repeated", title_justify="left", box=SIMPLE_HEAD)
    for column in ("quantity", "expected", "got", "allowed", "verdict"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.quantity, check.expected, check.got, check.allowed, "ok" if check.passed else "FAILED")
    console.print(table)
    failed = [f"{check.quantity} {check.got}, not {check.expected}" for check in checks if not check.passed]
    if failed:
        line = f"trial {member.trial_id} cannot be verified, and is not promoted: {'; '.join(failed)}"
        raise VerificationError(line)
