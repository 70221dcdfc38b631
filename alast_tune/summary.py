"""From the trials of a sweep to its front: what ``front.json`` holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from alast_tune.config import Limits
from alast_tune.errors import ConfigError, NothingCompleteError
from alast_tune.front import hypervolume, hypervolume_share, pareto_mask
from alast_tune.near_full import choose_knee, near_full
from alast_tune.objectives import DIRECTIONS, OBJECTIVES, objectives_of
from alast_tune.other_seeds import with_knee_of_means
from alast_tune.results import (
    FrontFile,
    FrontMember,
    Region,
    Reseeded,
    Timing,
    TrialCounts,
    TrialResult,
)
from alast_tune.scores import Score

IDEAL = (1.0, 0.0, 0.0)
"""Accuracy 1 at no cost."""


def trial_id(number: int) -> str:
    """Name a trial as folders, MLflow and ``front.json`` do: ``0007``."""
    return f"{number:04d}"


class FrontTracker:
    """The front so far: takes each trial's result as it comes, whatever their number, and forgets who is dominated.

    What is costly, members' records and hypervolumes, is made again only when the front has changed.

    Args:
        sweep: its name.
        reference: what hypervolume is measured from, in the order of the objectives; its accuracy is the region's.
        limits: that its trials were held to.
        results: of trials that have ended before.
        validation_images: that accuracies are of, if that is known.
        region: which accuracy counts.
    """

    def __init__(
        self,
        sweep: str,
        reference: Sequence[float],
        limits: Limits,
        results: Iterable[TrialResult] = (),
        validation_images: int | None = None,
        region: Region = Region(),  # noqa: B008 frozen
    ) -> None:
        self._sweep = sweep
        self._validation_images = validation_images
        self._reference = tuple(reference)
        self._region = region
        self._limits = limits
        self._score: Score = "accuracy"  # as long as there is no number either
        self._states: Counter[str] = Counter()
        self._members: list[TrialResult] = []
        self._full: dict[str, float] | None = None
        self._full_timing: Timing | None = None
        self._front: FrontFile | None = None
        self.launched = 0
        """Trials that a worker had, of those that have ended."""
        self.add(*results)

    def add(self, *results: TrialResult) -> bool:
        """Take in trials that have ended; returns whether the front is another one: only complete trials are on it."""
        self._states.update(result.state if result.origin is None else "earlier" for result in results)
        self.launched += sum(result.launched for result in results)
        if results:
            self._score = results[0].config.train.score  # the same in all
        for result in results:
            if result.baseline == "full" and result.values:
                self._full, self._full_timing, self._front = _objectives(result), result.timing, None
        complete = [result for result in results if result.state == "complete"]
        if not complete:
            return False
        candidates = self._members + complete
        on_front = pareto_mask([one.values or () for one in candidates], DIRECTIONS)
        if not on_front[len(self._members) :].any():
            return False
        self._members = [result for result, member in zip(candidates, on_front, strict=True) if member]
        self._front = None
        return True

    def measure_in(self, region: Region) -> None:
        """Count from another accuracy on, now that full fine-tuning's is known."""
        if region != self._region:
            self._region, self._front = region, None

    @property
    def counts(self) -> TrialCounts:
        """How trials have ended so far."""
        return TrialCounts(
            total=self._states.total() - self._states["earlier"],
            complete=self._states["complete"],
            infeasible=self._states["infeasible"],
            pruned=self._states["pruned"],
            failed=self._states["failed"],
            earlier=self._states["earlier"],
        )

    @property
    def front(self) -> FrontFile:
        """The front, cheapest first."""
        if self._front is None:
            members = sorted(self._members, key=lambda result: result.values[1] if result.values else 0.0)
            them = tuple(member_of(one) for one in members)
            full = self._full, self._full_timing, self._validation_images
            about = self._sweep, self._reference, self._region, self._limits
            self._front = _front_file(*about, self.counts, them, *full, score=self._score)
        return self._front.model_copy(update={"trials": self.counts})


