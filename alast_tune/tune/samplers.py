"""The sampler that a sweep asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.tune.forecast import Costs
from alast_tune.tune.grid import GridSampler
from alast_tune.tune.region import search_floor
from alast_tune.tune.sampler import EhviSampler
from alast_tune.tune.space import BASELINES, is_point, to_optuna, trial_config


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
    seed = sweep.seed + 7919 * len(study.get_trials(deepcopy=False))
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, sweep.trials // 4)))
    if sweep.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if sweep.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
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
    return EhviSampler(
        space, costs, worst, seed, teaching, lambda trials: search_floor(sweep, study.user_attrs, trials)
    )
