"""From the trials of a sweep to its front: what ``front.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alast_tune.front import hypervolume, hypervolume_share, knee, pareto_mask
from alast_tune.results import DIRECTIONS, OBJECTIVES, FrontFile, FrontMember, TrialCounts, TrialResult

IDEAL = (1.0, 0.0, 0.0)
"""Accuracy 1 at no cost."""


def trial_id(number: int) -> str:
    """Name a trial as folders, MLflow and ``front.json`` do: ``0007``."""
    return f"{number:04d}"


def summarise(
    sweep: str,
    results: Sequence[TrialResult],
    reference: Sequence[float],
    test_accuracy: Mapping[int, float | None] | None = None,
) -> FrontFile:
    """Find the front of the complete trials; no other trial can be on it.

    Args:
        sweep: its name.
        results: every trial.
        reference: what hypervolume is measured from, in the order of the objectives.
        test_accuracy: of members that have been tested, by number.
    """
    tested = test_accuracy or {}
    complete = [result for result in results if result.state == "complete" and result.values is not None]
    values_TM = np.array([result.values for result in complete], dtype=float).reshape(-1, len(OBJECTIVES))
    on_front = pareto_mask(values_TM, DIRECTIONS) if complete else np.zeros(0, dtype=bool)
    members = sorted(
        (result for result, member in zip(complete, on_front, strict=True) if member),
        key=lambda result: result.values[1] if result.values else 0.0,
    )
    compromise = None
    if members:
        compromise = members[knee(np.array([member.values for member in members]), DIRECTIONS)].number
    states = [result.state for result in results]
    return FrontFile(
        schema=1,
        sweep=sweep,
        objectives=OBJECTIVES,
        reference_point=tuple(reference),
        hypervolume=hypervolume(values_TM, reference, DIRECTIONS),
        hypervolume_share=hypervolume_share(values_TM, reference, IDEAL, DIRECTIONS),
        trials=TrialCounts(
            total=len(results),
            complete=states.count("complete"),
            pruned=states.count("pruned"),
            failed=states.count("failed"),
        ),
        knee=None if compromise is None else trial_id(compromise),
        front=tuple(
            FrontMember(
                trial_id=trial_id(member.number),
                mlflow_run_id=member.mlflow_run_id,
                objectives={o.name: value for o, value in zip(OBJECTIVES, member.values or (), strict=True)},
                test_accuracy=tested.get(member.number),
                epochs=member.epochs,
                config=member.config,
            )
            for member in members
        ),
    )
