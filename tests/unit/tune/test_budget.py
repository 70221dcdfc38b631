"""A sweep starts no trial once its time or its FLOPs are used up, and gets them back from nobody."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import SweepConfig, parse
from alast_tune.errors import ConfigError
from alast_tune.tune.attributes import DUPLICATE_OF
from alast_tune.tune.budget import Budget
from alast_tune.tune.forecast import Costs
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.sampler import EhviSampler
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


def searcher(study: optuna.Study, folder: Path, budget: Budget) -> StudySearcher:
    sweep = SweepConfig.model_validate({"sampler": "random", "trials": 6, "space": SPACE, "storage": folder})
    packing = Packing(sweep, [Node("a", cpu=64, memory=1e18)])
    return StudySearcher(study, sweep, Silent(), packing, lambda *_: Costs(1e12, 10**8), lambda _: (), budget)


def test_no_trial_starts_once_the_time_is_used_up_and_one_that_runs_is_finished(
    study: optuna.Study, tmp_path: Path
) -> None:
    clock = Clock()
    search = searcher(study, tmp_path, Budget(study, 60, clock=clock))
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
    first = searcher(study, tmp_path, Budget(study, 60, clock=clock))
    first.suggest("a")
    first.suggest("b")
    clock.seconds = 50
    first.on_trial_complete("a", REPORT)  # and here the driver dies
    later = Clock()
    later.seconds = 1000
    second = searcher(study, tmp_path, Budget(study, 50, clock=later))
    begun = second.suggest("c")
    assert isinstance(begun, dict) and begun["number"] == 1
    assert second.suggest("d") == "FINISHED"
    more = searcher(study, tmp_path, Budget(study, 60, clock=later))
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


def report(flops: float, epoch: int) -> dict[str, float]:
    return REPORT | {"report/train_flops": flops, "report/epoch": float(epoch)}


def train(search: StudySearcher, name: str, flops: float, epochs: int) -> None:
    """Let a trial end after so many epochs, of ten, and FLOPs."""
    for epoch in range(1, epochs):
        search.on_trial_result(name, report(flops * epoch / epochs, epoch))
    search.on_trial_complete(name, report(flops, epochs))


def test_flops_of_trials_that_run_were_stopped_or_failed_count_and_no_trial_starts_once_they_are_used_up(
    study: optuna.Study, tmp_path: Path
) -> None:
    search = searcher(study, tmp_path, budget := Budget(study, flops=10.0))
    for name in "abcd":
        assert isinstance(search.suggest(name), dict)
    train(search, "a", 4.0, 10)
    train(search, "b", 3.0, 2)  # stopped at a rung
    search.on_trial_result("c", report(1.0, 1))
    search.on_trial_complete("c", None, error=True)
    own = [trial for trial in study.trials if DUPLICATE_OF not in trial.user_attrs]
    assert [trial.state for trial in own[:3]] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert (budget.flops, budget.over) == (8.0, "")
    search.on_trial_result("d", report(1.9, 1))
    assert isinstance(search.suggest("e"), dict)
    search.on_trial_result("d", report(2.0, 2))
    assert (budget.flops, budget.over, budget.used()) == (10.0, "FLOPs", "10.0 FLOP of 10.0 FLOP used")
    assert search.suggest("f") == "FINISHED"
    train(search, "d", 3.0, 10)
    own = [trial for trial in study.trials if DUPLICATE_OF not in trial.user_attrs]
    assert own[3].state == TrialState.COMPLETE and budget.flops == 11.0


def test_what_other_seeds_will_train_is_kept_for_them(study: optuna.Study, tmp_path: Path) -> None:
    clock, owed = Clock(), [0.0]
    search = searcher(study, tmp_path, budget := Budget(study, 60, 10.0, 4.0, owed=lambda: owed[0], clock=clock))
    search.suggest("a")
    train(search, "a", 4.0, 10)
    assert (budget.over, budget.used()) == ("", "4.00 FLOP of 10.0 FLOP used")
    owed[0] = 5.9
    assert (budget.over, budget.used()) == ("", "4.00 FLOP of 10.0 FLOP used and 5.90 FLOP kept for other seeds")
    owed[0] = 6.0
    assert budget.over == "FLOPs"
    owed[0], clock.seconds = 2.0, 39
    assert budget.over == ""
    clock.seconds = 40  # 4 FLOPs took 40 seconds, so that 2 will take 20
    assert budget.over == "time"


def test_a_cheap_trial_that_ends_first_says_nothing_of_the_pace(study: optuna.Study, tmp_path: Path) -> None:
    clock = Clock()
    search = searcher(study, tmp_path, budget := Budget(study, 60, None, 4.0, owed=lambda: 8.0, clock=clock))
    search.suggest("full")
    search.suggest("head")
    train(search, "head", 0.1, 10)
    clock.seconds = 15
    assert budget.over == ""  # not 15 seconds for each 0.1
    train(search, "full", 4.0, 10)
    assert budget.over == ""
    clock.seconds = 25
    assert budget.over == "time"


def test_a_resumed_sweep_goes_on_counting_flops_and_an_earlier_sweeps_do_not_count(
    study: optuna.Study, tmp_path: Path
) -> None:
    first = searcher(study, tmp_path, Budget(study, flops=5.0))
    first.suggest("a")
    train(first, "a", 5.0, 10)
    assert searcher(study, tmp_path, Budget(study, flops=5.0)).suggest("b") == "FINISHED"
    assert isinstance(searcher(study, tmp_path, Budget(study, flops=6.0)).suggest("c"), dict)
    copied = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    trial = study.trials[0]
    trial.user_attrs = trial.user_attrs | {"origin": "runs/old"}
    copied.add_trial(trial)
    assert Budget(copied, flops=5.0).flops == 0.0


def test_a_budget_in_multiples_is_of_full_fine_tuning(study: optuna.Study) -> None:
    assert [Budget(study, flops=flops, full_flops=4.0).used() for flops in (None, 2e12, "1.5x")] == [
        "",
        "0 FLOP of 2.00 TFLOP used",
        "0 FLOP of 6.00 FLOP used",
    ]


@pytest.mark.parametrize(("given", "kept"), [("1e18", 1e18), (5, 5.0), ("20x", "20x"), ("2.5 x", "2.5x")])
def test_a_budget_of_flops_is_written_as_people_write_it(given: Any, kept: float | str) -> None:
    sweep = parse(SweepConfig, {"flops_budget": given, "space": SPACE})
    assert sweep.flops_budget == kept
    assert parse(SweepConfig, sweep.given_values()) == sweep
    assert sweep.difference(parse(SweepConfig, {"space": SPACE})) is None


@pytest.mark.parametrize("given", ["x", "", "0x", "-1", 0, "1e18 FLOP", "inf", "nan", True])
def test_another_budget_of_flops_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^flops_budget = .*: is no number of FLOPs; write 1e18, or 20x"):
        parse(SweepConfig, {"flops_budget": given, "space": SPACE})


class Modest(EhviSampler):
    """Expects a hundredth."""

    expected_gain = 0.01  # type: ignore[assignment]


@pytest.mark.parametrize(("least", "starts"), [(None, True), (0.009, True), (0.02, False)])
def test_no_trial_starts_once_too_little_is_expected_of_it(
    study: optuna.Study, tmp_path: Path, least: float | None, starts: bool
) -> None:
    budget = Budget(study, min_gain=least)
    search = searcher(study, tmp_path, budget)
    assert budget.used() == ""  # of chance nobody expects anything
    study.sampler = Modest({}, lambda params: (1.0, 1.0), (0.0, 1.0, 1.0), seed=0)
    assert budget.used() == "+1.0% expected of the next trial"
    assert budget.over == ("" if starts else "gain")
    study.sampler = optuna.samplers.RandomSampler(seed=0) if starts else study.sampler
    assert isinstance(search.suggest("a"), dict) == starts


def test_a_resumed_sweep_knows_what_was_expected_until_it_expects_something_itself(study: optuna.Study) -> None:
    study.sampler = Modest({}, lambda params: (1.0, 1.0), (0.0, 1.0, 1.0), seed=0)
    Budget(study).keep()
    study.sampler = EhviSampler({}, lambda params: (1.0, 1.0), (0.0, 1.0, 1.0), seed=0)
    assert (Budget(study, min_gain=0.02).over, Budget(study, min_gain=0.009).over) == ("gain", "")


def test_of_an_infinite_gain_nothing_is_said(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Modest, "expected_gain", math.inf)
    study.sampler = Modest({}, lambda params: (1.0, 1.0), (0.0, 1.0, 1.0), seed=0)
    budget = Budget(study, min_gain=0.5)
    assert (budget.used(), budget.over) == ("", "")


def test_a_least_gain_is_for_the_sampler_that_expects_one() -> None:
    with pytest.raises(ConfigError, match=r"^min_gain = 0\.01: sampler tpe does not say what it expects"):
        parse(SweepConfig, {"min_gain": 0.01, "sampler": "tpe", "space": SPACE})
    sweep = parse(SweepConfig, {"min_gain": 0.01, "space": SPACE})
    assert sweep.difference(sweep.model_copy(update={"min_gain": 0.001})) is None
