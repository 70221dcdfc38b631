"""Rivals whose packages are no part of the development environment; see ``PACKAGES``."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from alast_tune.config import parameters, point_of
from alast_tune.front import pareto_rank
from alast_tune.results import DIRECTIONS, OBJECTIVES
from benchmarks.measures import MARGIN, WITHIN
from benchmarks.replay import Floats, Table
from benchmarks.searchers import Params, Random, is_ordered, order_of

PACKAGES = {
    "MOASHA": ("syne_tune", "pip install --no-deps syne-tune"),
    "qLogNEHVI": ("botorch", "pip install botorch"),
    "PriMO": ("neps", "pip install neural-pipeline-search, which brings botorch 0.12, in an environment of its own"),
}
"""Search -> what it imports, and where that comes from."""


class Moasha(Random):
    """Syne Tune's MOASHA, which draws points at random and stops trials by their objectives so far.

    Its space is flat: all parameters are drawn, those not in force are ignored. Two things of version 0.16 are mended:
    it takes the order in which trials are sorted for their ranks, and measures distances between objectives of
    different units.
    """

    repeats = True

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = ()) -> None:
        super().__init__(table, seed, baselines)
        np.random.seed(seed)  # noqa: NPY002 # it samples from numpy's global generator
        moasha = importlib.import_module("syne_tune.optimizer.schedulers.multiobjective.moasha")
        sorting = importlib.import_module("syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority")
        choice = importlib.import_module("syne_tune.config_space").choice
        self._ranks_within = sorting.compute_epsilon_net
        self._trial = importlib.import_module("syne_tune.backend.trial_status").Trial
        self._scheduler = moasha.MOASHA(
            {name: choice(order_of(one)) for name, one in parameters(self.space).items()},
            [objective.name for objective in OBJECTIVES],
            time_attr="epoch",
            multiobjective_priority=self._priorities,
            max_t=table.epochs,
            random_seed=seed,
        )
        self._trials: dict[int, Any] = {}

    def ask(self, number: int, params: Params | None) -> int | None:
        """Ask it."""
        config = params or self._scheduler.suggest().config
        self._trials[number] = self._trial(number, config, None)
        self._scheduler.on_trial_add(self._trials[number])
        return self.table.index(config)

    def hear(self, number: int, epoch: int, values: Floats) -> bool:
        """Let it decide."""
        decision = self._scheduler.on_trial_result(self._trials[number], self._result(epoch, values))
        if decision == "STOP" and number not in self._baselines:
            self._scheduler.on_trial_remove(self._trials[number])
        return bool(decision != "STOP")

    def tell(self, number: int, values: Floats) -> None:
        """Tell it."""
        self._scheduler.on_trial_complete(self._trials[number], self._result(self.table.epochs, values))

    def _priorities(self, losses_TM: Floats) -> Floats:
        """Rank by front, and within a front by how far trials are from those before them."""
        ranks_T = pareto_rank(losses_TM, ["minimize"] * len(DIRECTIONS))
        scaled_TM = losses_TM / np.where(np.ptp(losses_TM, axis=0) > 0, np.ptp(losses_TM, axis=0), 1.0)
        priorities_T = np.zeros(len(losses_TM))
        for rank in range(int(ranks_T.max()) + 1):
            within = np.flatnonzero(ranks_T == rank)
            priorities_T[within] = (ranks_T < rank).sum() + self._ranks_within(scaled_TM[within], dim=0)
        return priorities_T

    def _result(self, epoch: int, values: Floats) -> dict[str, float]:
        """Sign the objectives for an algorithm that has one mode for all: minimize."""
        result: dict[str, float] = {"epoch": epoch}
        for objective, value in zip(OBJECTIVES, values, strict=True):
            result[objective.name] = float(-value if objective.direction == "maximize" else value)
        return result


class BoTorch(Random):
    """BoTorch's qLogNEHVI over all points, one at a time, those that run pending; no scheduler.

    A Gaussian process an objective, costs by their logarithms. The reference point is the corner of what counts. A
    parameter is a column, a choice among names one for each; conditional parameters of one path share their columns.
    It begins with ``START`` points at random; hyperparameters are found again when there are a fifth more trials.
    """

    START = 8

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = ()) -> None:
        super().__init__(table, seed, baselines)
        self._torch = torch = importlib.import_module("torch")
        torch.manual_seed(seed)
        self._models = importlib.import_module("botorch.models")
        self._fit = importlib.import_module("botorch.fit").fit_gpytorch_mll
        self._likelihood = importlib.import_module("gpytorch.mlls").SumMarginalLogLikelihood
        self._transform = importlib.import_module("botorch.models.transforms").Standardize
        self._acquisition = importlib.import_module(
            "botorch.acquisition.multi_objective.logei"
        ).qLogNoisyExpectedHypervolumeImprovement
        self._objective = importlib.import_module(
            "botorch.acquisition.multi_objective.objective"
        ).GenericMCMultiOutputObjective
        self._normal = importlib.import_module("botorch.sampling").SobolQMCNormalSampler
        self._X_CD = torch.tensor(_columns(table), dtype=torch.double)
        self._model: Any = None
        self._fitted = 0
        self._running: dict[int, int] = {}
        self._seen: list[tuple[int, Floats]] = []

    def ask(self, number: int, params: Params | None) -> int | None:
        """Maximize the acquisition function over the points that were not asked for yet."""
        asked = {*self._running.values(), *(place for place, _ in self._seen)}
        if params is not None:
            place = self.table.index(params)
        elif len(self._seen) < 2 or len(asked) < self.START:
            place = self.table.index(point_of(self.space, self._drawn))
        else:
            fresh = [place for place in range(len(self.table.points)) if place not in asked]
            if not fresh:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                place = fresh[int(self._worth(fresh).argmax())]
        self._running[number] = place
        return place

    def tell(self, number: int, values: Floats) -> None:
        """Learn."""
        self._seen.append((self._running.pop(number), values / [1.0, *(MARGIN * self.table.full[1:])]))

    def _worth(self, fresh: list[int]) -> Any:
        torch = self._torch
        X_TD = self._X_CD[[place for place, _ in self._seen]]
        Y_TM = torch.tensor(np.array([[a, -np.log(f), -np.log(p)] for _, (a, f, p) in self._seen]))
        model = self._models.ModelListGP(
            *(self._models.SingleTaskGP(X_TD, Y_T1, outcome_transform=self._transform(1)) for Y_T1 in Y_TM.split(1, 1))
        )
        if self._model is None or len(self._seen) >= 1.2 * self._fitted:
            self._fitted = len(self._seen)
            self._fit(self._likelihood(model.likelihood, model))
        else:
            for new, old in zip(model.parameters(), self._model.parameters(), strict=True):
                new.data = old.data
        self._model = model

        def objective(samples: Any, X: Any = None) -> Any:
            return torch.cat([samples[..., :1], -torch.exp(-samples[..., 1:])], dim=-1)

        acquisition = self._acquisition(
            model,
            ref_point=[self.floor, -1.0, -1.0],
            X_baseline=X_TD,
            sampler=self._normal(torch.Size([128]), seed=len(self._seen)),
            objective=self._objective(objective),
            prune_baseline=True,
            X_pending=self._X_CD[list(self._running.values())] if self._running else None,
        )
        with torch.no_grad():
            return torch.cat([acquisition(X[:, None]) for X in self._X_CD[fresh].split(128)])


def _columns(table: Table) -> Floats:
    """Put every point into the unit cube, (C, D)."""
    own: dict[tuple[str, str], Floats] = {}
    for name, one in parameters(table.sweep.space).items():
        order, ordered = order_of(one), is_ordered(one)
        for number, params in enumerate(table.points):
            if name not in params:
                continue
            for label in [""] if ordered else [repr(choice) for choice in order]:
                column_C = own.setdefault((one.path, label), np.full(len(table.points), 0.5 if ordered else 0.0))
                same = float(repr(params[name]) == label)
                column_C[number] = order.index(params[name]) / max(1, len(order) - 1) if ordered else same
    return np.stack(list(own.values()), axis=1)


class Primo(Random):
    """NePS's PriMO: MOASHA, whose trials are promoted, then Bayesian optimization with a prior for each objective.

    Its space is flat: all parameters are proposed, those not in force are ignored. It first spends ``START`` full
    trials' worth of epochs. Of each objective the good prior's centre is the table's best point among those that
    count, the wrong one's the table's worst; confidence is 0.75 of each parameter. What it asks for before earlier
    proposals have ended would get their names: here each has its own.
    """

    START = 5
    repeats = True

    def __init__(self, table: Table, seed: int, baselines: Sequence[str] = (), wrong: bool = False) -> None:
        super().__init__(table, seed, baselines)
        np.random.seed(seed)  # noqa: NPY002 # it samples from numpy's global generator
        importlib.import_module("torch").manual_seed(seed)
        space = importlib.import_module("neps.space.parameters")
        search_space = importlib.import_module("neps.space.search_space").SearchSpace
        algorithms = importlib.import_module("neps.optimizers.algorithms")
        ask_and_tell = importlib.import_module("neps.optimizers.ask_and_tell").AskAndTell
        self._parameters = parameters(self.space)
        elements = {
            _alias(place): space.HPOInteger(0, len(order_of(one)) - 1)
            if is_ordered(one)
            else space.HPOCategorical([f"{at}" for at in range(len(order_of(one)))])
            for place, one in enumerate(self._parameters.values())
            if len(order_of(one)) > 1
        }
        centers = {objective.name: self._center(m, wrong, elements) for m, objective in enumerate(OBJECTIVES)}
        sure = dict.fromkeys(elements, 0.75)
        self._optimizer = ask_and_tell(
            algorithms.primo(
                search_space(elements | {"epochs": space.HPOInteger(1, table.epochs, is_fidelity=True)}),
                prior_centers=centers,
                prior_confidences=dict.fromkeys(centers, sure),
                initial_design_size=self.START,
            )
        )
        self._names: dict[int, str] = {}
        self._epochs: dict[int, int] = {}
        self._continues: dict[int, int] = {}
        self._numbers: dict[str, int] = {}

    def ask(self, number: int, params: Params | None) -> int | None:
        """Ask it; a baseline's point is told when it is complete."""
        if params is not None:
            return None
        trials = self._optimizer.trials
        earlier = dict(trials)
        trial = self._optimizer.ask()
        name = trial.metadata.id
        if name in earlier:
            trials[name], name = earlier[name], f"{10**6 + number}"
            trials[name] = trial
        self._names[number], self._epochs[number] = name, int(trial.config["epochs"])
        self._numbers[name] = number
        if (before := trial.metadata.previous_trial_id) is not None:
            self._continues[number] = self._numbers[before]
        return self.table.index(self._point(trial.config))

    def continues(self, number: int) -> int | None:
        """Name the trial that is promoted."""
        return self._continues.get(number)

    def hear(self, number: int, epoch: int, values: Floats) -> bool:
        """Pause a trial that has as many epochs as were asked for."""
        if number in self._baselines or epoch < self._epochs[number]:
            return True
        self._optimizer.tell(self._names[number], self._result(values))
        return False

    def tell(self, number: int, values: Floats) -> None:
        """Tell it."""
        if number not in self._baselines:
            self._optimizer.tell(self._names[number], self._result(values))
            return
        place = self.table.point_of_baseline(self._baselines[number])
        assert place is not None
        config = self._config(self.table.points[place]) | {"epochs": self.table.epochs}
        name = f"{10**6 + number}_rung_{max(self._optimizer.optimizer.bracket_optimizer.rung_to_fid)}"
        self._optimizer.tell_custom(config_id=name, config=config, result=self._result(values))

    def _result(self, values: Floats) -> dict[str, list[float]]:
        """Scale the objectives, which it weighs as they are, to what counts."""
        accuracy, flops, peak = (values / [1.0, *(MARGIN * self.table.full[1:])]).tolist()
        return {"objective_to_minimize": [(1.0 - accuracy) / (1.0 - float(self.table.full[0]) + WITHIN), flops, peak]}

    def _center(self, m: int, wrong: bool, elements: Params) -> Params:
        """Find where one objective is best among points that count, or where it is worst."""
        finals_CM = self.table.finals[: len(self.table.points)]
        loss_C = finals_CM[:, m] * (-1.0 if DIRECTIONS[m] == "maximize" else 1.0)
        counts_C = finals_CM[:, 0] > self.table.full[0] - WITHIN
        place = int(np.argmax(loss_C) if wrong else np.argmin(np.where(counts_C, loss_C, np.inf)))
        config = self._config(self.table.points[place], only_in_force=True)
        return {alias: value for alias, value in config.items() if alias in elements}

    def _config(self, params: Params, *, only_in_force: bool = False) -> Params:
        """Put a point into its terms; what is not in force has the first value, or is left out."""
        config: Params = {}
        for place, (name, one) in enumerate(self._parameters.items()):
            if len(order_of(one)) > 1 and not (only_in_force and name not in params):
                at = order_of(one).index(params[name]) if name in params else 0
                config[_alias(place)] = at if is_ordered(one) else f"{at}"
        return config

    def _point(self, config: Params) -> Params:
        return {
            name: order_of(one)[int(config.get(_alias(place), 0))]
            for place, (name, one) in enumerate(self._parameters.items())
        }


def _alias(place: int) -> str:
    """Name a parameter where names with slashes have a meaning."""
    return f"p{place}"
