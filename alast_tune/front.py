"""Pareto front, hypervolume and knee: arrays in, arrays out.

T trials, M objectives; a direction is ``"maximize"`` or ``"minimize"``, one an objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Direction = Literal["maximize", "minimize"]
Point = Sequence[float] | NDArray[np.float64]


def pareto_mask(values_TM: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Tell the points that no other point dominates; equal points stay or go together.

    Args:
        values_TM: (T, M), each objective in its own unit.
        directions: M of them.

    Returns:
        (T,) bool.

    Raises:
        ValueError: a value that is not finite, a shape that does not fit, or an unknown direction.
    """
    losses_TM = _losses(values_TM, directions)
    return np.asarray(moocore.is_nondominated(losses_TM, keep_weakly=True), dtype=np.bool_)


def dominating(values_TM: ArrayLike, row: int, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Tell the points that dominate one of them: nowhere worse, and somewhere better.

    Args:
        values_TM: (T, M), each objective in its own unit.
        row: of that one.
        directions: M of them.

    Returns:
        (T,) bool.

    Raises:
        ValueError: as :func:`pareto_mask`.
    """
    losses_TM = _losses(values_TM, directions)
    found_T: NDArray[np.bool_] = (losses_TM <= losses_TM[row]).all(axis=1) & (losses_TM < losses_TM[row]).any(axis=1)
    return found_T


def pareto_rank(values_TM: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.int64]:
    """Sort into fronts: 0 is the front, 1 the front of what is left without it, and so on (Deb et al. 2002).

    Args:
        values_TM: (T, M), each objective in its own unit.
        directions: M of them.

    Returns:
        (T,) int64, from 0.

    Raises:
        ValueError: as :func:`pareto_mask`.
    """
    return np.asarray(moocore.pareto_rank(_losses(values_TM, directions)), dtype=np.int64)


def hypervolume_contributions(values_TM: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.float64]:
    """Measure what would be lost of the points' hypervolume without each of them.

    Measured from a tenth beyond the worst value of each objective, in units of that value's distance from the best.

    Args:
        values_TM: (T, M), each objective in its own unit.
        directions: M of them.

    Returns:
        (T,); 0 for what others dominate or repeat.

    Raises:
        ValueError: as :func:`pareto_mask`.
    """
    losses_TM = _losses(values_TM, directions)
    low_M = losses_TM.min(axis=0)
    span_M = losses_TM.max(axis=0) - low_M
    scaled_TM = (losses_TM - low_M) / np.where(span_M > 0, span_M, 1.0)
    return np.asarray(moocore.hv_contributions(scaled_TM, ref=np.full(losses_TM.shape[1], 1.1)), dtype=np.float64)


def hypervolume(values_TM: ArrayLike, reference_M: Point, directions: Sequence[Direction]) -> float:
    """Measure the space that the points dominate and the reference point bounds.

    Args:
        values_TM: (T, M), each objective in its own unit. A point that is not better than the reference in
            every objective adds nothing.
        reference_M: (M,) in the same units.
        directions: M of them.

    Returns:
        Product of the objectives' units, at least 0; 0 without points.

    Raises:
        ValueError: as :func:`pareto_mask`, for the reference point as well.
    """
    losses_TM = _losses(values_TM, directions)
    worst_M = _losses(np.asarray([reference_M]), directions)[0]
    losses_TM = losses_TM[(losses_TM < worst_M).all(axis=1)]
    if len(losses_TM) == 0:
        return 0.0
    return float(moocore.hypervolume(losses_TM, ref=worst_M))


def hypervolume_share(
    values_TM: ArrayLike, reference_M: Point, ideal_M: Point, directions: Sequence[Direction]
) -> float:
    """Measure the hypervolume as a share of the box between the reference and the ideal point.

    Computed on objectives scaled to [0, 1], so that 1e15 FLOPs times 1e9 bytes costs no digits.

    Args:
        values_TM: (T, M), each objective in its own unit. What lies beyond the ideal counts as the ideal.
        reference_M: (M,), the worst corner of the box.
        ideal_M: (M,), the best corner, better than the reference in every objective.
        directions: M of them.

    Returns:
        In [0, 1].

    Raises:
        ValueError: as :func:`pareto_mask`, or an ideal that is not better than the reference.
    """
    losses_TM = _losses(values_TM, directions)
    worst_M = _losses(np.asarray([reference_M]), directions)[0]
    best_M = _losses(np.asarray([ideal_M]), directions)[0]
    if not (best_M < worst_M).all():
        raise ValueError(f"ideal {ideal_M} must be better than the reference {reference_M} in every objective")
    scaled_TM = np.clip((losses_TM - best_M) / (worst_M - best_M), 0.0, None)
    return hypervolume(scaled_TM, np.ones_like(worst_M), ["minimize"] * len(directions))


def knee(values_TM: ArrayLike, directions: Sequence[Direction]) -> int:
    """Find the compromise: the member nearest the ideal, each objective scaled to [0, 1] over the front.

    An objective that all members share adds nothing; of equal distances the first wins.

    Args:
        values_TM: (T, M), each objective in its own unit; dominated points may be among them.
        directions: M of them.

    Returns:
        Row of ``values_TM``.

    Raises:
        ValueError: as :func:`pareto_mask`, or no point at all.
    """
    losses_TM = _losses(values_TM, directions)
    members = np.flatnonzero(pareto_mask(values_TM, directions))
    if len(members) == 0:
        raise ValueError("no points: a knee needs at least one")
    front_FM = losses_TM[members]
    best_M, spread_M = front_FM.min(axis=0), np.ptp(front_FM, axis=0)
    scaled_FM = (front_FM - best_M) / np.where(spread_M > 0, spread_M, 1.0)
    return int(members[np.argmin((scaled_FM**2).sum(axis=1))])


def front_probability(
    means_TM: ArrayLike,
    errors_TM: ArrayLike,
    directions: Sequence[Direction],
    freedom: int,
    generator: np.random.Generator,
    draws: int = 4000,
) -> NDArray[np.float64]:
    """Estimate how probable it is that each point's true values are dominated by no other's.

    True values are drawn around the means from Student's t distribution, the posterior under a flat prior where
    all points share the scale of their noise (Gelman et al., Bayesian Data Analysis, section 3.2).

    Args:
        means_TM: (T, M), mean over repetitions, each objective in its own unit.
        errors_TM: (T, M), standard errors of those means; 0 where a value does not vary.
        directions: M of them.
        freedom: degrees of freedom of the errors, at least 1.
        generator: of the draws.
        draws: the estimate is good to 0.5 / sqrt(draws).

    Returns:
        (T,) in [0, 1].

    Raises:
        ValueError: as :func:`pareto_mask`.
    """
    means_TM, errors_TM = np.asarray(means_TM, dtype=np.float64), np.asarray(errors_TM, dtype=np.float64)
    stays_T = np.zeros(len(means_TM))
    for scale in np.sqrt(freedom / generator.chisquare(freedom, draws)):
        noise_TM = generator.standard_normal(means_TM.shape) * errors_TM * scale
        stays_T += pareto_mask(means_TM + noise_TM, directions)
    return stays_T / draws


def _losses(values_TM: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.float64]:
    """Check the values, and flip signs so that less is better everywhere: the only place that does."""
    unknown = set(directions) - {"maximize", "minimize"}
    if unknown or not directions:
        raise ValueError(f"directions = {list(directions)}: give 'maximize' or 'minimize' for each objective")
    losses_TM = np.array(values_TM, dtype=np.float64)
    if losses_TM.size == 0:
        losses_TM = losses_TM.reshape(0, len(directions))
    if losses_TM.ndim != 2 or losses_TM.shape[1] != len(directions):
        raise ValueError(f"values of shape {losses_TM.shape} do not fit {len(directions)} directions: give (T, M)")
    if not np.isfinite(losses_TM).all():
        rows = np.flatnonzero(~np.isfinite(losses_TM).all(axis=1)).tolist()
        raise ValueError(f"values of rows {rows} are not finite: leave trials without measurements out")
    signs_M = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    flipped_TM: NDArray[np.float64] = losses_TM * signs_M
    return flipped_TM
