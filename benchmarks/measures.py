"""What a replayed search found, judged by a table of real runs without luck: each configuration at its mean."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alast_tune.front import hypervolume_share, pareto_mask
from alast_tune.results import DIRECTIONS
from benchmarks.replay import Found, Table

MARGIN = 1.1
"""The reference point lies at this multiple of the cost of full fine-tuning, as in a sweep."""
WITHIN = 0.05
"""Only what comes so near the accuracy of full fine-tuning counts, as in a sweep."""
TARGETS = (0.50, 0.80, 0.90, 0.95)
"""Shares of the attainable hypervolume."""
POINTS = 0.01
"""An answer's accuracy is no more than this below the table's best."""
DEARER = 1.1
"""An answer's training FLOPs are at most this multiple of those of the cheapest configuration as accurate."""
QUANTILES = (0.5, 0.1, 0.9)
"""Of seeds: the median, and between what most of them lie."""


@dataclass(frozen=True)
class Judge:
    """Measures searches on a table.

    Only a configuration whose mean accuracy is above ``floor`` counts. The reference point is that floor, and
    ``MARGIN`` times the FLOPs and the peak of full fine-tuning; the ideal one has accuracy 1 and costs nothing.
    """

    table: Table
    floor: float

    @cached_property
    def attainable(self) -> float:
        """Hypervolume of the whole table."""
        return self._hypervolume(range(len(self.table.finals)))

    @cached_property
    def answers(self) -> set[int]:
        """Configurations that answer what people ask.

        Their mean accuracy is within ``POINTS`` of the table's best. Their cost, the mean training FLOPs of a whole
        run, is at most ``DEARER`` times the lowest with which any configuration is as accurate.
        """
        accuracy_C, flops_C = self.table.finals[:, 0], self.table.finals[:, 1]
        good_C = accuracy_C >= accuracy_C.max() - POINTS - 1e-9
        return set(np.flatnonzero(good_C & (flops_C <= DEARER * flops_C[good_C].min())).tolist())

    def curve(self, found: Iterable[Found]) -> list[tuple[float, float]]:
        """Follow a search: FLOPs spent, in full runs, and share of the attainable hypervolume; a point a trial."""
        configs: set[int] = set()
        curve: list[tuple[float, float]] = []
        for trial in found:
            if trial.config in configs:
                continue
            configs.add(trial.config)
            curve.append((trial.spent, self._hypervolume(configs) / self.attainable))
        return curve

    def answered(self, found: Iterable[Found]) -> float:
        """Look up what had been spent when a trial of one of the answers was complete; infinite if none ever was."""
        return next((trial.spent for trial in found if trial.config in self.answers), math.inf)

    def luck(self, found: Sequence[Found]) -> float:
        """Tell by how much a search's front is overrated.

        The front is what the search believes in at the end: of the trials that it saw above the floor, those that no
        other dominates. Returns the mean of their accuracy as it was seen minus the mean of their configuration's runs
        with the table's other seeds; NaN without any.
        """
        seeds = len(self.table.seeds)
        if seeds == 1:
            return math.nan
        seen = [trial for trial in found if trial.values[0] > self.floor]
        on_front = pareto_mask([trial.values for trial in seen], DIRECTIONS)
        front = [trial for trial, member in zip(seen, on_front, strict=True) if member]
        lucks = [trial.values[0] - self.table.finals[trial.config, 0] for trial in front]
        return float(np.mean(lucks)) * seeds / (seeds - 1) if lucks else math.nan  # the mean has the run itself in it

    def _hypervolume(self, configs: "set[int] | range") -> float:
        reference = (self.floor, MARGIN * self.table.full[1], MARGIN * self.table.full[2])
        return hypervolume_share(self.table.finals[list(configs)], reference, (1.0, 0.0, 0.0), DIRECTIONS)


def needed(curve: list[tuple[float, float]], target: float) -> float:
    """Look up what it cost to reach a share of the attainable hypervolume; infinite if it was not reached."""
    return next((spent for spent, share in curve if share >= target), math.inf)


def share_at(curve: list[tuple[float, float]], spent: float) -> float:
    """Look up the share that had been reached when so much was spent."""
    return max((share for cost, share in curve if cost <= spent), default=0.0)


def quantiles(values: Iterable[float]) -> list[float]:
    """Give the ``QUANTILES`` of what seeds came to, which may be infinite; what is undefined (NaN) is left out.

    Each quantile is the value of one seed: the lowest value that at least this share of the seeds do not exceed. Values
    are not interpolated, because a target that a seed has not reached is infinite. The median of 30 seeds is the 15th
    value, of 24 seeds the 12th.
    """
    ordered = sorted(value for value in values if not math.isnan(value)) or [math.nan]
    return [float(np.quantile(ordered, q, method="inverted_cdf")) for q in QUANTILES]


def floor_of(table: Table, within: float | None) -> float:
    """Say which accuracy counts: what is so near that of full fine-tuning; None: any."""
    return 0.0 if within is None else float(table.full[0]) - within
