"""The sampler that a sweep asks for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from alast_tune.config import SweepConfig, TrialConfig, is_conditional
from alast_tune.tune.attributes import DUPLICATE_OF
from alast_tune.tune.forecast import Costs
from alast_tune.tune.grid import GridSampler
from alast_tune.tune.region import search_floor
from alast_tune.tune.sampler import EhviSampler
from alast_tune.tune.space import BASELINES, conditions_of, is_point, to_optuna, trial_config


class SharedGpSampler(optuna.samplers.GPSampler):
    """Optuna's Gaussian process of a conditional space: of the parameters that all trials have, the others by chance.

    Where a variant has none of its own, what promises most may have been tried, and would be proposed for ever: after
    a proposal that repeats another all is drawn by chance.
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the parameters that all trials have."""
        before = study.get_trials(deepcopy=False)[: trial.number]
        if before and DUPLICATE_OF in before[-1].user_attrs:
            return {}
        return super().sample_relative(study, trial, search_space)


def sampler_for(
    study: optuna.Study, sweep: SweepConfig, forecast: Callable[[TrialConfig, float], Costs]
) -> optuna.samplers.BaseSampler:
    """Make the sweep's sampler; where there are trials already, one that does not repeat their draws.

    Args:
        study: with its ``reference_point``.
        sweep: names the sampler, and has the space and the limits.
        forecast: predicts a trial's costs.
    """
    space = to_optuna(sweep.space)
    if sweep.sampler == "grid":
        return GridSampler(space, list(sweep.combinations()))
    conditional = is_conditional(sweep.space)  # what Optuna's samplers cannot model then, they draw independently
    seed = (sweep.seed + 7919 * len(study.get_trials(deepcopy=False))) % 2**32
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, sweep.trials // 4)))
    if sweep.sampler == "gp":
        gp = optuna.samplers.GPSampler
        return SharedGpSampler(seed=seed, warn_independent_sampling=False) if conditional else gp(seed=seed)
    if sweep.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)
    _, flops, peak = study.user_attrs["reference_point"]
    worst = (
        0.0,
        min(sweep.max_flops or flops, flops),
        min(sweep.max_memory or peak, peak),
    )

    def costs(params: dict[str, Any]) -> tuple[float, float]:
        found = forecast(trial_config(sweep, params), 0.0)
        return found.train_flops, found.peak_bytes

    teaching = [baseline for baseline in BASELINES if is_point(sweep, baseline)]

    def least(trials: Sequence[FrozenTrial]) -> float:
        return search_floor(sweep, study.user_attrs, trials)

    return EhviSampler(space, costs, worst, seed, teaching, conditions_of(sweep.space), least)