def summarise(
    sweep: str,
    results: Iterable[TrialResult],
    reference: Sequence[float],
    test_accuracy: Mapping[int, float | None] | None = None,
    limits: Limits = Limits(),  # noqa: B008 frozen
    validation_images: int | None = None,
    region: Region = Region(),  # noqa: B008 frozen
) -> FrontFile:
    """Find the front of the complete trials, all at once; see :class:`FrontTracker`.

    ``test_accuracy``, by number, is that of trials whose results do not have it yet.
    """
    if test_accuracy:
        results = [replace(one, test_accuracy=test_accuracy.get(one.number, one.test_accuracy)) for one in results]
    return FrontTracker(sweep, reference, limits, results, validation_images, region).front


def check_complete(sweep: str, results: Sequence[TrialResult]) -> None:
    """Refuse to call a sweep done that has not one complete trial of its own.

    Raises:
        NothingCompleteError: says how many there are, and the commonest reason, with the figures of the trial that is
            nearest to a limit.
    """
    own = [result for result in results if result.origin is None]
    if any(result.state == "complete" for result in own):
        return
    reasons: dict[str, list[tuple[float, str]]] = {}
    for result in own:
        reason = f"{result.state}, {result.reason or 'for no known reason'}"
        kind = re.sub(r"[0-9.]+( [KMGTP]?i?(B|FLOP))?", "", reason)  # whatever the numbers in it
        reasons.setdefault(kind, []).append((result.excess, reason))
    commonest = max(reasons.values(), key=len, default=[])
    nearest = min(commonest, key=lambda one: one[0], default=(0.0, ""))[1]
    why = f"; {len(commonest)} of {len(own)} {nearest}" if commonest else ""
    raise NothingCompleteError(f"sweep {sweep} has no complete trial{why}")


def within(
    front: FrontFile, limits: Limits, tolerance: float | None = None, again: Reseeded | None = None
) -> FrontFile:
    """Leave out the members that break limits: what is left is the front of all trials that keep them.

    Nothing that was dominated comes back: whatever dominates it keeps every limit that it keeps. The knee is chosen
    anew, among members whose accuracy is at most ``tolerance`` below full fine-tuning's; None: in the sweep's region.
    See :func:`~alast_tune.near_full.choose_knee`. It is chosen by their means over other seeds, where ``again`` has
    these. What hypervolume is measured from stays the sweep's.
    """
    members = tuple(member for member in front.front if limits.allow(**member.objectives))
    both = front.limits, limits
    stricter = Limits(
        max_memory=min((one.max_memory for one in both if one.max_memory is not None), default=None),
        max_flops=min((one.max_flops for one in both if one.max_flops is not None), default=None),
        min_accuracy=max((one.min_accuracy for one in both if one.min_accuracy is not None), default=None),
    )
    full = front.full, front.full_timing, front.validation_images
    about = front.sweep, front.reference_point, front.region, stricter
    kept = _front_file(*about, front.trials, members, *full, tolerance, score=front.score)
    return with_knee_of_means(kept, again, tolerance)


def cheapest_within(front: FrontFile, tolerance: float) -> FrontMember | None:
    """Find the member with the fewest FLOPs of those whose accuracy is near that of full fine-tuning, or above it.

    Args:
        front: of one sweep.
        tolerance: how much less the accuracy may be, in [0, 1].

    Returns:
        None where full fine-tuning has not ended, or nobody is that near.
    """
    near = near_full(front.front, front.full, tolerance)
    return min(near, key=lambda member: member.objectives["train_flops"], default=None)


