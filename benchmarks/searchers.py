"""The search algorithms that are compared: Optuna's, alone and in Ray Tune, and ours as the sweep drives it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from alast_tune.config import Parameter, SweepConfig, TrialConfig, choices_of, parameters, parse, point_of
from alast_tune.results import DIRECTIONS, OBJECTIVES, TrialResult
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.forecast import Costs
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.space import baseline_params
from benchmarks.measures import MARGIN, WITHIN
from benchmarks.replay import Floats, Table

Params = dict[str, Any]
AGAIN = 20
"""Times that a search is asked again that proposes what it has proposed before."""


def is_ordered(one: Parameter) -> bool:
    """Whether the choices are numbers."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in choices_of(one.distribution) or ()
    )


def order_of(one: Parameter) -> list[Any]:
    """List the choices, numbers in their order."""
    return (sorted if is_ordered(one) else list)(choices_of(one.distribution) or ())


class Random:
    """Draws points at random, the variant first and then its settings, all values alike; each runs to its end.

    It is the base of the others. Baselines go first and run to their end. One that is a point of the space is told to
    the algorithm as a trial of that point; of others the algorithm hears nothing. What it has proposed before it is
    asked to replace, up to ``AGAIN`` times.

    Args:
        table: what there is.
        seed: of the algorithm.
        baselines: names of those that go first.
    """

    repeats = False
    """Whether a proposal is taken as it comes, even a second time."""

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = ()) -> None:
        self.table = table
        self.space = table.sweep.space
        self._draw = np.random.default_rng(seed)
        self._waiting = list(baselines)
        self._baselines: dict[int, str] = {}
        self._proposed: set[int | None] = set()
        self._full = self._best = 0.0

    def suggest(self, number: int) -> int | None:
        """Begin with the baselines; then ask."""
        if not self._waiting:
            return self._ask_for_new(number)
        self._baselines[number] = name = self._waiting.pop(0)
        place = self.table.point_of_baseline(name)
        if place is not None:
            self._proposed.add(self.ask(number, self.table.points[place]))
        return self.table.baseline(name)

    def go_on(self, number: int, epoch: int, values: Floats) -> bool:
        """Let it decide on trials that are no baselines."""
        if number not in self._baselines:
            return self.hear(number, epoch, values)
        if self._knows(number):
            self.hear(number, epoch, values)
        return True

    def complete(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._best = max(self._best, float(values[0]))
        if self._baselines.get(number) == "full":
            self._full = float(values[0])
        if self._knows(number):
            self.tell(number, values)

    def continues(self, number: int) -> int | None:
        """Name the stopped trial with which one goes on."""
        return None

    def ask(self, number: int, params: Params | None) -> int | None:
        """Propose a point, that of a baseline if it is given."""
        return self.table.index(params or point_of(self.space, self._drawn))

    def withdraw(self, number: int) -> None:
        """Hear that a proposal will not be tried."""

    def hear(self, number: int, epoch: int, values: Floats) -> bool:
        """Hear an epoch's objectives, and say whether the trial goes on."""
        return True

    def tell(self, number: int, values: Floats) -> None:
        """Hear the final objectives."""

    @property
    def floor(self) -> float:
        """Accuracy that counts, as far as is known: so near full fine-tuning, or before that is complete the best."""
        return (self._full or self._best) - WITHIN

    def excess(self, values: Floats) -> Floats:
        """Tell by how much objectives lie beyond the corner of what counts, costs in multiples of it."""
        accuracy, flops, peak = values / [1.0, *(MARGIN * self.table.full[1:])]
        return np.array([self.floor - accuracy, flops - 1.0, peak - 1.0])

    def _ask_for_new(self, number: int) -> int | None:
        place = self.ask(number, None)
        for _ in range(0 if self.repeats else AGAIN):
            if place is None or place not in self._proposed:
                break
            self.withdraw(number)
            place = self.ask(number, None)
        self._proposed.add(place)
        return place

    def _knows(self, number: int) -> bool:
        name = self._baselines.get(number)
        return name is None or self.table.point_of_baseline(name) is not None

    def _drawn(self, one: Parameter) -> Any:
        choices = choices_of(one.distribution) or ()
        return choices[int(self._draw.integers(len(choices)))]


class Cheapest(Random):
    """Trains the points in the order of their forecast FLOPs and learns nothing: what a table gives away by costs."""

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = ()) -> None:
        super().__init__(table, seed, baselines)
        self._order = iter(np.argsort(table.forecasts_C2[:, 0], kind="stable").tolist())

    def ask(self, number: int, params: Params | None) -> int | None:
        """Propose the next one."""
        return self.table.index(params) if params else next(self._order, None)


class RayOptuna(Random):
    """Ray Tune's OptunaSearch as it is shipped, driven without a cluster; no scheduler.

    As a user of Ray Tune gets it: it may propose a configuration again and pays for it, and every list of values is a
    categorical parameter, as ``tune.choice`` makes it.
    """

    repeats = True

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = ()) -> None:
        super().__init__(table, seed, baselines)
        self._names = {name: str(place) for place, name in enumerate(parameters(self.space))}  # it splits at slashes
        places = (table.point_of_baseline(name) for name in baselines)
        first = [self._named(table.points[place]) for place in places if place is not None]
        self.search = OptunaSearch(
            self._define,
            metric=[objective.name for objective in OBJECTIVES],
            mode=["max" if direction == "maximize" else "min" for direction in DIRECTIONS],
            points_to_evaluate=first or None,
            seed=seed,
        )

    def ask(self, number: int, params: Params | None) -> int | None:
        """Ask it, which proposes the baselines' points first."""
        return self.table.index(self.propose(str(number)))

    def propose(self, trial: str) -> Params:
        """Ask it for the parameters of a trial."""
        found = self.search.suggest(trial) or {}
        return {name: found[place] for name, place in self._names.items() if place in found}

    def tell(self, number: int, values: Floats) -> None:
        """Tell it."""
        result = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        self.search.on_trial_complete(str(number), result)

    def _named(self, params: Params) -> Params:
        return {self._names[name]: value for name, value in params.items()}

    def _define(self, trial: optuna.Trial) -> None:
        choose = trial.suggest_categorical
        point_of(self.space, lambda one: choose(self._names[one.name], choices_of(one.distribution) or ()))


