"""What a front's members come to with other seeds: their means, how sure their place is, and the answers by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from alast_tune.front import front_probability
from alast_tune.near_full import SLACK, choose_knee, members_that_count, near_full
from alast_tune.objectives import DIRECTIONS, OBJECTIVES
from alast_tune.results import FrontFile, FrontMember, Reseeded, ReseededMember, SeedRun

FULL = "full fine-tuning"
"""Named beside trials by their ids, for it need not be on the front."""


def flops_of_seeds(front: FrontFile, runs: int, full_flops: float) -> float:
    """Foresee the training FLOPs of running again, so often, what counts on a front, and full fine-tuning.

    Full fine-tuning, predicted to take ``full_flops``, is counted before it has ended, as long as it may have a result.
    """
    if not runs:
        return 0.0
    members = members_that_count(front)
    flops = sum(member.objectives["train_flops"] for member in members)
    if all(member.baseline != "full" for member in members):
        if front.full is not None:
            flops += front.full["train_flops"]
        elif front.region.source == "pending":
            flops += full_flops
    return runs * flops


def counted(front: FrontFile, again: Reseeded | None) -> list[FrontMember]:
    """Members of a front in its region, and those that come into it where full fine-tuning's mean is lower."""
    full = _mean_of_full(front, again) if again else None
    near = near_full(front.front, full, front.region.within or 0.0) if front.region.source == "full" else []
    them = {member.trial_id for member in [*members_that_count(front), *near]}
    return [member for member in front.front if member.trial_id in them]


def without_seeds(front: FrontFile, again: Reseeded) -> list[str]:
    """Name what counts on a front and was not run with other seeds, or not to the end with all of them."""
    known = {member.trial_id for member in again.members}
    lacking = [member.trial_id for member in counted(front, again) if member.trial_id not in known]
    return lacking + [FULL] * (front.full is not None and _mean_of_full(front, again) is None)


def reseeded(
    members: Sequence[FrontMember], sweep: str, runs: Mapping[str, Sequence[SeedRun]], seed: int = 0
) -> Reseeded:
    """Say what members come to over seeds, and how sure it is that each belongs on the front.

    Means are over the new runs alone: the old one was chosen for its luck. Behind the probabilities, the spread of
    accuracy is pooled over the members, who have few runs each; that of the costs, which differ in it, is each one's
    own.

    Args:
        members: that were run again, full fine-tuning among them.
        sweep: whose they are.
        runs: of each member, by trial id, two or more with the same seeds; who has none is left out.
        seed: of the draws behind the probabilities.
    """
    ran = [member for member in members if runs.get(member.trial_id)]
    values_FRM = np.array([[list(run.objectives.values()) for run in runs[member.trial_id]] for member in ran])
    count = values_FRM.shape[1]
    means_FM, spreads_FM = values_FRM.mean(axis=1), values_FRM.std(axis=1, ddof=1)
    noise_FM = spreads_FM.copy()
    noise_FM[:, 0] = np.sqrt((spreads_FM[:, 0] ** 2).mean())
    freedom = len(ran) * (count - 1)
    generator = np.random.default_rng(seed)
    probabilities_F = front_probability(means_FM, noise_FM / np.sqrt(count), DIRECTIONS, freedom, generator)
    return Reseeded(
        schema=1,
        sweep=sweep,
        seeds=tuple(run.seed for run in runs[ran[0].trial_id]),
        members=tuple(
            ReseededMember(
                trial_id=member.trial_id,
                found=member.objectives,
                runs=tuple(runs[member.trial_id]),
                mean=_named(means_M),
                spread=_named(spreads_M),
                front_probability=float(probability),
                baseline=member.baseline,
            )
            for member, means_M, spreads_M, probability in zip(ran, means_FM, spreads_FM, probabilities_F, strict=True)
        ),
    )


def in_the_mean(
    front: FrontFile, again: Reseeded | None, tolerance: float | None = None
) -> tuple[FrontFile, tuple[int, ...]]:
    """Replace the objectives of a front's members and of full fine-tuning by their means over other seeds.

    Members without such runs, or whose means break a limit, are left out, and so are hypervolumes, times and the number
    of validation images. The knee is chosen again.

    Args:
        front: of the sweep, or the part of it that keeps limits.
        again: what is known of other seeds.
        tolerance: members so near full fine-tuning are looked at; None: those in the region.

    Returns:
        That front, and the seeds. Without seeds the front as it is: not all that is looked at was run with others.
    """
    wider = tolerance is not None and front.region.within is not None and tolerance > front.region.within + SLACK
    if again is None or wider or without_seeds(front, again):
        return front, ()
    found = {member.trial_id: member for member in again.members}
    ran = [member for member in front.front if member.trial_id in found]
    if not ran:
        return front, ()
    members = []
    for member in ran:
        tested = [run.test_accuracy for run in found[member.trial_id].runs if run.test_accuracy is not None]
        means = {"objectives": found[member.trial_id].mean, "test_accuracy": fmean(tested) if tested else None}
        if front.limits.allow(**found[member.trial_id].mean):
            members.append(member.model_copy(update=means | {"timing": None}))
    full = _mean_of_full(front, again)
    if tolerance is None and front.region.source == "full":
        tolerance = front.region.within  # below its mean
    knee, near = choose_knee(members, full, tolerance, front.region)
    unknown = dict.fromkeys(("hypervolume", "hypervolume_share", "validation_images", "full_timing"))
    chosen = {"knee": knee, "knee_within": near, "knee_seeds": len(again.seeds)}
    return front.model_copy(update=unknown | chosen | {"front": tuple(members), "full": full}), again.seeds


def with_knee_of_means(front: FrontFile, again: Reseeded | None, tolerance: float | None = None) -> FrontFile:
    """Choose a front's knee by means over other seeds where all that is looked at has them; see :func:`in_the_mean`."""
    mean, _ = in_the_mean(front, again, tolerance)
    return front.model_copy(update={name: getattr(mean, name) for name in ("knee", "knee_within", "knee_seeds")})


def _mean_of_full(front: FrontFile, again: Reseeded) -> Mapping[str, float] | None:
    itself = {member.trial_id for member in again.members if member.baseline == "full"}
    itself |= {member.trial_id for member in front.front if member.baseline == "full"}  # older files do not say it
    return next((member.mean for member in again.members if member.trial_id in itself), None)


def _named(values_M: NDArray[np.float64]) -> dict[str, float]:
    return {objective.name: float(value) for objective, value in zip(OBJECTIVES, values_M, strict=True)}