def joint_front(fronts: Sequence[FrontFile]) -> tuple[list[FrontFile], FrontFile]:
    """Put the fronts of several sweeps onto one scale, and find the front of all their members.

    Hypervolumes are measured from one point then: the worst of the sweeps' own reference points. Sweeps that have the
    same one keep their numbers.

    Args:
        fronts: of sweeps on the same images; the models may differ.

    Returns:
        The fronts in their order; and the joint one, whose members' ids are ``<sweep>/<trial>``. A result that a warm
        start has carried from one sweep into another is there once.

    Raises:
        ConfigError: sweeps on other images, or with another split of them, or by another ``train.score``: such
            accuracies do not compare.
    """
    _check_comparable(fronts)
    references_SM = np.array([front.reference_point for front in fronts])
    losses = [objective.direction == "minimize" for objective in OBJECTIVES]
    reference = tuple(np.where(losses, references_SM.max(axis=0), references_SM.min(axis=0)).tolist())
    region = Region(source="joint", floor=reference[0])
    shared = {"region": region, "reference_point": reference}
    rescaled = [front.model_copy(update=shared | _measured(front.front, reference)) for front in fronts]
    members: dict[tuple[object, ...], FrontMember] = {}
    for front in fronts:
        for member in front.front:
            joint = member.model_copy(update={"trial_id": f"{front.sweep}/{member.trial_id}"})
            members.setdefault((member.origin or front.sweep, *member.objectives.values()), joint)
    on_front = pareto_mask([list(member.objectives.values()) for member in members.values()], DIRECTIONS)
    best = [member for member, stays in zip(members.values(), on_front, strict=True) if stays]
    best.sort(key=lambda member: member.objectives["train_flops"])
    totals = {name: sum(getattr(front.trials, name) for front in fronts) for name in TrialCounts.model_fields}
    name = " + ".join(front.sweep for front in fronts)
    limits = fronts[0].limits if len({front.limits for front in fronts}) == 1 else Limits()
    about = name, reference, region, limits, TrialCounts(**totals), tuple(best)
    return rescaled, _front_file(*about, None, score=next((front.score for front in fronts if front.front), "accuracy"))


def _check_comparable(fronts: Sequence[FrontFile]) -> None:
    def decisive(front: FrontFile) -> dict[str, object]:
        config, data = front.front[0].config, front.front[0].config.data
        folder = data.root.name if data.dataset == "folder" and data.root else None
        values = {"train/score": config.train.score, "data/dataset": data.dataset, "data/root": folder}
        return values | {"data/validation_fraction": data.validation_fraction, "data/split_seed": data.split_seed}

    known = [front for front in fronts if front.front]
    for front in known[1:]:
        for field, theirs in decisive(front).items():
            ours = decisive(known[0])[field]
            if ours != theirs:
                remedy = f"has {field} = {theirs}, {known[0].sweep} has {ours}: such accuracies do not compare"
                raise ConfigError("sweep", front.sweep, remedy)


def _front_file(
    sweep: str,
    reference: tuple[float, ...],
    region: Region,
    limits: Limits,
    counts: TrialCounts,
    members: tuple[FrontMember, ...],
    full: dict[str, float] | None,
    full_timing: Timing | None = None,
    validation_images: int | None = None,
    tolerance: float | None = None,
    score: Score = "accuracy",
) -> FrontFile:
    chosen, chosen_within = choose_knee(members, full, tolerance, region)
    reference = region.floor, *reference[1:]
    pending = {"hypervolume": None, "hypervolume_share": None}
    return FrontFile(
        schema=1,
        sweep=sweep,
        objectives=objectives_of(score),
        reference_point=reference,
        region=region,
        score=score,
        **pending if region.source == "pending" else _measured(members, reference),
        limits=limits,
        trials=counts,
        knee=chosen,
        knee_within=chosen_within,
        front=members,
        full=full,
        full_timing=full_timing,
        validation_images=validation_images,
    )


def _measured(members: Sequence[FrontMember], reference: tuple[float, ...]) -> dict[str, float | None]:
    values_FM = np.array([list(member.objectives.values()) for member in members]).reshape(-1, len(OBJECTIVES))
    share = hypervolume_share(values_FM, reference, IDEAL, DIRECTIONS)
    return {"hypervolume": hypervolume(values_FM, reference, DIRECTIONS), "hypervolume_share": share}


def member_of(result: TrialResult) -> FrontMember:
    """Put a trial that has objectives as ``front.json`` has it."""
    return FrontMember(
        trial_id=trial_id(result.number),
        mlflow_run_id=result.mlflow_run_id,
        objectives=_objectives(result),
        test_accuracy=result.test_accuracy,
        epochs=result.epochs,
        config=result.config,
        params=result.params,
        baseline=result.baseline,
        origin=result.origin,
        timing=result.timing,
    )


def _objectives(result: TrialResult) -> dict[str, float]:
    return {o.name: value for o, value in zip(OBJECTIVES, result.values or (), strict=True)}
