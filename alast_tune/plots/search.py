"""What the figures about the search show: axes of the space, importances, ways to accuracy. Plain numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alast_tune.config import Choice, Distribution, FloatRange, IntRange, Variants, choices_of, ends_of, parameters
from alast_tune.plots.cloud import BASELINE_COLOURS, BLUE, VERMILLION
from alast_tune.plots.units import byte_unit, flop_unit, short, time_unit
from alast_tune.results import BASELINES, FrontFile, TrialResult
from alast_tune.scores import SCORES
from alast_tune.summary import FrontTracker, trial_id

NOT_TOLD = "too few trials, or all alike"


@dataclass(frozen=True)
class SearchReport:
    """What a study tells beyond its trials' results."""

    space: Mapping[str, Distribution]
    """What varied, by path."""
    importances: Mapping[str, Mapping[str, float]]
    """Objective -> parameter -> share; without the objectives for which they cannot be told. Shares of parameters that
    all trials have add up to 1, and so do those of each variant's own."""
    curves: Mapping[int, NDArray[np.float64]]
    """Trial number -> (E, 4): accuracy, training FLOPs, peak bytes and training seconds after each epoch; seconds
    are NaN where they were not kept."""
    ended_hours: Mapping[int, float] = field(default_factory=dict)
    """Trial number -> hours from the first trial's start to this one's end, the time between two drivers included;
    only of the sweep's own."""
    predicted_bytes: Mapping[int, float] = field(default_factory=dict)
    """Trial number -> peak memory that was forecast before it was launched; without trials of older versions."""


