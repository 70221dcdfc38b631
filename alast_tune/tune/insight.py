"""What a study tells beyond its front: which parameters matter, and how trials got where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from alast_tune.config import SweepConfig
from alast_tune.plots import SearchReport
from alast_tune.results import OBJECTIVES

LEAST_TRIALS = 5
"""Importances are not told from fewer trials, nor from fewer best ones: so few points say nothing."""


def report_search(study: optuna.Study, sweep: SweepConfig) -> SearchReport:
    """Collect what the pages about the search show."""
    trials = study.get_trials(deepcopy=False)
    importances = [importance(trials, sweep, place) for place in range(len(OBJECTIVES))]
    curves = {trial.number: curve(trial) for trial in trials if "curve" in trial.user_attrs}
    return SearchReport(
        space=sweep.space,
        importances={o.name: shares for o, shares in zip(OBJECTIVES, importances, strict=True) if shares},
        curves={number: points for number, points in curves.items() if len(points)},
    )


def importance(trials: Sequence[FrozenTrial], sweep: SweepConfig, objective: int) -> dict[str, float]:
    """Share of each searched parameter in what sets an objective's best trials apart from all (PED-ANOVA).

    Watanabe et al. 2023: the divergence between the parameter's values among the best tenth of the trials, or the best
    :data:`LEAST_TRIALS` if they are more, and among all trials that were run. So a parameter that matters only among
    bad trials has no share.

    Over complete trials without the landmarks, whose parameters only stand for methods of their own. Empty where
    there are fewer than :data:`LEAST_TRIALS`, or as good as all came out alike, so that none are better.
    """
    told = [
        create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[objective])
        for trial in trials
        if trial.state == TrialState.COMPLETE and "landmark" not in trial.user_attrs
    ]
    if len(told) < LEAST_TRIALS:
        return {}
    quantile, direction = min(0.5, max(0.1, LEAST_TRIALS / len(told))), OBJECTIVES[objective].direction
    values = sorted((trial.value for trial in told if trial.value is not None), reverse=direction == "maximize")
    if values[math.ceil(quantile * len(values)) - 1] == values[-1]:  # those at the edge count as best, all of them
        return {}
    alone = optuna.create_study(direction=direction)
    alone.add_trials(told)
    best = PedAnovaImportanceEvaluator(target_quantile=quantile)
    shares = get_param_importances(alone, evaluator=best, params=list(sweep.space))
    return {path: float(share) for path, share in shares.items()}


def curve(trial: FrozenTrial) -> NDArray[np.float64]:
    """Objectives and training seconds after each epoch, (E, 4); seconds are NaN where an older study has none."""
    objectives = np.array(trial.user_attrs.get("curve", []), dtype=np.float64).reshape(-1, len(OBJECTIVES))
    seconds = trial.user_attrs.get("seconds", [math.nan] * len(objectives))
    return np.column_stack([objectives, np.array(seconds, dtype=np.float64)])
