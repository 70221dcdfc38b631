"""Whether anything in a sweep's space keeps its limits: asked before a cluster is started for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alast_tune.config import Choice, SweepConfig, TrialConfig, Variants, choices_of, parameters, point_of
from alast_tune.errors import ConfigError
from alast_tune.plots import human_bytes, human_flops
from alast_tune.tune.forecast import Costs
from alast_tune.tune.preview import points_of, value_at
from alast_tune.tune.search import BROKEN, FLOPS_SLACK
from alast_tune.tune.space import baseline_params, begins_with, trial_config

STARTS = 3
"""So many of the nearest points are gone on from, one parameter at a time."""
ENDS = (1e-9, 0.5, 1 - 1e-9)
"""Where in the range of a number is looked."""

Params = dict[str, Any]


def check_limits(sweep: SweepConfig, forecast: Callable[[TrialConfig], Costs]) -> None:
    """Refuse limits on costs that nothing in the space is forecast to keep.

    Looked at are the baselines, points drawn at random and, where none of them fits, what is cheaper than the nearest
    of those, one parameter at a time; all is over with the first one that fits.

    Args:
        sweep: with its limits.
        forecast: predicts a trial's costs.

    Raises:
        ConfigError: names the limit, what comes nearest to it, and what to do.
    """
    if sweep.max_memory is None and sweep.max_flops is None:
        return
    seen: dict[tuple[Any, ...], tuple[float, Mapping[str, float]]] = {}

    def look(params: Params, baseline: str | None = None) -> float:
        """Say by how much a point breaks a limit, as a share of the limit; infinite for what cannot work."""
        key = (baseline, *map(str, params.values()))
        if key not in seen:
            try:
                config = trial_config(sweep, params, baseline)
                costs = forecast(config)
            except ConfigError:  # two parameters, each fine, that contradict each other
                seen[key] = math.inf, {}
            else:
                learns = config.method.learns()
                flops = costs.train_flops * (1 - FLOPS_SLACK * learns)
                foreseen = {"train_flops": flops, "peak_bytes": float(costs.peak_bytes)}
                seen[key] = max(sweep.excess(**foreseen).values()), foreseen
        return seen[key][0]

    for baseline in begins_with(sweep):
        if look(baseline_params(sweep.trial, sweep.space, baseline), baseline) <= 0:
            return
    points = []
    for params in sweep.combinations() if sweep.sampler == "grid" else points_of(sweep):
        points.append((look(params), params))
        if points[-1][0] <= 0:
            return
    if sweep.sampler != "grid":
        for _, params in sorted(points, key=lambda point: point[0])[:STARTS]:
            if any(excess <= 0 for excess in _descent(sweep, params, look)):
                return
    excess, foreseen = min(seen.values(), key=lambda found: found[0])
    if math.isfinite(excess):
        raise _nothing(sweep, foreseen)


def _descent(sweep: SweepConfig, params: Params, look: Callable[[Params], float]) -> Iterator[float]:
    """Change one parameter at a time for as long as that comes nearer to the limits; gives how near."""
    best, better = look(params), True
    while better:
        better = False
        for name, one in parameters(sweep.space).items():
            item, whole = one.distribution, isinstance(one.distribution, Choice | Variants)
            if not one.in_force(params):
                continue
            for value in (choices_of(item) or ()) if whole else (value_at(item, unit) for unit in ENDS):
                changed = _completed(sweep, params | {name: value})
                excess = look(changed)
                yield excess
                if excess < best:
                    best, params, better = excess, changed, True


def _completed(sweep: SweepConfig, params: Params) -> Params:
    """Keep what is in force; what another variant then has of its own is in the middle."""
    return point_of(
        sweep.space,
        lambda one: params[one.name] if one.name in params else value_at(one.distribution, 0.5),
    )


def _nothing(sweep: SweepConfig, foreseen: Mapping[str, float]) -> ConfigError:
    """Say which limit the nearest point breaks the most, and by how much."""
    excess = sweep.excess(**foreseen)
    limit = max(excess, key=lambda name: excess[name])
    value = sweep.max_memory if limit == "max_memory" else sweep.max_flops
    human = human_bytes if limit == "max_memory" else human_flops
    broken = " and ".join(BROKEN[name](sweep, foreseen) for name, amount in excess.items() if amount > 0)
    remedy = (
        f"no setting of the space is forecast to keep the limits: of the nearest one {broken} ({1 + excess[limit]:.3g} "
        f"times the limit); give more, or a smaller model, image or batch (--trial.train.batch-size)"
    )
    return ConfigError(limit, human(float(value or 0)), remedy)
