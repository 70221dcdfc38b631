"""A sampler for Optuna that knows what a trial will cost: hypervolume expected per training FLOP.

FLOPs and peak memory of a configuration can be forecast without training it; only its accuracy must be guessed, by
a Gaussian process. So the expected hypervolume improvement (Emmerich et al. 2006) has a closed form
(``improvement.py``), and the candidate that promises most of it per FLOP (Snoek et al. 2012, section 3.2)
is trained next.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from alast_tune.errors import ConfigError
from alast_tune.front import hypervolume
from alast_tune.results import DIRECTIONS
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.history import Observation, Params, TrialHistory, columns_of
from alast_tune.tune.improvement import Floats, Surrogate, expected_improvement
from alast_tune.tune.space import point

CANDIDATES = 256
"""A proposal is chosen from so many."""
SPREAD = 6
"""So many trials are spread over the costs before gains are expected: what is guessed from fewer looks for the front
where nothing has cost much yet."""
COUNTABLE = 1024
"""A space with no more configurations is looked at as a whole: its candidates are those not proposed yet."""
FORECASTS = 48
"""So many configurations' costs are forecast, once; those of others are interpolated."""
FORECAST_ERROR = 0.05
"""Standard deviation of a forecast's logarithm from the truth."""
EXACT = 8
"""Of the candidates that promise most by interpolated costs, so many are forecast themselves."""
LEAST_CHANCE = 0.01
"""Of fitting into memory, that any candidate is given."""
DEPTH = 0.05
"""Accuracies that lie further below the region are learnt from as if they lay so far below it: how bad a trial is that
is of no use tells nothing of where the good ones are, and would take up most of what is learnt."""
GAINS = 8
"""So many proposals in a row must promise little before little is expected: one alone may be off."""


