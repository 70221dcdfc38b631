"""The search algorithms that are compared: rivals through their own classes, ours as the sweep drives it."""

import importlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from alast_tune.config import AlastConfig, SweepConfig, TrialConfig, flatten, parse
from alast_tune.results import DIRECTIONS, OBJECTIVES, TrialResult
from alast_tune.tune.forecast import Costs
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import enqueue_baselines
from benchmarks.replay import MARGIN, Floats, Table


class Random:
    """Grid points uniformly, each to its end."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._draw = np.random.default_rng(seed)

    def suggest(self, number: int) -> int | None:
        """Draw a grid point."""
        return int(self._draw.integers(self._table.grid))

    def go_on(self, number: int, epoch: int, values: Floats) -> bool:
        """Never stop."""
        return True

    def complete(self, number: int, values: Floats) -> None:
        """Learn nothing."""


class RayOptuna(Random):
    """Ray Tune's OptunaSearch as it is shipped, driven without a cluster; no scheduler."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        names = [objective.name for objective in OBJECTIVES]
        modes = ["max" if direction == "maximize" else "min" for direction in DIRECTIONS]
        self._search = OptunaSearch(metric=names, mode=modes, seed=seed)
        space = {str(place): tune.choice(values) for place, values in enumerate(table.space.values())}
        self._search.set_search_properties(None, None, space)

    def suggest(self, number: int) -> int | None:
        """Ask it."""
        params = self._search.suggest(str(number)) or {}
        return self._table.index({path: params[str(place)] for place, path in enumerate(self._table.space)})

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        result = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        self._search.on_trial_complete(str(number), result)


class Optuna(Random):
    """A sampler of Optuna's by ask and tell; no scheduler."""

    def __init__(self, sampler: Callable[..., optuna.samplers.BaseSampler], table: Table, seed: int) -> None:
        super().__init__(table, seed)
        self._study = optuna.create_study(sampler=sampler(seed=seed), directions=list(DIRECTIONS))
        self._space: dict[str, BaseDistribution] = {
            path: optuna.distributions.CategoricalDistribution(values) for path, values in table.space.items()
        }

    def suggest(self, number: int) -> int | None:
        """Ask it."""
        return self._table.index(self._study.ask(self._space).params)

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._study.tell(number, [float(value) for value in values])


class Moasha(Random):
    """Syne Tune's MOASHA, which stops trials by their objectives so far."""

    MODULE = "syne_tune.optimizer.schedulers.multiobjective.moasha"

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        np.random.seed(seed)  # noqa: NPY002 # it samples from numpy's global generator
        config_space = importlib.import_module("syne_tune.config_space")
        self._trial = importlib.import_module("syne_tune.backend.trial_status").Trial
        names = [objective.name for objective in OBJECTIVES]
        space = {path: config_space.choice(values) for path, values in table.space.items()}
        self._scheduler = importlib.import_module(self.MODULE).MOASHA(
            space, names, time_attr="epoch", max_t=table.epochs, random_seed=seed
        )
        self._trials: dict[int, Any] = {}

    def suggest(self, number: int) -> int | None:
        """Ask it."""
        config = self._scheduler.suggest().config
        self._trials[number] = self._trial(number, config, None)
        self._scheduler.on_trial_add(self._trials[number])
        return self._table.index(config)

    def go_on(self, number: int, epoch: int, values: Floats) -> bool:
        """Let it decide."""
        decision = self._scheduler.on_trial_result(self._trials[number], self._result(epoch, values))
        if decision == "STOP":
            self._scheduler.on_trial_remove(self._trials[number])
        return bool(decision != "STOP")

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._scheduler.on_trial_complete(self._trials[number], self._result(self._table.epochs, values))

    def _result(self, epoch: int, values: Floats) -> dict[str, float]:
        """Sign the objectives for an algorithm that has one mode for all: minimize."""
        result: dict[str, float] = {"epoch": epoch}
        for objective, value in zip(OBJECTIVES, values, strict=True):
            result[objective.name] = float(-value if objective.direction == "maximize" else value)
        return result


class Unheard:
    """Nobody who wants to know how trials fare."""

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        """Nothing."""

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def ended(self, result: TrialResult) -> None:
        """Nothing."""


class Ours(Random):
    """The sweep's own searcher and scheduler, as Ray Tune drives them.

    Args:
        table: what is known.
        seed: of the sampler.
        baselines: whether full fine-tuning and the paper's configuration come first, as in a sweep.
        settings: of the sweep.
    """

    def __init__(self, table: Table, seed: int, baselines: bool = False, **settings: Any) -> None:
        super().__init__(table, seed)
        space = {path: {"type": "categorical", "choices": values} for path, values in table.space.items()}
        sweep = parse(SweepConfig, {"trial": table.trial, "space": space, "trials": 10**6, "seed": seed} | settings)
        study = optuna.create_study(directions=list(DIRECTIONS))
        study.set_user_attr("reference_point", [0.0, *(MARGIN * table.full[1:])])
        if baselines:
            enqueue_baselines(study, sweep)
        somewhere = Packing(sweep, [Node("", cpu=1e6, memory=1e18)])
        self._searcher = StudySearcher(study, sweep, Unheard(), somewhere, self._forecast)
        self._scheduler = MoAsha(sweep, study)
        self._suggestions: dict[int, SimpleNamespace] = {}

    def suggest(self, number: int) -> int | None:
        """Ask it."""
        suggestion = self._searcher.suggest(str(number))
        if not isinstance(suggestion, dict):
            return None
        self._suggestions[number] = SimpleNamespace(config=suggestion)
        if suggestion["baseline"]:
            return self._table.grid + self._table.baselines.index(suggestion["baseline"])
        return self._index(parse(TrialConfig, suggestion["trial"]))

    def go_on(self, number: int, epoch: int, values: Floats) -> bool:
        """Let it decide."""
        result = self._result(epoch, values)
        decision = self._scheduler.on_trial_result(None, cast("TuneTrial", self._suggestions[number]), result)
        if decision == TrialScheduler.STOP:
            self._searcher.on_trial_complete(str(number), result)
            return False
        self._searcher.on_trial_result(str(number), result)
        return True

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._searcher.on_trial_complete(str(number), self._result(self._table.epochs, values))

    def _forecast(self, config: TrialConfig, growth: float) -> Costs:
        if not isinstance(config.method, AlastConfig) or config.method.reading == "paper":
            return Costs(0.0, 0)  # a baseline
        flops, peak = self._table.forecasts_C2[self._index(config)]
        return Costs(flops, int(peak))

    def _index(self, config: TrialConfig) -> int:
        return self._table.index(flatten(config))

    def _result(self, epoch: int, values: Floats) -> dict[str, Any]:
        """Put it as Tune does."""
        metrics = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        return {f"report/{name}": value for name, value in metrics.items()} | {"report/epoch": epoch}
