"""Who on a front is near full fine-tuning, which of them is the knee, and what it takes beside that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alast_tune.front import knee
from alast_tune.results import DIRECTIONS, FrontFile, FrontMember, Region

NEAR = 0.05
"""How far below full fine-tuning's accuracy the knee may lie where the sweep does not say."""

SLACK = 1e-9
"""A point is a point, whatever its binary form."""


def near_full(members: Sequence[FrontMember], full: Mapping[str, float] | None, tolerance: float) -> list[FrontMember]:
    """Members whose accuracy is at most ``tolerance`` below full fine-tuning's; none if that is not known."""
    least = full["accuracy"] - tolerance - SLACK if full else math.inf
    return [member for member in members if member.objectives["accuracy"] >= least]


def members_that_count(front: FrontFile) -> list[FrontMember]:
    """Members of a front in its region."""
    return [member for member in front.front if member.objectives["accuracy"] >= front.region.floor - SLACK]


def choose_knee(
    members: Sequence[FrontMember],
    full: Mapping[str, float] | None,
    tolerance: float | None = None,
    region: Region = Region(),  # noqa: B008 frozen
) -> tuple[str | None, float | None]:
    """Choose the compromise among the members of a front that are near full fine-tuning, or of all where none is.

    Args:
        members: of the front.
        full: objectives of full fine-tuning; None if they are not known.
        tolerance: how much less than its accuracy a member's may be, in [0, 1]; None: as the region says.
        region: of the front. A limit of accuracy takes the place of full fine-tuning: the members all keep it.

    Returns:
        The knee's trial id, None without members; and how near they are among whom it was chosen, None: among all.
    """
    if tolerance is None and region.source == "min_accuracy":
        near = []
    elif tolerance is None and region.source == "full":
        tolerance = region.within
        near = [member for member in members if member.objectives["accuracy"] >= region.floor - SLACK]
    else:
        tolerance = NEAR if tolerance is None else tolerance
        near = near_full(members, full, tolerance)
    chosen = near or members
    values_FM = [list(member.objectives.values()) for member in chosen]
    return chosen[knee(values_FM, DIRECTIONS)].trial_id if chosen else None, tolerance if near else None


def knee_words(front: FrontFile) -> str:
    """Say among which members the knee of a front was chosen, and by what, after "the best compromise"."""
    mean = f", in the mean of {front.knee_seeds} other seeds" if front.knee_seeds else ""
    if front.knee_within is not None:
        return f"within {points(front.knee_within)} of full fine-tuning{mean}"
    if front.region.source == "min_accuracy":
        return f"of all{mean}; they have {front.score_label} {front.region.floor:.4f} and above"
    why = "full fine-tuning is not known" if front.full is None else "none is so near full fine-tuning"
    return f"of all{mean}; {why}"


def hypervolume_words(front: FrontFile) -> str:
    """Say a front's hypervolume, and what it counts."""
    region = front.region
    near = f"of what lies within {points(region.within or 0.0)} of full fine-tuning"
    if front.hypervolume_share is None:
        return f"hypervolume, {near}: not known before full fine-tuning has a result"
    counts = {
        "full": f"{near} ({front.score_label} {region.floor:.4f} and above)",
        "everything": f"of everything, from {front.score_label} 0 on",
        "unknown": f"of everything, from {front.score_label} 0 on: full fine-tuning has no result",
    }
    return f"hypervolume {front.hypervolume_share:.4f} " + counts.get(
        region.source, f"of what has {front.score_label} {region.floor:.4f} and above"
    )


def region_floor(front: FrontFile) -> float | None:
    """Accuracy from which on a front's members are worth looking at; None where full fine-tuning is not known."""
    if front.region.source in {"full", "min_accuracy"}:
        return front.region.floor
    return front.full["accuracy"] - NEAR if front.full else None


def points(tolerance: float) -> str:
    """Write a difference in accuracy for people: ``points(0.01) == "1 point"``."""
    return f"{100 * tolerance:g} point{'s' * (tolerance != 0.01)}"


def standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy that was measured on so many images.

    Of Agresti and Coull 1998: with two more successes and two more failures, so that an accuracy of 1 has one too.

    Args:
        accuracy: in [0, 1].
        images: 1 or more.
    """
    share = (accuracy * images + 2) / (images + 4)
    return math.sqrt(share * (1 - share) / (images + 4))


def uncertainty_words(front: FrontFile, tolerance: float) -> str | None:
    """Say how sure full fine-tuning's accuracy is; None where chance is smaller than ``tolerance``, or not known.

    It is not known of other measures than accuracy, for which the number of each class's images would be needed.
    """
    if front.full is None or front.validation_images is None or front.score != "accuracy":
        return None
    error = standard_error(front.full["accuracy"], front.validation_images)
    if error <= tolerance:
        return None
    image = 100 / front.validation_images
    return (
        f"one of {front.validation_images} validation images is {image:.2g} points, the standard error of full "
        f"fine-tuning's accuracy {100 * error:.2g} points"
    )


def share_of_full(front: FrontFile, member: FrontMember, cost: str) -> float | None:
    """Divide a member's ``train_flops`` or ``peak_bytes`` by full fine-tuning's; None if that is not known."""
    full = front.full[cost] if front.full else 0.0
    return member.objectives[cost] / full if full > 0 else None


def time_share(front: FrontFile, member: FrontMember) -> float | None:
    """Divide a member's training time by full fine-tuning's; None unless both trained on the same kind of device."""
    own, full = member.timing, front.full_timing
    return own.train_seconds / full.train_seconds if own and full and own.device == full.device else None
