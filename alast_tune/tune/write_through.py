"""A study in memory: nothing is read from its file or database again, every change is written there at once."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from alast_tune.tune.packed import Alike, packed

_PAGE = 500
"""So many trials are read from a database at a time: while they are read, each takes many times what is kept of it."""


class WriteThroughStorage(InMemoryStorage):
    """One study of another storage, which no other process writes; others may read it there.

    Optuna reads all running trials anew whenever it is asked for one, so that asking takes the longer the more there
    are. Here nothing is read again. What changes is written before the call returns, but for one thing: a new trial is
    written with its parameters in one transaction, when anything else is first said of it. What is kept of a trial that
    has ended is packed.

    Args:
        backend: where the study is kept.
        name: of the study, which is there.

    Raises:
        StorageInternalError: somebody else has added or deleted trials, found at the start or when one is added.
    """

    def __init__(self, backend: BaseStorage, name: str) -> None:
        super().__init__()
        self._backend = backend
        self._there = there = self._backend.get_study_id_from_name(name)
        self._own = super().create_new_study(self._backend.get_study_directions(there), name)
        study = self._studies[self._own]
        study.user_attrs = self._backend.get_study_user_attrs(there)
        study.system_attrs = self._backend.get_study_system_attrs(there)
        self._ids = array("q")
        """Of the trials, in the other storage; here each is its number."""
        self._held: int | None = None
        """The trial that is only here so far."""
        self._alike: Alike = {}
        for trial in _trials_of(backend, there):
            self._ids.append(trial._trial_id)
            self._check(trial.number)
            study.trials.append(trial := copy.copy(trial))
            trial._trial_id = self._max_trial_id = trial.number
            self._trial_id_to_study_id_and_number[trial.number] = self._own, trial.number
            study.param_distribution |= trial.distributions
            self._pack(trial.number)

    def create_new_study(self, directions: Sequence[Any], study_name: str | None = None) -> int:
        """Refuse: there is one study."""
        raise NotImplementedError

    def delete_study(self, study_id: int) -> None:
        """Refuse: a sweep deletes no study."""
        raise NotImplementedError

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it in both."""
        self._backend.set_study_user_attr(self._there, key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Set it in both."""
        self._backend.set_study_system_attr(self._there, key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add it; one without anything is held back until its parameters are known."""
        self._release()
        self._held = number = super().create_new_trial(study_id, template_trial)
        if template_trial is not None:
            self._release()
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set it in both."""
        if trial_id != self._held:
            self._backend.set_trial_param(self._ids[trial_id], param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set them in both."""
        self._release()
        done = self._backend.set_trial_state_values(self._ids[trial_id], state, values)
        done = done and super().set_trial_state_values(trial_id, state, values)
        self._pack(trial_id)
        return done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set it in both."""
        self._release()
        self._backend.set_trial_intermediate_value(self._ids[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set it in both."""
        if trial_id != self._held:
            self._backend.set_trial_user_attr(self._ids[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, value)
        self._release()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set it in both."""
        if trial_id != self._held:
            self._backend.set_trial_system_attr(self._ids[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, value)
        self._release()

    def remove_session(self) -> None:
        """Let go of the database."""
        self._backend.remove_session()

    def _release(self) -> None:
        """Write the trial that is held back, in one transaction."""
        if self._held is None:
            return
        number, self._held = self._held, None
        trial = self.get_trial(number)
        if isinstance(self._backend, RDBStorage):
            there = self._backend._create_new_trial(self._there, trial)  # spares asking for its number
            self._ids.append(there._trial_id)
            self._check(there.number)
        else:
            self._ids.append(self._backend.create_new_trial(self._there, trial))
            self._check(self._backend.get_trial_number_from_id(self._ids[-1]))
        self._pack(number)

    def _pack(self, number: int) -> None:
        """Keep less of a trial, if it has ended."""
        trials = self._studies[self._own].trials
        trials[number] = packed(trials[number], self._alike)

    def _check(self, number: int) -> None:
        """Trials are numbered as they were added, unless another program adds or deletes some."""
        if number != len(self._ids) - 1:
            raise StorageInternalError("another program has added or deleted trials of the study")


def _trials_of(backend: BaseStorage, study: int) -> Iterator[FrozenTrial]:
    """Read all trials of a study; those of a database a page at a time."""
    if not isinstance(backend, RDBStorage):
        yield from backend.get_all_trials(study, deepcopy=False)
        return
    query = sqlalchemy.text("select trial_id from trials where study_id = :study order by trial_id")
    with backend.engine.connect() as connection:
        ids = connection.scalars(query, {"study": study}).all()
    for start in range(0, len(ids), _PAGE):
        yield from backend._get_trials(study, None, set(ids[start : start + _PAGE]), ids[-1])