@dataclass(frozen=True)
class Axis:
    """One upright axis of parallel coordinates, with the places of T trials on it."""

    label: str
    places_T: NDArray[np.float64]
    low: float
    high: float
    ticks: Mapping[float, str]

    def height(self, place: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Scale places on the axis to 0 at its foot and 1 at its top."""
        return np.asarray((place - self.low) / (self.high - self.low))


def objective_names(front: FrontFile) -> tuple[str, str, str]:
    """Name what a sweep searches, in the order of ``OBJECTIVES``."""
    return front.score_label, "training FLOPs", "peak memory"


def space_axes(space: Mapping[str, Distribution], trials: Sequence[TrialResult]) -> list[Axis]:
    """Lay out what varied, by path, and what came out of it, for complete trials; who lacks a setting is at "-"."""
    labels = brief(list(space))
    values_TM = np.array([trial.values for trial in trials], dtype=np.float64)
    flops, flops_name = flop_unit(values_TM[:, 1].max())
    size, size_name = byte_unit(values_TM[:, 2].max())
    axes = [_parameter(labels[path], item, [_value(trial, path) for trial in trials]) for path, item in space.items()]
    units = (
        (SCORES[trials[0].config.train.score], 1.0),
        (f"training\n({flops_name})", flops),
        (f"peak\n({size_name})", size),
    )
    return axes + [_linear(label, column / unit) for (label, unit), column in zip(units, values_TM.T, strict=True)]


def charted(front: FrontFile, results: Sequence[TrialResult], space: Mapping[str, Distribution]) -> list[TrialResult]:
    """Choose the complete trials that the search proposed, dominated ones first and the knee last."""
    members = {member.trial_id for member in front.front}
    found = [
        result
        for result in results
        if result.state == "complete" and not result.baseline and space.keys() <= result.params.keys()
    ]
    return sorted(found, key=lambda result: standing(front, members, result))


def varying(space: Mapping[str, Distribution], trials: Sequence[TrialResult]) -> dict[str, Distribution]:
    """Leave out the settings that are the same in all trials; of a single trial nothing is left out."""
    found = by_path(space, trials)
    seen = {path: {str(_value(trial, path)) for trial in trials} for path in found}
    return {path: item for path, item in found.items() if len(trials) < 2 or len(seen[path]) > 1}


def by_path(space: Mapping[str, Distribution], trials: Sequence[TrialResult]) -> dict[str, Distribution]:
    """Join the parameters that set the same path, of the variants that any of these trials has."""
    found: dict[str, list[Distribution]] = {}
    for one in parameters(space).values():
        if any(one.in_force(trial.params) for trial in trials):
            found.setdefault(one.path, []).append(one.distribution)
    return {path: _joined(items, [_value(trial, path) for trial in trials]) for path, items in found.items()}


def _joined(items: Sequence[Distribution], values: Sequence[Any]) -> Distribution:
    """Make one distribution of several that reaches as far as all of them."""
    ends = [end for item in items for end in ends_of(item)]
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if all(item == items[0] for item in items):
        return items[0]
    if all(isinstance(item, Choice) for item in items) or len(numbers) < len(ends):
        seen = {str(end): end for end in [*ends, *(value for value in values if value is not None)]}
        in_order = sorted(seen.values()) if len(numbers) == len(ends) else seen.values()
        return Choice(choices=tuple(in_order))
    low, high = min(numbers), max(numbers)
    if any(isinstance(end, float) for end in numbers):
        return FloatRange(low=low, high=high, log=low > 0 and any(getattr(item, "log", False) for item in items))
    return IntRange(low=int(low), high=int(high))


def _value(trial: TrialResult, path: str) -> Any:
    """Look up what a trial has at a path; None for a setting that its variant lacks."""
    return trial.searched.get(path, trial.params.get(path))


@dataclass(frozen=True)
class Moment:
    """How far a sweep was when a trial had ended."""

    name: str
    """Of the trial."""
    flops: float
    """Spent on all trials until then, stopped and failed ones included."""
    hours: float
    """Since the first trial began."""
    share: float
    """Hypervolume of the front so far, as a share of the box."""


def history(front: FrontFile, results: Sequence[TrialResult], report: SearchReport, most: int = 200) -> list[Moment]:
    """Follow the hypervolume from the sweep's beginning, trial by trial; at ``most`` even places of more trials.

    In one reference from the beginning, the sweep's; empty while that is not known.
    """
    if front.hypervolume_share is None:
        return []
    ended = [result for result in results if result.number in report.ended_hours]
    ended.sort(key=lambda result: report.ended_hours[result.number])
    earlier = [result for result in results if result.origin is not None]
    tracker = FrontTracker(front.sweep, front.reference_point, front.limits, earlier, region=front.region)
    points = [Moment("the beginning", 0.0, 0.0, tracker.front.hypervolume_share or 0.0)]
    size = -(-len(ended) // most)
    for start in range(0, len(ended), size or 1):
        part = ended[start : start + size]
        tracker.add(*part)
        spent = sum(float(report.curves[one.number][-1, 1]) for one in part if one.number in report.curves)
        last = part[-1].number
        moment = Moment(f"trial {trial_id(last)}", points[-1].flops + spent, report.ended_hours[last], 0.0)
        points.append(replace(moment, share=tracker.front.hypervolume_share or 0.0))
    return points


def measured_memory(results: Sequence[TrialResult], report: SearchReport) -> dict[int, tuple[float, float]]:
    """Pair predicted and measured peak bytes of the trials that trained, by number."""
    return {
        result.number: (report.predicted_bytes[result.number], float(report.curves[result.number][-1, 2]))
        for result in results
        if report.predicted_bytes.get(result.number) and result.number in report.curves
    }


def colour_range(front: FrontFile, trials: Sequence[TrialResult]) -> tuple[float, float]:
    """Least and largest accuracy of the members among trials, or of all of them if none is one."""
    members = {member.trial_id for member in front.front}
    shown = [trial for trial in trials if trial_id(trial.number) in members] or trials
    accuracy = [trial.values[0] for trial in shown if trial.values]
    return min(accuracy), max(accuracy)


def standing(front: FrontFile, members: set[str], result: TrialResult) -> int:
    """Tell where a trial stands: 0 dominated, 1 on the front, 2 the knee."""
    name = trial_id(result.number)
    return 2 if name == front.knee else int(name in members)


def brief(paths: Sequence[str]) -> dict[str, str]:
    """Leave out of paths the section that they begin with, where they can be told apart without it."""
    tails = {path: path.partition("/")[2] or path for path in paths}
    seen = Counter(tails.values())
    return {path: tail if seen[tail] == 1 else path for path, tail in tails.items()}


def ranked(report: SearchReport) -> dict[str, str]:
    """Order parameters by their mean importance over the objectives, the largest first; gives their labels.

    Conditional ones come after those that all trials have, variant by variant, and keep their whole names.
    """
    importances, known = report.importances, parameters(report.space)
    conditions = {name: one.condition for name, one in known.items() if one.condition}
    groups = list(dict.fromkeys(conditions.values()))
    names = dict.fromkeys(name for shares in importances.values() for name in shares)
    labels = brief([name for name in names if name not in conditions])

    def rank(name: str) -> tuple[int, float]:
        group = 1 + groups.index(conditions[name]) if name in conditions else 0
        return group, -sum(shares.get(name, 0.0) for shares in importances.values())

    return {name: labels.get(name, name) for name in sorted(names, key=rank)}


@dataclass(frozen=True)
class Way:
    """How a trial came to its accuracy, an epoch at a time."""

    name: str
    """Trial id, and what is special about it."""
    kind: str
    """``member``, ``full``, ``paper`` or ``knee``: who is drawn alike; a baseline that is the knee is the knee."""
    accuracy_E: NDArray[np.float64]
    costs_E3: NDArray[np.float64]
    """In the units of :func:`ways`' labels."""


WAY_STYLES = {"member": (BLUE, 1.2), "full": (BASELINE_COLOURS["full"], 2.2), "paper": (BASELINE_COLOURS["paper"], 2.2)}
WAY_STYLES |= {"knee": (VERMILLION, 3.2)}
"""Colour and width of a line, from the back to the front."""
WAY_NAMES = {"member": "front", **BASELINES, "knee": "knee"}


def ways(
    front: FrontFile, results: Sequence[TrialResult], curves: Mapping[int, NDArray[np.float64]]
) -> tuple[list[Way], tuple[str, str, str]]:
    """Collect the ways of the front's members and of complete baselines, from the back to the front, and axis labels.

    A label is empty for a cost that no trial has.
    """
    members = {member.trial_id for member in front.front}
    chosen = []
    for result in results:
        name = trial_id(result.number)
        if result.state == "complete" and result.number in curves and (name in members or result.baseline):
            kind = "knee" if name == front.knee else result.baseline or "member"
            chosen.append((list(WAY_STYLES).index(kind), f"trial {name}", kind, curves[result.number]))
    chosen.sort(key=lambda one: one[:2])
    top = np.zeros(3)
    for *_, curve_E4 in chosen:
        top = np.fmax(top, np.fmax.reduce(curve_E4[:, 1:], axis=0))
    flops, flops_name = flop_unit(top[0])
    size, size_name = byte_unit(top[1])
    time, time_name = time_unit(top[2])
    timed = any(np.isfinite(curve_E4[:, 3]).any() for *_, curve_E4 in chosen)
    labels = (f"Training ({flops_name})", f"Peak memory ({size_name})", f"Training time ({time_name})" if timed else "")
    units = np.array([flops, size, time])
    return [Way(name, kind, curve_E4[:, 0], curve_E4[:, 1:] / units) for _, name, kind, curve_E4 in chosen], labels


def _parameter(label: str, item: Distribution, values: Sequence[Any]) -> Axis:
    """Make the axis of a setting; trials that lack it are below its range, at "-"."""
    there_T = np.array([value is not None for value in values])
    axis = _range(label, item, [value for value in values if value is not None])
    if there_T.all():
        return axis
    below = axis.low - 0.12 * (axis.high - axis.low)
    places_T = np.full(len(values), below)
    places_T[there_T] = axis.places_T
    return Axis(axis.label, places_T, below, axis.high, {below: "-", **axis.ticks})


def _range(label: str, item: Distribution, values: Sequence[float | str]) -> Axis:
    label = label.replace("/", "/\n").replace("_", "_\n")
    if isinstance(item, Choice | Variants):
        # By their words: 1, 1.0 and True are different choices, and equal to Python.
        names = [str(choice) for choice in choices_of(item) or ()]
        places = np.array([names.index(str(value)) for value in values], dtype=np.float64)
        return Axis(label, places, -0.2, len(names) - 0.8, dict(enumerate(names)))
    places = np.array(values, dtype=np.float64)
    if isinstance(item, FloatRange) and item.log:
        low, high = math.log10(item.low), math.log10(item.high)
        ticks = {low: short(item.low), high: short(item.high)}
        ticks |= {
            float(power): short(10.0**power)
            for power in range(math.ceil(low), math.floor(high) + 1)
            if min(power - low, high - power) > 0.12 * (high - low)
        }
        return _widened(label, np.log10(places), low, high, ticks)
    if isinstance(item, IntRange):
        whole = [round(at) for at in np.linspace(item.low, item.high, 7).tolist()]
        return _widened(label, places, item.low, item.high, {float(at): str(at) for at in whole})
    even = np.linspace(item.low, item.high, 5).tolist()
    return _widened(label, places, item.low, item.high, {at: short(at) for at in even})


def _linear(label: str, places_T: NDArray[np.float64]) -> Axis:
    low, high = float(places_T.min()), float(places_T.max())
    return _widened(label, places_T, low, high, {at: f"{at:.3g}" for at in np.linspace(low, high, 5).tolist()})


def _widened(label: str, places_T: NDArray[np.float64], low: float, high: float, ticks: Mapping[float, str]) -> Axis:
    """Make an axis, with some length even if all is at one place."""
    half = 0.0 if high > low else 0.5 * (abs(low) or 1.0)
    return Axis(label, places_T, low - half, high + half, ticks)
