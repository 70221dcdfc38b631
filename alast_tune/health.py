"""What is suspect about a sweep: each check is a function of records, and gives a note or None."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alast_tune.config import Choice, Distribution, FloatRange, IntRange, Variants, parameters
from alast_tune.near_full import NEAR, uncertainty_words
from alast_tune.results import BASELINES, FrontFile, Reseeded, TrialResult
from alast_tune.scores import SCORES
from alast_tune.summary import trial_id

EDGE = 0.05
"""A value in this share of its range, on the scale that is searched, lies at its edge."""
LEAST_BEST, LEAST_TRIALS, MOST_TRIALS = 3, 20, 2000
"""Good trials that the check of edges needs; trials that the check of parameters needs, and the most it looks at."""
ALIKE = 0.01
"""A trial whose accuracy is less than a baseline's by at most this may replace the baseline."""
FORECAST_ERROR = 0.1
SHUFFLES = 400


@dataclass(frozen=True)
class Note:
    """Something to look into."""

    heading: str
    text: str
    """What was found, and what to do about it; plain text, which may hold names from the sweep."""


def health_notes(
    front: FrontFile,
    results: Sequence[TrialResult],
    space: Mapping[str, Distribution],
    measured: Mapping[int, tuple[float, float]],
    reseeded: Reseeded | None = None,
) -> list[Note]:
    """Make every check; ``measured`` is as in :func:`memory_forecast_is_off`."""
    found = (
        few_validation_images(front),
        edge_of_the_range(front, results, space),
        accuracy_is_unexplained(results, space),
        no_better_than_its_baseline(results),
        seeds_outweigh_members(reseeded) if reseeded else None,
        memory_forecast_is_off(measured),
    )
    return [note for note in found if note]


def few_validation_images(front: FrontFile) -> Note | None:
    """Tell where chance in the validation images is larger than the differences that choices go by."""
    words = uncertainty_words(front, ALIKE)
    if words is None:
        return None
    text = (
        f"{words.capitalize()}: smaller differences in accuracy, as within 1 point of full fine-tuning, may be chance. "
        "Choose among members that are so near by cost, or validate on more images (trial.data.validation_fraction)."
    )
    return Note("Few validation images", text)


def edge_of_the_range(
    front: FrontFile, results: Sequence[TrialResult], space: Mapping[str, Distribution]
) -> Note | None:
    """Find parameters that half or more of the best trials have at the same edge of their range.

    The best are the front's members within ``NEAR`` of full fine-tuning, or all members where those are too few;
    baselines do not count, whose parameters nobody has searched. A conditional parameter is looked at in the best
    trials of its variant, if they are enough.
    """
    least = front.full["accuracy"] - NEAR - 1e-9 if front.full else 0.0
    members = {member.trial_id: member.objectives["accuracy"] for member in front.front if not member.baseline}
    near = {name for name, accuracy in members.items() if accuracy >= least}
    chosen = near if len(near) >= LEAST_BEST else members.keys()
    best = [result for result in results if trial_id(result.number) in chosen]
    if len(best) < LEAST_BEST:
        return None
    found = []
    for name, one in parameters(space).items():
        those = [result for result in best if one.in_force(result.params)]
        if len(those) < LEAST_BEST:
            continue
        values = (result.params.get(name) for result in those)
        places = [place for value in values if (place := _place(one.distribution, value)) is not None]
        for edge, bound in (("lowest", 0.0), ("highest", 1.0)):
            there = sum(abs(place - bound) <= EDGE for place in places)
            if 2 * there >= len(those):
                found.append(f"{name} is at its {edge} in {there} of {len(those)}")
    if not found:
        return None
    text = f"Of the best trials of the search, {'; '.join(found)}. Better ones may lie beyond: widen these ranges."
    return Note("The best trials lie at the edge of the space", text)


