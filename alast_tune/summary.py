"""From the trials of a sweep to its front: what ``front.json`` holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from alast_tune.config import Limits
from alast_tune.errors import ConfigError, NothingCompleteError
from alast_tune.front import front_probability, hypervolume, hypervolume_share, pareto_mask
from alast_tune.near_full import choose_knee, members_that_count, near_full
from alast_tune.objectives import DIRECTIONS, OBJECTIVES, objectives_of
from alast_tune.results import (
    FrontFile,
    FrontMember,
    Region,
    Reseeded,
    ReseededMember,
    SeedRun,
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


def within(front: FrontFile, limits: Limits, tolerance: float | None = None) -> FrontFile:
    """Leave out the members that break limits: what is left is the front of all trials that keep them.

    Nothing that was dominated comes back: whatever dominates it keeps every limit that it keeps. The knee is chosen
    anew, among members whose accuracy is at most ``tolerance`` below full fine-tuning's; None: in the sweep's region.
    See :func:`~alast_tune.near_full.choose_knee`. What hypervolume is measured from stays the sweep's.
    """
    members = tuple(member for member in front.front if limits.allow(**member.objectives))
    given = {name: getattr(limits, name) for name in Limits.model_fields if getattr(limits, name) is not None}
    stricter = front.limits.model_copy(update=given)
    full = front.full, front.full_timing, front.validation_images
    about = front.sweep, front.reference_point, front.region, stricter
    return _front_file(*about, front.trials, members, *full, tolerance, score=front.score)


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
    about = name, reference, region, Limits(), TrialCounts(**totals), tuple(best)
    return rescaled, _front_file(*about, None, score=next((front.score for front in fronts if front.front), "accuracy"))


def reseeded(front: FrontFile, runs: Mapping[str, Sequence[SeedRun]], seed: int = 0) -> Reseeded:
    """Say what a front's members come to over seeds, and how sure it is that each belongs there.

    Means are over the new runs alone: the old one was chosen for its luck. Behind the probabilities, the spread of
    accuracy is pooled over the members, who have few runs each; that of the costs, which differ in it, is each one's
    own.

    Args:
        front: whose members were run again.
        runs: of each member, by trial id, two or more with the same seeds; who has none is left out.
        seed: of the draws behind the probabilities.
    """
    members = [member for member in front.front if runs.get(member.trial_id)]
    values_FRM = np.array([[list(run.objectives.values()) for run in runs[member.trial_id]] for member in members])
    count = values_FRM.shape[1]
    means_FM, spreads_FM = values_FRM.mean(axis=1), values_FRM.std(axis=1, ddof=1)
    noise_FM = spreads_FM.copy()
    noise_FM[:, 0] = np.sqrt((spreads_FM[:, 0] ** 2).mean())
    freedom = len(members) * (count - 1)
    generator = np.random.default_rng(seed)
    probabilities_F = front_probability(means_FM, noise_FM / np.sqrt(count), DIRECTIONS, freedom, generator)

    def named(values_M: NDArray[np.float64]) -> dict[str, float]:
        return {objective.name: float(value) for objective, value in zip(OBJECTIVES, values_M, strict=True)}

    return Reseeded(
        schema=1,
        sweep=front.sweep,
        seeds=tuple(run.seed for run in runs[members[0].trial_id]),
        members=tuple(
            ReseededMember(
                trial_id=member.trial_id,
                found=member.objectives,
                runs=tuple(runs[member.trial_id]),
                mean=named(means_M),
                spread=named(spreads_M),
                front_probability=float(probability),
                baseline=member.baseline,
            )
            for member, means_M, spreads_M, probability in zip(
                members, means_FM, spreads_FM, probabilities_F, strict=True
            )
        ),
    )


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


def in_the_mean(front: FrontFile, again: Reseeded) -> FrontFile:
    """Replace the objectives of a front's members and of full fine-tuning by their means over other seeds.

    The knee is chosen again. Members without such runs, hypervolumes and the number of validation images are left out.
    """
    found = {member.trial_id: member for member in again.members}
    members = []
    for member in front.front:
        if member.trial_id in found:
            tested = [run.test_accuracy for run in found[member.trial_id].runs if run.test_accuracy is not None]
            means = {"objectives": found[member.trial_id].mean, "test_accuracy": fmean(tested) if tested else None}
            members.append(member.model_copy(update=means))
    itself = {member.trial_id for member in again.members if member.baseline == "full"}
    itself |= {member.trial_id for member in front.front if member.baseline == "full"}  # older files do not say it
    full = next((member.mean for member in again.members if member.trial_id in itself), None)
    within = front.region.within if front.region.source == "full" else None
    knee, near = choose_knee(members, full, within, front.region)
    unknown = dict.fromkeys(("hypervolume", "hypervolume_share", "validation_images"))
    return front.model_copy(update=unknown | {"front": tuple(members), "full": full, "knee": knee, "knee_within": near})


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
