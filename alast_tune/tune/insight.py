"""What a study tells beyond its front: which parameters matter, and how trials got where they are."""

from __future__ import annotations

import math
import warnings

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from alast_tune.config import SweepConfig, parameters
from alast_tune.plots import SearchReport
from alast_tune.results import OBJECTIVES
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.trials import epochs_of

LEAST_TRIALS = 5
"""Importances are not told from fewer trials, nor from fewer best ones: so few points say nothing."""


def report_search(study: optuna.Study, sweep: SweepConfig) -> SearchReport:
    """Collect what the page shows of the search."""
    importances = [importance(study, sweep, place) for place in range(len(OBJECTIVES))]
    trials = study.get_trials(deepcopy=False)
    curves = {trial.number: curve(trial) for trial in trials}
    own = [trial for trial in trials if "origin" not in trial.user_attrs]
    begun = min((trial.datetime_start for trial in own if trial.datetime_start), default=None)
    ended = {trial.number: trial.datetime_complete for trial in own if trial.datetime_complete}
    return SearchReport(
        space=sweep.space,
        importances={o.name: shares for o, shares in zip(OBJECTIVES, importances, strict=True) if shares},
        curves={number: points for number, points in curves.items() if len(points)},
        ended_hours={n: (end - begun).total_seconds() / 3600 for n, end in ended.items()} if begun else {},
        predicted_bytes={
            trial.number: trial.user_attrs["predicted_bytes"]
            for trial in trials
            if "predicted_bytes" in trial.user_attrs
        },
    )


def importance(study: optuna.Study, sweep: SweepConfig, objective: int) -> dict[str, float]:
    """Share of each searched parameter in what sets an objective's best trials apart from all (PED-ANOVA).

    Watanabe et al. 2023: the divergence between the parameter's values among the best tenth of the trials, or the best
    :data:`LEAST_TRIALS` if they are more, and among all trials that were run. So a parameter that matters only among
    bad trials has no share.

    Over complete trials without the baselines, whose parameters only stand for methods of their own. Empty where
    there are fewer than :data:`LEAST_TRIALS`, or as good as all came out alike, so that none are better.

    The parameters that all trials have share 1 among them; so do those of each variant, over its trials alone. Of a
    variant with one parameter there is nothing to share.
    """
    groups: dict[tuple[str, str] | None, list[str]] = {None: []}
    for name, one in parameters(sweep.space).items():
        groups.setdefault(one.condition, []).append(name)
    found: dict[str, float] = {}
    for condition, names in groups.items():
        if condition is None or len(names) > 1:
            found |= _shares(study, names, objective)
    return found


def _shares(study: optuna.Study, names: list[str], objective: int) -> dict[str, float]:
    """Share of each of these parameters, over the trials that have all of them."""
    sign = -1.0 if OBJECTIVES[objective].direction == "maximize" else 1.0  # the evaluator looks for the lowest

    def loss(trial: FrozenTrial) -> float:  # and leaves out what is not finite
        return math.nan if BASELINE in trial.user_attrs else sign * trial.values[objective]

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in complete if all(name in trial.params for name in names)]
    losses = sorted(value for value in map(loss, trials) if math.isfinite(value))
    if len(losses) < LEAST_TRIALS:
        return {}
    quantile = min(0.5, max(0.1, LEAST_TRIALS / len(losses)))
    if losses[math.ceil(quantile * len(losses)) - 1] == losses[-1]:  # all that equal the last of the best are best
        return {}
    best = PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks for the lowest
        shares = get_param_importances(study, evaluator=best, params=names, target=loss)
    return {path: float(share) for path, share in shares.items()}


def curve(trial: FrozenTrial) -> NDArray[np.float64]:
    """Objectives and training seconds after each epoch, (E, 4); seconds are NaN where an older study has none."""
    return np.array(epochs_of(trial.user_attrs), dtype=np.float64).reshape(-1, len(OBJECTIVES) + 1)
