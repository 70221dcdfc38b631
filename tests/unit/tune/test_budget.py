"""A sweep starts no trial once its time is used up, and gets that time back from nobody."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import SweepConfig, parse
from alast_tune.errors import ConfigError
from alast_tune.tune.budget import TimeBudget
from alast_tune.tune.forecast import Costs
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.search import StudySearcher

SPACE = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}}
REPORT = {"report/accuracy": 0.5, "report/train_flops": 1e12, "report/peak_bytes": 1e8, "report/epoch": 10.0}


class Silent:
    def started(self, *what: object) -> None: ...
    def reported(self, *what: object) -> None: ...
    def ended(self, *what: object) -> None: ...


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.set_user_attr("reference_point", (0.0, 2e12, 2e8))
    return study


def searcher(study: optuna.Study, folder: Path, budget: TimeBudget) -> StudySearcher:
    sweep = SweepConfig.model_validate({"sampler": "random", "trials": 6, "space": SPACE, "storage": folder})
    packing = Packing(sweep, [Node("a", cpu=64, memory=1e18)])
    return StudySearcher(study, sweep, Silent(), packing, lambda *_: Costs(1e12, 10**8), lambda _: (), budget)


def test_no_trial_starts_once_the_time_is_used_up_and_one_that_runs_is_finished(
    study: optuna.Study, tmp_path: Path
) -> None:
    clock = Clock()
    search = searcher(study, tmp_path, TimeBudget(study, 60, clock))
    assert isinstance(search.suggest("a"), dict)
    clock.seconds = 59
    assert isinstance(search.suggest("b"), dict)
    clock.seconds = 60
    assert search.suggest("c") == "FINISHED"
    assert search.remaining == 4
    search.on_trial_complete("a", REPORT)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_resumed_sweep_goes_on_counting_finishes_what_had_begun_and_starts_more_with_more_time(
    study: optuna.Study, tmp_path: Path
) -> None:
    clock = Clock()
    first = searcher(study, tmp_path, TimeBudget(study, 60, clock))
    first.suggest("a")
    first.suggest("b")
    clock.seconds = 50
    first.on_trial_complete("a", REPORT)  # and here the driver dies
    later = Clock()
    later.seconds = 1000
    second = searcher(study, tmp_path, TimeBudget(study, 50, later))
    begun = second.suggest("c")
    assert isinstance(begun, dict) and begun["number"] == 1
    assert second.suggest("d") == "FINISHED"
    more = searcher(study, tmp_path, TimeBudget(study, 60, later))
    assert [isinstance(more.suggest(name), dict) for name in "ef"] == [True, True]
    later.seconds = 1010
    assert more.suggest("g") == "FINISHED"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("2h", 7200), ("1.5h", 5400), ("30min", 1800), ("90s", 90), ("1h30min", 5400), ("1 h 30 min", 5400), (60.5, 60.5)],
)
def test_a_budget_is_written_as_people_write_it(given: Any, seconds: float) -> None:
    sweep = parse(SweepConfig, {"time_budget": given, "space": SPACE})
    assert sweep.time_budget == seconds
    assert parse(SweepConfig, sweep.given_values()) == sweep


@pytest.mark.parametrize("given", ["2", "h", "", "1.2.3h", "2 days", "-1h", "0s"])
def test_another_budget_is_refused_in_one_line(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^time_budget = .*: (is no duration; write 2h|Input should be greater)"):
        parse(SweepConfig, {"time_budget": given, "space": SPACE})


def test_a_sweep_may_go_on_with_another_budget() -> None:
    short = parse(SweepConfig, {"time_budget": "1h", "space": SPACE})
    assert short.difference(parse(SweepConfig, {"time_budget": "2h", "space": SPACE})) is None