class Optuna(Random):
    """A sampler of Optuna's by ask and tell, which chooses a variant first and then what is in force; no scheduler.

    Settings that are numbers are integers to it, their places in their order.

    Args:
        sampler: makes one with a ``seed``.
        table: what there is.
        seed: of the sampler.
        baselines: names of those that go first.
        flat: all parameters are proposed at once, those not in force being ignored.
        constrained: accuracy and costs beyond the corner of what counts break a constraint.
    """

    def __init__(
        self,
        sampler: Callable[..., optuna.samplers.BaseSampler],
        table: Table,
        seed: int,
        baselines: Sequence[str] = (),
        flat: bool = False,
        constrained: bool = False,
    ) -> None:
        super().__init__(table, seed, baselines)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(sampler=sampler(seed=seed), directions=list(DIRECTIONS))
        self._parameters = parameters(self.space)
        self._all = {name: _distribution(one) for name, one in self._parameters.items()} if flat else {}
        self._constrained = constrained
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self, number: int, params: Params | None) -> int | None:
        """Ask it."""
        if params:
            ordered = {name: order_of(one) for name, one in self._parameters.items() if is_ordered(one)}
            places = {name: ordered[name].index(value) for name, value in params.items() if name in ordered}
            self._study.enqueue_trial(params | places)
        self._trials[number] = trial = self._study.ask(self._all)
        return self.table.index(point_of(self.space, lambda one: self._suggest(trial, one)))

    def withdraw(self, number: int) -> None:
        """Let the study forget it."""
        self._study.tell(self._trials.pop(number), state=optuna.trial.TrialState.FAIL)

    def tell(self, number: int, values: Floats) -> None:
        """Tell it."""
        trial = self._trials.pop(number)
        if self._constrained:
            for limit, amount in zip(OBJECTIVES, self.excess(values), strict=True):
                trial.set_constraint(limit.name, float(amount))
        self._study.tell(trial, [float(value) for value in values])

    def _suggest(self, trial: optuna.Trial, one: Parameter) -> Any:
        order = order_of(one)
        if is_ordered(one):
            return order[trial.suggest_int(one.name, 0, len(order) - 1)]
        return trial.suggest_categorical(one.name, order)


def _distribution(one: Parameter) -> optuna.distributions.BaseDistribution:
    order = order_of(one)
    if is_ordered(one):
        return optuna.distributions.IntDistribution(0, len(order) - 1)
    return optuna.distributions.CategoricalDistribution(order)


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
        baselines: names of those that go first.
        settings: of the sweep.
    """

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(table, seed)
        values = table.sweep.given_values() | {"sampler": "ehvi", "trials": 10**6, "seed": seed} | settings
        sweep = parse(SweepConfig, values)
        self._study = optuna.create_study(directions=list(DIRECTIONS))
        self._study.set_user_attr("reference_point", [0.0, *(MARGIN * table.full[1:])])
        for baseline in baselines:
            params = baseline_params(sweep.trial, sweep.space, baseline)
            self._study.enqueue_trial(params, user_attrs={BASELINE: baseline})
        somewhere = Packing(sweep, [Node("", cpu=1e6, memory=1e18)])
        self._searcher = StudySearcher(self._study, sweep, Unheard(), somewhere, self._forecast)
        self._scheduler = MoAsha(sweep, self._study)
        self._suggestions: dict[int, SimpleNamespace] = {}

    def ask(self, number: int, params: Params | None) -> int | None:
        """Ask it; again if it wants Tune's loop to turn."""
        suggestion = self._searcher.suggest(str(number)) or self._searcher.suggest(str(number))
        if not isinstance(suggestion, dict):
            return None
        self._suggestions[number] = SimpleNamespace(config=suggestion)
        if suggestion["baseline"]:
            return self.table.baseline(suggestion["baseline"])
        return self.table.configs[parse(TrialConfig, suggestion["trial"])]

    def hear(self, number: int, epoch: int, values: Floats) -> bool:
        """Let it decide."""
        result = self._result(epoch, values)
        decision = self._scheduler.on_trial_result(None, cast("TuneTrial", self._suggestions[number]), result)
        if decision == TrialScheduler.STOP:
            self._searcher.on_trial_complete(str(number), result)
            return False
        self._searcher.on_trial_result(str(number), result)
        return True

    def tell(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._searcher.on_trial_complete(str(number), self._result(self.table.epochs, values))

    def _forecast(self, config: TrialConfig, growth: float) -> Costs:
        place = self.table.configs.get(config)
        if place is None:
            return Costs(0.0, 0)  # a baseline
        flops, peak = self.table.forecasts_C2[place]
        return Costs(flops, int(peak))

    def _result(self, epoch: int, values: Floats) -> dict[str, Any]:
        """Put it as Tune does."""
        metrics = {objective.name: float(value) for objective, value in zip(OBJECTIVES, values, strict=True)}
        return {f"report/{name}": value for name, value in metrics.items()} | {"report/epoch": epoch}
