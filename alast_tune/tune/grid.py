"""A sampler for Optuna that tries everything: Optuna's own ends the study by itself, which Ray Tune has to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.space import point


class GridSampler(BaseSampler):
    """Proposes every combination once, in order.

    What the study has when it is first asked is taken, so that a resumed sweep goes on where the last driver was.

    Args:
        space: of the study, without real parameters.
        grid: its combinations.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], grid: Sequence[dict[str, Any]]) -> None:
        self._space = dict(space)
        self._grid = grid
        self._left: list[dict[str, Any]] | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters are chosen together."""
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Take the first combination that no other trial has, and that agrees with what this one has already."""
        if "fixed_params" in trial.system_attrs:  # enqueued: a combination that failed, run again
            return {}
        if self._left is None:
            others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
            taken = {point(other.params) for other in others if BASELINE not in other.user_attrs}
            self._left = [params for params in reversed(self._grid) if point(params) not in taken]
        place = next(
            place for place in reversed(range(len(self._left))) if trial.params.items() <= self._left[place].items()
        )
        return self._left.pop(place)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Nothing lies outside the space."""
        raise ValueError(f"{param_name} is not in the grid")