class EhviSampler(BaseSampler):
    """Proposes what promises most hypervolume per training FLOP.

    Objectives are accuracy (maximized), training FLOPs and peak bytes (minimized), in this order. A running trial is
    taken for what is expected of it, so that workers do not chase the same gap; a stopped one for what it would have
    reached, by the gain of those that went on; one that failed by itself for the worst there is. Only complete ones
    are on the front that is to be improved.

    Args:
        space: of the study; choices among numbers are taken as ordered.
        forecast: training FLOPs and peak bytes of a configuration, without training it; raises ConfigError if it
            cannot work.
        reference: accuracy, FLOPs and bytes at which, or beyond which, a trial is worth nothing.
        seed: of the candidates.
        teaching: baselines that are points of the space, whose accuracies are learnt from.
        conditions: conditional parameter -> the choice, and its value, that it takes to be in force; such a parameter
            is called ``<value>/<path>`` and comes after the choice in the space.
        least: accuracy from which on a trial is worth something, as far as the study's trials tell; None: the
            reference's, whatever they tell.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        forecast: Callable[[Params], Sequence[float]],
        reference: Sequence[float],
        seed: int,
        teaching: Collection[str] = (),
        conditions: Mapping[str, tuple[str, str]] | None = None,
        least: Callable[[Sequence[FrozenTrial]], float] | None = None,
    ) -> None:
        self._space, self._conditions = dict(space), dict(conditions or {})
        self._least = least or (lambda trials: reference[0])
        self._reference_2 = np.asarray(reference[1:], dtype=np.float64)
        self._forecast = forecast
        self._draw = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._all = self._everything()
        self._forecasts: tuple[Floats, Floats] | None = None
        self._accuracy = Surrogate(least=0.02)  # the region is five points deep, and what lies below it is cut off
        self._costs = Surrogate(least=0.1), Surrogate(least=0.1)  # of their logarithms
        self._measured: list[Observation] | None = None
        """What the costs were last learnt from."""
        self._history = TrialHistory(teaching)
        self._fits = Surrogate(least=0.1)
        self._gains: deque[float] = deque(maxlen=GAINS)
        """What the latest proposals were expected to add, as shares of the front's hypervolume then."""

    @property
    def expected_gain(self) -> float | None:
        """The most that one of the latest proposals was expected to add, as a share of the front's hypervolume.

        None before there are :data:`GAINS` of them; infinite where nothing was in the region yet.
        """
        return max(self._gains) if len(self._gains) == GAINS else None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space."""
        return self._space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Params:
        """Propose a configuration."""
        trials = study.get_trials(deepcopy=False)
        unfinished = self._history.update(trials)
        running = [
            other
            for other in unfinished
            if other.state == TrialState.RUNNING and other.number != trial.number and BASELINE not in other.user_attrs
        ]
        proposed = len(self._history.known) + len(running)
        candidates = self._candidates([other.params for other in running])
        front_F3 = self._history.front()
        seen = self._history.observations()
        if len(seen) < SPREAD:
            return candidates[self._explore(self._expected_costs(seen, self._encode(candidates))[:, 0], proposed)]

        X_C = self._encode([*candidates, *(other.params for other in running)])
        costs_C2 = self._expected_costs(seen, X_C)
        X_T, values_T3, error_T = self._encode([observation[0] for observation in seen]), *columns_of(seen)
        least = self._least(self._history.telling(trials))
        self._accuracy.fit(X_T, np.maximum(values_T3[:, 0], least - DEPTH), error_T, proposed)
        mean_C, deviation_C = self._accuracy.predict(X_C)
        believed_R3 = np.c_[mean_C, costs_C2][len(candidates) :]
        scale_3 = np.array([1.0, *self._reference_2])
        points_F3 = np.concatenate([front_F3, believed_R3]) / scale_3
        chance_C = self._chance(X_C[: len(candidates)], proposed)

        def gain(chosen: NDArray[np.int64], costs_E2: Floats) -> Floats:
            return chance_C[chosen] * expected_improvement(
                mean_C[chosen], deviation_C[chosen], costs_E2 / self._reference_2, points_F3, least
            )

        every = np.arange(len(candidates))
        worth_C = gain(every, costs_C2[: len(candidates)]) / costs_C2[: len(candidates), 0]
        best = np.argsort(-worth_C, kind="stable")[:EXACT]
        known = [(place, costs) for place in best if (costs := self._try_forecast(candidates[place])) is not None]
        if not known:
            return candidates[int(best[0])]
        chosen, costs_E2 = np.array([place for place, _ in known]), np.array([costs for _, costs in known])
        gain_E = gain(chosen, costs_E2)
        first = int(np.argmax(gain_E / costs_E2[:, 0]))
        there = hypervolume(front_F3 / scale_3, (least, 1.0, 1.0), DIRECTIONS)
        self._gains.append(float(gain_E[first]) / there if there else math.inf)
        return candidates[int(chosen[first])]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw what does not belong to the space at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _try_forecast(self, params: Params) -> Sequence[float] | None:
        try:
            return self._forecast(params)
        except ConfigError:
            return None

    def _chance(self, X_C: Floats, trials: int) -> Floats:
        """How likely each candidate fits into memory, as its neighbours did; all are certain to while none has not."""
        params, fits = self._history.fitting()
        if all(fits):
            return np.ones(len(X_C))
        y_T = np.array(fits)
        self._fits.fit(self._encode(params), y_T, np.full(len(y_T), 0.05), trials)
        return np.clip(self._fits.mean(X_C), LEAST_CHANCE, 1.0)

    def _candidates(self, running: list[Params]) -> list[Params]:
        """Draw from what has not been proposed yet; in a large space half of them near what has been."""
        known, out = self._history.known, {point(params) for params in running}

        def is_new(params: Params) -> bool:
            place = point(params)
            return place not in known and place not in out

        if self._all:
            fresh = list(filter(is_new, self._all)) or self._all
            count = min(CANDIDATES, len(fresh))
            return [fresh[place] for place in self._draw.choice(len(fresh), count, replace=False)]
        drawn = self._points(CANDIDATES, [*self._history.params(), *running])
        return list(filter(is_new, drawn)) or drawn

    def _explore(self, flops_C: Floats, count: int) -> int:
        """Begin with the cheapest, then spread over the costs."""
        share = _van_der_corput(count) ** 2
        return int(np.argsort(flops_C)[round(share * (len(flops_C) - 1))])

    def _expected_costs(self, seen: list[Observation], X_C: Floats) -> Floats:
        """Interpolate between forecasts and what was measured, (C, 2)."""
        if self._forecasts is None:
            self._forecasts = self._forecast_some()
        X_P, forecasts_P2 = self._forecasts
        measured = [observation for observation in seen if math.isfinite(observation[1][1])]
        if measured != self._measured:
            self._measured = measured
            self._fit_costs(measured, X_P, forecasts_P2)
        return np.exp(np.stack([surrogate.mean(X_C) for surrogate in self._costs], axis=1))

    def _fit_costs(self, measured: list[Observation], X_P: Floats, forecasts_P2: Floats) -> None:
        X_T = np.concatenate([X_P, self._encode([observation[0] for observation in measured])])
        values_T2 = np.concatenate(
            [forecasts_P2, np.log([observation[1][1:] for observation in measured]).reshape(-1, 2)]
        )
        error_T = np.repeat([FORECAST_ERROR, 1e-3], [len(X_P), len(measured)])
        for surrogate, values_T in zip(self._costs, values_T2.T, strict=True):
            surrogate.fit(X_T, values_T, error_T, len(values_T))

    def _forecast_some(self) -> tuple[Floats, Floats]:
        pool = self._all if 0 < len(self._all) <= FORECASTS else self._points(FORECASTS)
        known: list[Params] = []
        costs: list[Sequence[float]] = []
        for params in pool:
            try:
                costs.append(self._forecast(params))
                known.append(params)
            except ConfigError as error:
                unworkable = error
        if not known:
            raise ConfigError("space", ", ".join(self._space), f"none of {len(pool)} points of it works: {unworkable}")
        return self._encode(known), np.log(costs)

    def _points(self, count: int, near: Sequence[Params] = ()) -> list[Params]:
        """Draw configurations; every second one with about half of its parameters as one of those near has them."""
        columns = [_from_unit(item, self._draw.random(count)) for item in self._space.values()]
        drawn: list[Params] = [dict(zip(self._space, values, strict=True)) for values in zip(*columns, strict=True)]
        # Of conditional parameters all are drawn; those that then are not in force are left out at the end.
        if near:
            chosen = self._draw.integers(len(near), size=count).tolist()
            kept = (self._draw.random((count, len(self._space))) < 0.5).tolist()
            for index in range(1, count, 2):
                other = near[chosen[index]]
                drawn[index] |= {
                    name: other[name] for name in itertools.compress(self._space, kept[index]) if name in other
                }
        return [self._in_force(params) for params in drawn] if self._conditions else drawn

    def _in_force(self, params: Params) -> Params:
        """Leave out what has no meaning beside the choices made."""
        return {name: value for name, value in params.items() if self._is_in_force(name, params)}

    def _is_in_force(self, name: str, params: Params) -> bool:
        choice, value = self._conditions.get(name, (None, None))
        return choice is None or params.get(choice) == value

    def _everything(self) -> list[Params]:
        """All configurations, if they are no more than COUNTABLE; else none."""
        found: list[Params] = [{}]
        for name, item in self._space.items():
            values = _values_of(item)
            taken = [self._is_in_force(name, params) for params in found]
            if values is None or sum(len(values) if takes else 1 for takes in taken) > COUNTABLE:
                return []
            found = [
                params | more
                for params, takes in zip(found, taken, strict=True)
                for more in ([{name: value} for value in values] if takes else [{}])
            ]
        return found

    def _encode(self, points: Sequence[Params]) -> Floats:
        """(T, D) in [0, 1]: a column a parameter, several for a choice among names.

        Conditional parameters of the same path share a column, the place of the value within its own range, 0.5 where
        none of them is in force; those that are choices among names have a column for each name, 0 where none is.
        """
        shared = [
            _to_unit(item, [params[name] for params in points])
            for name, item in self._space.items()
            if name not in self._conditions
        ]
        own: dict[tuple[str, str], Floats] = {}
        for name, (_, value) in self._conditions.items():
            path, item = name.removeprefix(f"{value}/"), self._space[name]
            names = [repr(choice) for choice in item.choices] if _is_of_names(item) else None
            there_T = np.array([name in params for params in points], dtype=bool)
            places_TC = _to_unit(item, [params[name] for params in points if name in params])
            for column, label in enumerate(names or [""]):
                place_T = own.setdefault((path, label), np.full(len(points), 0.0 if names else 0.5))
                place_T[there_T] = places_TC[:, column]
        return np.hstack([*shared, *(place_T[:, None] for place_T in own.values())])


def _van_der_corput(index: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: ever finer, always spread over [0, 1)."""
    return sum(int(bit) * 0.5 ** (place + 1) for place, bit in enumerate(reversed(f"{index:b}")))