def accuracy_is_unexplained(
    results: Sequence[TrialResult], space: Mapping[str, Distribution], seed: int = 0
) -> Note | None:
    """Tell whether accuracy goes with any one parameter more than chance would have it.

    A parameter's values are put into groups, thirds of the trials or its choices, and the trials that lack it; the
    share of the variance of accuracy's rank that lies between the groups is compared with that after shuffling, for the
    best parameter each time. Above 5% of the shuffles reaching as much, nothing is explained.
    """
    trials = [
        r for r in results if r.state == "complete" and r.values and not r.baseline and space.keys() <= r.params.keys()
    ]
    trials = trials[:: -(-len(trials) // MOST_TRIALS) or 1]
    groups = [
        found
        for name, one in parameters(space).items()
        if len(found := _groups(one.distribution, [t.params.get(name) for t in trials])) > 1
    ]
    accuracies_T = np.array([trial.values[0] for trial in trials if trial.values])
    if len(trials) < LEAST_TRIALS or not groups or np.ptp(accuracies_T) == 0:
        return None
    ranks_T = np.unique(accuracies_T, return_inverse=True)[1].astype(np.float64)
    generator = np.random.default_rng(seed)
    shares = [_explained(ranks_T, found) for found in groups]
    by_chance = [
        max(_explained(shuffled_T, found) for found in groups)
        for shuffled_T in (generator.permutation(ranks_T) for _ in range(SHUFFLES))
    ]
    if np.mean(np.array(by_chance) >= max(shares) - 1e-12) <= 0.05:
        return None
    score = SCORES[trials[0].config.train.score]
    text = (
        f"Over {len(trials)} trials the most telling parameter accounts for {max(shares):.0%} of the differences in "
        f"{score}, which chance alone often does. What matters may not be in the space, or differences are noise: "
        "look at the spread over seeds (--reseed), or train longer."
    )
    return Note(f"No parameter explains the {score}", text)


def no_better_than_its_baseline(results: Sequence[TrialResult], alike: float = ALIKE) -> Note | None:
    """Name the baselines that no trial of the search replaces: as accurate but for ``alike``, cheaper in both costs."""
    complete = [(result, result.values) for result in results if result.state == "complete" and result.values]
    searched = [values for result, values in complete if not result.baseline]
    unbeaten = []
    for baseline, (accuracy, flops, peak) in ((r.baseline, v) for r, v in complete if r.baseline):
        if not any(a >= accuracy - alike - 1e-9 and f < flops and p < peak for a, f, p in searched):
            unbeaten.append(f"{BASELINES[baseline]} ({accuracy:.4f})")
    if not searched or not unbeaten:
        return None
    text = (
        f"No trial of the search comes within {100 * alike:g} point of {' or '.join(unbeaten)} with fewer FLOPs and "
        "less memory. More trials, more epochs or another space may."
    )
    return Note("Nothing better than the baseline", text)


def seeds_outweigh_members(reseeded: Reseeded) -> Note | None:
    """Compare the spread of accuracy over seeds, pooled over members, with the spread of the members' means."""
    means_F = np.array([member.mean["accuracy"] for member in reseeded.members])
    spreads_F = np.array([member.spread["accuracy"] for member in reseeded.members])
    noise = math.sqrt(float((spreads_F**2).mean())) if len(means_F) > 1 else 0.0
    between = float(means_F.std(ddof=1)) if len(means_F) > 1 else math.inf
    if noise <= between:
        return None
    text = (
        f"Accuracy differs by {noise:.4f} (standard deviation) between seeds of one member, and by {between:.4f} "
        "between members: which of them is more accurate is luck. Choose among them by cost."
    )
    return Note("Seeds differ more than members", text)


def memory_forecast_is_off(measured: Mapping[int, tuple[float, float]]) -> Note | None:
    """Name trials whose peak memory was not as forecast, by more than a tenth.

    Args:
        measured: trial number -> predicted and measured peak, bytes.
    """
    errors = {number: peak / predicted - 1 for number, (predicted, peak) in measured.items()}
    off = {number: error for number, error in errors.items() if abs(error) > FORECAST_ERROR}
    if not off:
        return None
    worst = max(off, key=lambda number: abs(off[number]))
    text = (
        f"In {len(off)} of {len(errors)} trials the peak memory was more than 10% off its forecast; furthest off is "
        f"trial {trial_id(worst)}, {abs(off[worst]):.0%} {'above' if off[worst] > 0 else 'below'} it. Trials share a "
        "device by this forecast: if it is too low, leave more room."
    )
    return Note("The memory forecast was off", text)


def _place(item: Distribution, value: object) -> float | None:
    """Scale a value to [0, 1] over its range; None for choices, and for ranges of so few values that most are edges."""
    if isinstance(item, Choice | Variants) or not isinstance(value, int | float) or item.high <= item.low:
        return None
    if isinstance(item, IntRange) and item.high - item.low < 4:
        return None
    if isinstance(item, FloatRange) and item.log:
        return math.log(value / item.low) / math.log(item.high / item.low)
    return (value - item.low) / (item.high - item.low)


def _groups(item: Distribution, values: Sequence[object]) -> list[NDArray[np.bool_]]:
    """Put trials into groups by a parameter's value: its choices, or thirds of the trials; masks, (T,) each."""
    labels_T: NDArray[Any]
    if isinstance(item, Choice | Variants):
        labels_T = np.array([str(value) for value in values])
    else:
        numbers_T = np.array(values, dtype=np.float64)  # NaN where the trial lacks it
        known_T = np.isfinite(numbers_T)
        labels_T = np.full(len(numbers_T), -1)
        if known_T.any():
            labels_T[known_T] = np.searchsorted(np.quantile(numbers_T[known_T], [1 / 3, 2 / 3]), numbers_T[known_T])
    return [labels_T == label for label in np.unique(labels_T)]


def _explained(ranks_T: NDArray[np.float64], groups: Sequence[NDArray[np.bool_]]) -> float:
    """Measure the share of the variance that lies between groups."""
    mean = ranks_T.mean()
    between = sum(mask_T.sum() * (ranks_T[mask_T].mean() - mean) ** 2 for mask_T in groups)
    return float(between / ((ranks_T - mean) ** 2).sum())
