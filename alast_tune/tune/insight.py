"""What a study tells beyond its front: which parameters matter, and how trials got where they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from alast_tune.config import SweepConfig
from alast_tune.plots import SearchReport
from alast_tune.results import OBJECTIVES
from alast_tune.tune.trials import epochs_of

LEAST_TRIALS = 5
"""Importances are not told from fewer: a forest of so few points says nothing."""


def report_search(study: optuna.Study, sweep: SweepConfig) -> SearchReport:
    """Collect what the pages about the search show."""
    importances = [importance(study, sweep, place) for place in range(len(OBJECTIVES))]
    curves = {trial.number: curve(trial) for trial in study.get_trials(deepcopy=False)}
    return SearchReport(
        space=sweep.space,
        importances={o.name: shares for o, shares in zip(OBJECTIVES, importances, strict=True) if shares},
        curves={number: points for number, points in curves.items() if len(points)},
    )


def importance(study: optuna.Study, sweep: SweepConfig, objective: int) -> dict[str, float]:
    """Share that each searched parameter has in an objective's variance (fANOVA, Hutter et al. 2014).

    Over complete trials without the landmarks, whose parameters only stand for methods of their own. Empty where
    there are fewer than :data:`LEAST_TRIALS`, or all came out alike.
    """

    def searched(trial: FrozenTrial) -> float:  # the evaluator leaves out what is not finite
        return math.nan if "landmark" in trial.user_attrs else trial.values[objective]

    target: Callable[[FrozenTrial], float] = searched
    values = [target(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    values = [value for value in values if math.isfinite(value)]
    if len(values) < LEAST_TRIALS or min(values) == max(values):
        return {}
    shares = get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=sweep.seed), params=list(sweep.space), target=target
    )
    return {path: float(share) for path, share in shares.items()}


def curve(trial: FrozenTrial) -> NDArray[np.float64]:
    """Objectives and training seconds after each epoch, (E, 4); seconds are NaN where an older study has none."""
    return np.array(epochs_of(trial.user_attrs), dtype=np.float64).reshape(-1, len(OBJECTIVES) + 1)
