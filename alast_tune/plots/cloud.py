"""The complete trials of a sweep as points, in units that suit the axes."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alast_tune.front import pareto_mask
from alast_tune.plots.units import byte_unit, flop_unit, human_bytes, human_flops, short
from alast_tune.results import BASELINES, DIRECTIONS, OBJECTIVES, FrontFile, TrialResult
from alast_tune.summary import trial_id

# Okabe and Ito's palette: told apart with any colour vision.
BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#8A8F98", "#24292F"
BASELINE_COLOURS = {"full": "#009E73", "paper": "#A5518B"}
"""Green, and Okabe and Ito's purple somewhat darker, since it also draws thin lines."""
ACCURACY, FLOPS, BYTES = 0, 1, 2
NOBODY = "No trial has completed yet, so there is no front to show."


MOST = 5_000
"""So many trials at most are drawn: a page with all of 100,000 would be 100 MB."""


def drawn(front: FrontFile, results: Sequence[TrialResult], most: int = MOST) -> list[TrialResult]:
    """Choose the complete trials that are drawn: all of the front, the baselines, and a sample of the others.

    Args:
        front: of the sweep.
        results: all its trials.
        most: of trials; a front that is larger is drawn whole all the same.

    Returns:
        Trials in their order, always the same ones.
    """
    complete = [result for result in results if result.state == "complete" and result.values]
    members = {member.trial_id for member in front.front}
    others = [n for n, one in enumerate(complete) if trial_id(one.number) not in members and one.baseline is None]
    surplus = min(len(complete) - most, len(others))
    if surplus <= 0:
        return complete
    left_out = set(np.random.default_rng(0).choice(others, surplus, replace=False).tolist())
    return [result for n, result in enumerate(complete) if n not in left_out]


def sampled(front: FrontFile, results: Sequence[TrialResult]) -> str:
    """Say so if not all complete trials are drawn."""
    count = sum(result.state == "complete" for result in results)
    if count >= front.trials.complete:
        return ""
    return f" Of {front.trials.complete} complete trials {count} are drawn: the front, and a sample of the others."


@dataclass(frozen=True)
class Cloud:
    """T complete trials, M = 3 objectives in the order of ``OBJECTIVES``."""

    ids: list[str]
    values_TM: NDArray[np.float64]
    """In the units that ``labels`` name."""
    member_T: NDArray[np.bool_]
    knee_T: NDArray[np.bool_]
    """At most one is true."""
    baselines: dict[str, NDArray[np.bool_]]
    """Where those of :data:`~alast_tune.results.BASELINES` are that have completed, (T,) each."""
    labels: tuple[str, str, str]
    seconds_T: NDArray[np.float64]
    """Of training, on the commonest kind of device; NaN where that is not known, or was another."""
    hover: list[str]
    """Trial, objectives and what varied, with ``<br>`` between."""

    @classmethod
    def of(cls, front: FrontFile, results: Sequence[TrialResult]) -> Cloud:
        """Collect the complete trials; members and knee are those of the front."""
        trials = [(result, result.values) for result in results if result.state == "complete" and result.values]
        values_TM = np.array([values for _, values in trials], dtype=np.float64).reshape(-1, len(DIRECTIONS))
        flops, flops_name = flop_unit(values_TM[:, FLOPS].max(initial=0.0))
        size, size_name = byte_unit(values_TM[:, BYTES].max(initial=0.0))
        members = {member.trial_id for member in front.front}
        ids = [trial_id(result.number) for result, _ in trials]
        found = np.array([result.baseline for result, _ in trials], dtype=object)
        return cls(
            ids=ids,
            values_TM=values_TM / np.array([1.0, flops, size]),
            member_T=np.array([name in members for name in ids], dtype=np.bool_),
            knee_T=np.array([name == front.knee for name in ids], dtype=np.bool_),
            baselines={name: found == name for name in BASELINES if (found == name).any()},
            labels=(f"Validation {front.score_label}", f"Training FLOPs ({flops_name})", f"Peak memory ({size_name})"),
            seconds_T=_seconds([result for result, _ in trials]),
            hover=[_hover(result, values, front) for result, values in trials],
        )

    def staircase(self, x: int, y: int) -> NDArray[np.float64]:
        """Find the corners of what the members attain of two objectives, (corners, 2), by rising x."""
        return staircase(self.values_TM[self.member_T], x, y)


def staircase(values_FM: NDArray[np.float64], x: int, y: int) -> NDArray[np.float64]:
    """Find the corners of what points attain of two objectives, (corners, 2), by rising x."""
    points_F2 = values_FM[:, [x, y]]
    points_F2 = points_F2[pareto_mask(points_F2, (DIRECTIONS[x], DIRECTIONS[y]))]
    corners: NDArray[np.float64] = points_F2[np.argsort(points_F2[:, 0], kind="stable")]
    return corners


def _seconds(trials: Sequence[TrialResult]) -> NDArray[np.float64]:
    """Give times of the commonest kind of device, (T,): those of other kinds do not compare, and are NaN."""
    timings = [trial.timing for trial in trials]
    kinds = Counter(timing.device for timing in timings if timing)
    kind = max(kinds, key=lambda device: kinds[device], default=None)
    return np.array([one.train_seconds if one and one.device == kind else np.nan for one in timings], dtype=np.float64)


def _hover(result: TrialResult, values: tuple[float, ...], front: FrontFile) -> str:
    lines = [f"<b>trial {trial_id(result.number)}</b>"]
    lines += [f"<b>{BASELINES[result.baseline]}</b>"] if result.baseline else []
    lines += [f"{front.score_label} {values[ACCURACY]:.4f}"]
    for place, write in ((FLOPS, human_flops), (BYTES, human_bytes)):
        whole = front.full[OBJECTIVES[place].name] if front.full else 0.0
        lines += [write(values[place]) + (f" ({values[place] / whole:.0%} of full)" if whole else "")]
    lines += [html.escape(f"{path} = {short(value)}") for path, value in result.searched.items()]
    return "<br>".join(lines)
