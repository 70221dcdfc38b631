"""A study in memory that is also where it is kept: what another process reads, and what is written when."""

import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from alast_tune.results import DIRECTIONS
from alast_tune.tune import write_through
from alast_tune.tune.packed import PackedTrial
from alast_tune.tune.study_file import StudyJournal
from alast_tune.tune.trials import name_metrics
from alast_tune.tune.write_through import WriteThroughStorage

SPACE = {"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(["a", "b"])}

Open = Callable[[], BaseStorage]


@pytest.fixture(params=["sqlite", "journal"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens where the study is kept, as another process would."""
    monkeypatch.setattr(write_through, "_PAGE", 3)

    def opened() -> BaseStorage:
        if request.param == "sqlite":
            storage = RDBStorage(f"sqlite:///{tmp_path}/study.db")
            request.addfinalizer(storage.engine.dispose)
            return storage
        return StudyJournal(tmp_path / "study.jsonl")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(storage=opened(), study_name="ours", directions=list(DIRECTIONS))
    return opened


def ours(elsewhere: Open) -> optuna.Study:
    return optuna.load_study(study_name="ours", storage=WriteThroughStorage(elsewhere(), "ours"))


def theirs(elsewhere: Open) -> optuna.Study:
    return optuna.load_study(study_name="ours", storage=elsewhere())


def facts(study: optuna.Study) -> list[dict[str, Any]]:
    """All that is known of the trials, but for their times."""
    names = ("number", "state", "params", "distributions", "values", "user_attrs", "system_attrs")
    return [{name: getattr(trial, name) for name in names} for trial in study.trials]


def test_another_process_reads_all_that_is_in_memory(elsewhere: Open) -> None:
    study = ours(elsewhere)
    study.set_user_attr("begun", True)
    name_metrics(study, "macro_f1")
    study.enqueue_trial({"x": 0.25, "kind": "b"}, user_attrs={"landmark": "full"})
    for number in range(3):
        trial = study.ask(SPACE)
        assert trial.number == number
        trial.set_user_attr("predicted_bytes", 7)
        trial.set_constraint("max_memory", -1.0)
        if number < 2:
            study.tell(trial, *[[(0.5, 2.0, 1.0)], [None, TrialState.PRUNED]][number])
    study.add_trial(create_trial(state=TrialState.FAIL, params={"x": 0.1}, distributions={"x": SPACE["x"]}))
    assert study.trials[0].params == {"x": 0.25, "kind": "b"}
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "RUNNING", "FAIL"]
    for other in (theirs(elsewhere), ours(elsewhere)):  # one that reads it, and the driver that comes next
        assert facts(other) == facts(study)
        assert (other.user_attrs, other.metric_names) == (study.user_attrs, study.metric_names)


def test_a_proposal_is_written_whole_once_something_is_said_of_it(elsewhere: Open) -> None:
    study = ours(elsewhere)
    trial = study.ask(SPACE)
    assert theirs(elsewhere).trials == []  # a driver that dies now has lost nothing: nobody has heard of it
    trial.set_user_attr("predicted_bytes", 7)
    (there,) = theirs(elsewhere).trials
    assert (there.state, there.params, there.user_attrs) == (TrialState.RUNNING, trial.params, {"predicted_bytes": 7})


def test_an_interrupted_trial_is_gone_on_with_under_its_number(elsewhere: Open) -> None:
    theirs(elsewhere).ask({"x": SPACE["x"]})
    study = ours(elsewhere)
    (orphan,) = study.trials
    trial = optuna.Trial(study, orphan._trial_id)
    for path, distribution in SPACE.items():
        trial._suggest(path, distribution)
    study.tell(trial, (0.5, 2.0, 1.0))
    (there,) = theirs(elsewhere).trials
    assert (there.number, there.state, there.params) == (0, TrialState.COMPLETE, trial.params)
    assert trial.params["x"] == orphan.params["x"]


def test_nothing_is_read_from_where_it_is_kept_once_it_is_open(
    elsewhere: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ours(elsewhere)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("read")

    for name in ("get_all_trials", "get_trial", "_get_trials"):
        monkeypatch.setattr(RDBStorage, name, refuse)
    monkeypatch.setattr(JournalStorage, "get_all_trials", refuse)
    for _ in range(3):
        trial = study.ask(SPACE)
        trial.set_user_attr("predicted_bytes", 7)
        study.tell(trial, (0.5, 2.0, 1.0))
    assert len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) == 3


def test_trials_of_another_program_are_noticed_before_numbers_differ(elsewhere: Open) -> None:
    study = ours(elsewhere)
    theirs(elsewhere).enqueue_trial({"x": 0.5})
    with pytest.raises(optuna.exceptions.StorageInternalError, match="another program has added"):
        study.ask(SPACE).set_user_attr("predicted_bytes", 7)


def test_of_a_trial_that_has_ended_bytes_are_kept_and_nothing_else(elsewhere: Open) -> None:
    study = ours(elsewhere)
    for _ in range(4):
        trial = study.ask(SPACE)
        for epoch in range(1, 5):
            trial.set_user_attr(f"epoch {epoch}", [0.1 * epoch, 2.5 * epoch, 1.5, 30.0 * epoch])
        trial.set_user_attr("of this test", True)
        study.tell(trial, (0.5, 2.0, 1.0))
    del trial
    copies = 2 if isinstance(elsewhere(), StudyJournal) else 1  # Optuna's own journal keeps one as well

    def check() -> None:
        gc.collect()
        trials = [one for one in gc.get_objects() if issubclass(type(one), FrozenTrial)]
        kept = [trial for trial in trials if "of this test" in trial.user_attrs]
        assert Counter(map(type, kept)) == {PackedTrial: 4 * copies}
        # A dictionary with these numbers would be three times as large.
        parts = [(trial, trial.__dict__, trial._packed) for trial in kept]
        assert all(sum(map(sys.getsizeof, of_one)) < 900 for of_one in parts)

    check()
    del study
    study = ours(elsewhere)  # as the next driver reads them
    check()
    assert len(study.trials) == 4
