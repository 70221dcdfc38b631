"""Trials that have ended, in a third of the memory: a sweep keeps all of them, and looks at few."""

from __future__ import annotations

import pickle
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

Alike = dict[tuple[tuple[str, BaseDistribution], ...], dict[str, BaseDistribution]]
"""Distributions that trials share."""

_FIELDS = ("_user_attrs", "_system_attrs", "_values", "_datetime_start", "datetime_complete", "intermediate_values")


class PackedTrial(FrozenTrial):
    """A trial whose contents are bytes, which are read whenever somebody asks for them.

    Args:
        trial: that has ended, so that nothing of it changes any more.
        alike: trials with the same parameters share their names and distributions in it.
    """

    def __init__(self, trial: FrozenTrial, alike: Alike) -> None:
        self._number, self.state, self._trial_id = trial.number, trial.state, trial._trial_id
        own = trial.distributions
        self._distributions = alike.setdefault(tuple(own.items()), own)
        params = [trial.params[name] for name in own]
        self._packed = pickle.dumps((params, *(getattr(trial, name) for name in _FIELDS)), pickle.HIGHEST_PROTOCOL)

    def __getattr__(self, name: str) -> Any:
        """Read what is not kept as it is."""
        own = self.__dict__  # empty while it is copied
        if name == "_params" and own:
            return dict(zip(own["_distributions"], _unpacked(own["_packed"])[0], strict=True))
        if name in _FIELDS and own:
            return _unpacked(own["_packed"])[1 + _FIELDS.index(name)]
        raise AttributeError(name)


def packed(trial: FrozenTrial, alike: Alike) -> FrozenTrial:
    """Pack a trial, if it has ended and is not packed yet."""
    return PackedTrial(trial, alike) if trial.state.is_finished() and not isinstance(trial, PackedTrial) else trial


@lru_cache(maxsize=4096)
def _unpacked(packed: bytes) -> tuple[Any, ...]:
    """Read a trial; those that are looked at again and again, by a sampler, say, are read once."""
    found: tuple[Any, ...] = pickle.loads(packed)
    return found
