"""What a trial is expected to bring: a Gaussian process for what must be guessed, and the improvement's closed form."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Floats = NDArray[np.float64]

LENGTHS = (0.3, 10.0)
"""Between these lie the length scales, in shares of a parameter's range: shorter ones explain noise between seeds by
saying that neighbours have nothing to do with one another."""


class Surrogate:
    """A Gaussian process; its hyperparameters are found again when there are a fifth more trials.

    Args:
        least: y is taken to vary by no less, however alike the first trials are.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._kernel: Any = None
        self._fitted = 0

    def fit(self, X_TD: Floats, y_T: Floats, error_T: Floats, trials: int) -> None:
        """Learn y at X.

        Args:
            X_TD: points in the unit cube.
            y_T: values there.
            error_T: standard deviations of y from the truth, beside what is found as noise.
            trials: so many there are, learnt from or not.
        """
        self._mean, self._scale = float(y_T.mean()), max(float(y_T.std()), self._least)
        if self._kernel is None:
            smooth = Matern(np.ones(X_TD.shape[1]), LENGTHS, nu=2.5)
            self._kernel = ConstantKernel(1.0, (0.1, 10.0)) * smooth + WhiteKernel(0.05, (1e-3, 1.0))
        optimizer = None
        if trials >= 1.2 * self._fitted:
            self._fitted, optimizer = trials, "fmin_l_bfgs_b"
        noise_T = (error_T / self._scale) ** 2 + 1e-6
        self._process = GaussianProcessRegressor(self._kernel, alpha=noise_T, optimizer=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length scale at its bound: a parameter that does not matter
            self._process.fit(X_TD, (y_T - self._mean) / self._scale)
        self._kernel = self._process.kernel_

    def mean(self, X_CD: Floats) -> Floats:
        """Mean, (C,)."""
        mean_C: Floats = self._process.predict(X_CD)
        return mean_C * self._scale + self._mean

    def predict(self, X_CD: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation, (C,) each."""
        mean_C, deviation_C = self._process.predict(X_CD, return_std=True)
        return mean_C * self._scale + self._mean, deviation_C * self._scale


def expected_improvement(
    mean_C: Floats, deviation_C: Floats, costs_C2: Floats, points_F3: Floats, least: float = 0.0
) -> Floats:
    """Expect how much hypervolume candidates add, their costs known and their accuracy Gaussian.

    What a candidate's costs would cover is divided by whom of those there covers a part with the highest accuracy, z:
    there the candidate adds as much as its accuracy is expected to exceed that, E(a - z)+ - E(a - 1)+, for none is
    above 1. It takes time that grows with the number of points as their sorting does.

    Args:
        mean_C: (C,) expected accuracy.
        deviation_C: (C,) its standard deviation, above 0.
        costs_C2: (C, 2) as shares of the reference point's.
        points_F3: (F, 3) accuracy and costs of what is there, costs as shares of the reference point's.
        least: accuracy from which hypervolume counts.

    Returns:
        (C,) share of the box between the reference point and the ideal.
    """
    points_F3 = points_F3[(points_F3[:, 1:] < 1.0).all(axis=1) & (points_F3[:, 0] > least)]
    points_F3 = points_F3[np.argsort(-points_F3[:, 0], kind="stable")]
    owner_S, low_S2, high_S2, cheapest_K2 = _parts(points_F3[:, 1:])
    levels_L = np.array([1.0, least, *points_F3[:, 0]])
    excess_LC = _expected_excess(mean_C, deviation_C, levels_L[:, None])
    above_LC = excess_LC[1:] - excess_LC[0]
    sides_SC2 = np.clip(high_S2[:, None] - np.maximum(low_S2[:, None], costs_C2), 0.0, None)
    gain_C: Floats = (above_LC[1 + owner_S] * sides_SC2[..., 0] * sides_SC2[..., 1]).sum(axis=0)
    gain_C += above_LC[0] * uncovered_area(costs_C2, cheapest_K2)
    return gain_C


def _parts(costs_F2: Floats) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Divide what points' boxes to (1, 1) cover into rectangles, each the first point's that covers it.

    Args:
        costs_F2: (F, 2) below 1, in the order in which they come.

    Returns:
        (S,) whose each is, (S, 2) and (S, 2) between which costs it lies; (K, 2) the points that nobody else covers.
    """
    flops, peaks = list[float](), list[float]()  # of the outline so far: the former rise, the latter fall
    owners, parts = list[int](), list[tuple[float, float, float, float]]()
    for owner, (left, low) in enumerate(costs_F2.tolist()):
        start = end = bisect_left(flops, left)
        at, ceiling = left, peaks[start - 1] if start else 1.0
        if ceiling <= low:
            continue
        while end < len(flops) and peaks[end] >= low:  # that the point covers
            parts.append((at, low, flops[end], ceiling))
            at, ceiling = flops[end], peaks[end]
            end += 1
        parts.append((at, low, flops[end] if end < len(flops) else 1.0, ceiling))
        owners += [owner] * (len(parts) - len(owners))
        flops[start:end], peaks[start:end] = [left], [low]
    parts_S4 = np.array(parts, dtype=np.float64).reshape(-1, 4)
    outline_K2 = np.array([flops, peaks], dtype=np.float64).T
    return np.array(owners, dtype=np.int64), parts_S4[:, :2], parts_S4[:, 2:], outline_K2


def _expected_excess(mean_C: Floats, deviation_C: Floats, level_L1: Floats) -> Floats:
    """E(a - level)+ of a Gaussian, (L, C)."""
    z_LC = (mean_C - level_L1) / deviation_C
    density_LC = np.exp(-(z_LC**2) / 2) / math.sqrt(2 * math.pi)  # scipy.stats.norm takes longer than all of this
    excess_LC: Floats = (mean_C - level_L1) * ndtr(z_LC) + deviation_C * density_LC
    return excess_LC


def uncovered_area(costs_C2: Floats, others_K2: Floats) -> Floats:
    """Measure what of the box from each candidate's costs to (1, 1) no other's box covers, (C,)."""
    others_K2 = others_K2[np.argsort(others_K2[:, 0])]
    left_K = np.concatenate([[-np.inf], others_K2[:, 0]])
    right_K = np.concatenate([others_K2[:, 0], [1.0]])
    ceiling_K = np.concatenate([[1.0], np.minimum.accumulate(others_K2[:, 1])])
    width_CK = np.clip(right_K - np.maximum(left_K, costs_C2[:, :1]), 0.0, None)
    area_C: Floats = (width_CK * np.clip(ceiling_K - costs_C2[:, 1:], 0.0, None)).sum(axis=1)
    return area_C