def _values_of(item: BaseDistribution) -> Sequence[Any] | None:
    """List what a parameter may be; None if it is real."""
    if isinstance(item, CategoricalDistribution):
        return item.choices
    return range(item.low, item.high + 1, item.step) if isinstance(item, IntDistribution) else None


def _to_unit(item: BaseDistribution, values: Sequence[Any]) -> Floats:
    """Put values into [0, 1], (T, 1); a choice among names has a column for each, (T, names)."""
    if isinstance(item, CategoricalDistribution):
        order = _ordered(item)
        if order is None:
            same = [[value == choice for choice in item.choices] for value in values]
            return np.array(same, dtype=np.float64).reshape(len(values), len(item.choices))
        places_T = [order.index(value) for value in values]
        return np.array(places_T, dtype=np.float64)[:, None] / max(1, len(order) - 1)
    assert isinstance(item, FloatDistribution | IntDistribution)
    values_T1, low, high = np.array(values, dtype=np.float64)[:, None], item.low, item.high
    if item.log:
        values_T1, low, high = np.log(values_T1), math.log(low), math.log(high)
    return (values_T1 - low) / (high - low) if high > low else np.zeros_like(values_T1)


def _from_unit(item: BaseDistribution, units_T: Floats) -> list[Any]:
    """Look up the values at places in [0, 1)."""
    if isinstance(item, CategoricalDistribution):
        return [item.choices[place] for place in (units_T * len(item.choices)).astype(int).tolist()]
    assert isinstance(item, FloatDistribution | IntDistribution)
    if isinstance(item, IntDistribution):
        return list((item.low + (units_T * (item.high - item.low + 1)).astype(int)).tolist())
    low, high = (math.log(x) if item.log else x for x in (item.low, item.high))
    values_T = low + units_T * (high - low)
    return list(np.clip(np.exp(values_T) if item.log else values_T, item.low, item.high).tolist())


def _is_of_names(item: BaseDistribution) -> TypeGuard[CategoricalDistribution]:
    return isinstance(item, CategoricalDistribution) and _ordered(item) is None


def _ordered(item: CategoricalDistribution) -> list[Any] | None:
    """Choices in their order, if they are numbers."""
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in item.choices):
        return sorted(item.choices)
    return None
