"""The guarded searcher: each defect of Ray's OptunaSearch with several objectives has its test here."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import Timing, TrialResult
from alast_tune.tune import search as module
from alast_tune.tune import trials
from alast_tune.tune.attributes import BASELINE, DUPLICATE_OF
from alast_tune.tune.forecast import Costs
from alast_tune.tune.resources import Node, Packing
from alast_tune.tune.sampler import EhviSampler
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import (
    curve_of,
    enqueue_failed,
    enqueue_first,
    epoch_key,
    epochs_of,
    open_study,
    results,
)


class Recorder:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.epochs: list[tuple[int, float]] = []
        self.ends: list[TrialResult] = []

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], baseline: str | None) -> None:
        self.starts.append(number)

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        self.epochs.append((number, metrics["epoch"]))

    def ended(self, result: TrialResult) -> None:
        self.ends.append(result)


def sweep(**options: Any) -> SweepConfig:
    """A sweep whose study is a file that only grows and whose draws are by chance: the cheapest there are."""
    values = {
        "study": "journal",
        "sampler": "random",
        "trials": 6,
        "trial": {"train": {"epochs": 3}},
        "space": {
            "method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
            "method/trainable_blocks": {"type": "int", "low": 1, "high": 12},
            "method/floors/early": {"type": "float", "low": 0.1, "high": 1.0},
            "method/frozen_backward": {"type": "categorical", "choices": ["exact", "residual"]},
        },
    }
    return SweepConfig.model_validate(values | options)


def report(epoch: int = 3, **metrics: float) -> dict[str, float]:
    values = {"accuracy": 0.5, "train_flops": 1e12, "peak_bytes": 1e8, "epoch": float(epoch)} | metrics
    return {f"report/{name}": value for name, value in values.items()}


def searcher(
    tmp_path: Path, config: SweepConfig | None = None, concurrent: int = 99, observer: Recorder | None = None
) -> tuple[StudySearcher, optuna.Study, Recorder]:
    config, observer = config or sweep(), observer or Recorder()
    config = config.model_copy(update={"concurrent": concurrent})
    study = opened(config, tmp_path)
    return StudySearcher(study, config, observer, everywhere(config), forecast), study, observer


def opened(config: SweepConfig, folder: Path) -> optuna.Study:
    study = open_study(config, folder)
    study.set_user_attr("reference_point", (0.0, 2e12, 2e8))
    return study


def everywhere(config: SweepConfig) -> Packing:
    return Packing(config, [Node("a", cpu=1e6, memory=1e18)])


def forecast(trial: TrialConfig, growth: float) -> Costs:
    return Costs(1e12, 10**8)


def test_suggestions_are_whole_trial_configs_within_the_space(tmp_path: Path) -> None:
    search, _, observer = searcher(tmp_path)
    suggestion = search.suggest("a")
    assert isinstance(suggestion, dict)
    config = TrialConfig.model_validate(suggestion["trial"])
    assert config.method.name == "alast"
    assert 1 <= config.method.trainable_blocks <= 12
    assert config.train.epochs == 3
    assert observer.starts == [0]


def test_complete_means_all_epochs_and_finite_objectives(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", report(1))
    search.on_trial_complete("a", report())
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [0.5, 1e12, 1e8]
    assert observer.epochs == [(0, 1.0), (0, 3.0)]
    assert [(end.state, end.epochs) for end in observer.ends] == [("complete", 3)]


def test_a_run_that_is_out_of_patience_is_complete_with_the_epochs_it_ran(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", report(1))
    search.on_trial_complete("a", report(2) | {"complete": True})
    (trial,) = study.trials
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.5, 1e12, 1e8])
    assert [(end.state, end.epochs, end.reason) for end in observer.ends] == [("complete", 2, None)]


@pytest.mark.parametrize(
    ("result", "error", "state", "reason"),
    [
        (report(accuracy=math.nan), False, TrialState.FAIL, "not a finite number: accuracy"),
        (report(peak_bytes=math.inf), False, TrialState.FAIL, "not a finite number: peak_bytes"),
        ({"report/accuracy": 0.9, "report/epoch": 3.0}, False, TrialState.FAIL, "train_flops, peak_bytes"),
        (None, True, TrialState.FAIL, "worker lost"),
        (report(2), True, TrialState.FAIL, "worker lost"),
        (report(3), True, TrialState.FAIL, "worker lost"),
        (report(1), False, TrialState.PRUNED, "stopped after 1 of 3 epochs"),
        (None, False, TrialState.PRUNED, "stopped after 0 of 3 epochs"),
    ],
    ids=["nan", "inf", "missing", "crash", "crash after a report", "crash after the last", "truncated", "no result"],
)
def test_what_did_not_finish_soundly_is_never_complete(
    tmp_path: Path, result: dict[str, float] | None, error: bool, state: TrialState, reason: str
) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", result, error=error)
    (trial,) = study.trials
    assert trial.state == state
    assert trial.values is None
    assert reason in trial.user_attrs["reason"]
    assert study.best_trials == []
    assert observer.ends[0].values is None


def test_the_study_keeps_why_a_rung_stopped_a_trial_and_the_memory_that_was_forecast(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    for name, why in (("a", "place 2 of 2 there, dominated by 0000"), ("b", "")):
        search.suggest(name)
        if why:
            search.outdone(0, why)
        search.on_trial_complete(name, report(1))
    assert [trial.user_attrs["reason"] for trial in study.trials] == [
        "stopped after 1 of 3 epochs: place 2 of 2 there, dominated by 0000",
        "stopped after 1 of 3 epochs",
    ]
    assert [end.reason for end in observer.ends] == [trial.user_attrs["reason"] for trial in study.trials]
    assert {trial.user_attrs["predicted_bytes"] for trial in study.trials} == {10**8}


def test_truncated_trials_never_reach_the_front_however_cheap(tmp_path: Path) -> None:
    """Early stopping on one metric puts 1-epoch trials on the front of Ray's own searcher."""
    search, study, _ = searcher(tmp_path)
    for number in range(6):
        search.suggest(str(number))
        search.on_trial_complete(str(number), report(3 if number % 2 else 1, train_flops=1e12 if number % 2 else 1.0))
    assert {trial.number for trial in study.best_trials} == {1, 3, 5}


@pytest.mark.parametrize(
    ("first", "second", "resumed", "kept"),
    [
        ("H100", "H100", "H100", "H100"),
        ("H100", "A100", "H100", None),
        ("H100", "H100", "A100", None),
        (None, "H100", "H100", None),  # nobody knows of the first epoch
    ],
)
def test_times_are_of_one_kind_of_device_or_of_none(
    tmp_path: Path, first: str | None, second: str, resumed: str, kept: str | None
) -> None:
    search, _, _ = searcher(tmp_path)
    search.suggest("a")
    for epoch, device in ((1, first), (2, second)):
        search.on_trial_result("a", report(epoch) | ({"device": device} if device else {}))
    search, study, observer = searcher(tmp_path)  # after the driver was killed
    search.suggest("b")
    search.on_trial_complete("b", report(3, train_seconds=7.0) | {"device": resumed})
    (end,) = observer.ends
    assert end.device == results(study, sweep())[0].device == kept
    assert end.timing == (Timing(train_seconds=7.0, device=kept) if kept else None)


def test_a_trial_is_told_once(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", report())
    search.on_trial_complete("a", None, error=True)
    assert study.trials[0].state == TrialState.COMPLETE


def test_no_more_than_the_concurrent_ones_are_out_and_the_end_is_said(tmp_path: Path) -> None:
    search, _, _ = searcher(tmp_path, sweep(trials=3), concurrent=2)
    assert isinstance(search.suggest("a"), dict)
    assert isinstance(search.suggest("b"), dict)
    assert search.suggest("c") is None
    search.on_trial_complete("a", report())
    assert isinstance(search.suggest("c"), dict)
    search.on_trial_complete("b", report())
    assert search.suggest("d") == StudySearcher.FINISHED


def test_a_killed_driver_leaves_no_orphan_and_no_trial_twice(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    suggestions = {key: search.suggest(key) for key in "abc"}
    search.on_trial_complete("a", report())
    del search, study  # SIGKILL: nothing is told of b and c

    search, study, _ = searcher(tmp_path, observer=observer)
    assert search.remaining == 5
    again = {key: search.suggest(key) for key in "uvwxy"}
    assert [s["number"] for s in again.values()] == [1, 2, 3, 4, 5]
    assert again["u"]["trial"] == suggestions["b"]["trial"]
    assert again["v"]["trial"] == suggestions["c"]["trial"]
    assert observer.starts[3:5] == [1, 2]
    for key in again:
        search.on_trial_complete(key, report())
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert search.suggest("z") == StudySearcher.FINISHED


def test_every_resumed_sampler_draws_anew(tmp_path: Path) -> None:
    alphas = []
    for _ in range(3):
        search, _, _ = searcher(tmp_path, sweep(sampler="random"))
        suggestion = search.suggest(key := str(search.remaining))
        search.on_trial_complete(key, report())
        assert isinstance(suggestion, dict)
        alphas.append(suggestion["trial"]["method"]["alpha"])
    assert len(set(alphas)) == 3


def test_an_orphan_asked_only_in_part_gets_the_rest_of_its_parameters(tmp_path: Path) -> None:
    study = opened(sweep(), tmp_path)
    study.ask().suggest_float("method/alpha", 1e-4, 1.0, log=True)
    alpha = study.trials[0].params["method/alpha"]
    search, study, _ = searcher(tmp_path)
    suggestion = search.suggest("a")
    assert isinstance(suggestion, dict)
    assert suggestion["number"] == 0
    assert suggestion["trial"]["method"]["alpha"] == alpha
    assert set(study.trials[0].params) == set(sweep().space)


def test_parameters_that_contradict_each_other_fail_and_are_replaced(tmp_path: Path) -> None:
    space = {
        "method/max_budget": {"type": "categorical", "choices": [0.2]},
        "method/floors/late": {"type": "categorical", "choices": [0.15, 0.9]},
        "method/alpha": {"type": "float", "low": 0.0, "high": 1.0},
    }
    base = {"method": {"name": "alast", "floors": {"early": 0.1, "middle": 0.1, "late": 0.1}, "max_budget": 1.0}}
    search, study, observer = searcher(tmp_path, sweep(space=space, trial=base, trials=12, sampler="random"))
    handed = 0
    while isinstance(search.suggest(str(handed)), dict):
        search.on_trial_complete(str(handed), report(10))
        handed += 1
    states = [trial.state for trial in study.trials if DUPLICATE_OF not in trial.user_attrs]
    assert len(states) == 12
    assert states.count(TrialState.COMPLETE) == handed > 0
    assert states.count(TrialState.FAIL) == 12 - handed > 0
    assert all("above max_budget" in (end.reason or "") for end in observer.ends if end.state == "failed")


@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "nsga2", "gp", "random"])
def test_every_sampler_proposes_and_learns(tmp_path: Path, sampler: str) -> None:
    """Twelve trials: the model-based ones begin with ten by chance."""
    search, study, _ = searcher(tmp_path, sweep(sampler=sampler, trials=12))
    for number in range(12):
        suggestion = search.suggest(str(number))
        assert isinstance(suggestion, dict)
        blocks = suggestion["trial"]["method"]["trainable_blocks"]
        search.on_trial_complete(str(number), report(accuracy=blocks / 12, train_flops=float(blocks)))
    assert len(results(study, sweep())) == 12
    # The evolutionary one keeps some of a parent's parameters, the model-based ones may go to the bounds.
    assert len({trial.params["method/alpha"] for trial in study.trials}) >= 6


@pytest.mark.parametrize(
    ("limits", "worst"),
    [
        ({}, (0.0, 2e12, 2e8)),
        ({"max_memory": "100MB", "max_flops": 1e12, "min_accuracy": 0.5}, (0.5, 1e12, 1e8)),
        ({"max_memory": "1GB", "max_flops": 4e12}, (0.0, 2e12, 2e8)),
    ],
    ids=["none", "some", "above the reference"],
)
def test_beyond_a_limit_or_the_reference_nothing_is_worth_anything(
    tmp_path: Path, limits: dict[str, Any], worst: tuple[float, ...]
) -> None:
    _, study, _ = searcher(tmp_path, sweep(sampler="ehvi", **limits))
    assert isinstance(study.sampler, EhviSampler)
    assert (study.sampler._least([]), *study.sampler._reference_2) == worst
    assert study.sampler._forecast({"method/trainable_blocks": 3}) == (1e12, 1e8)


def test_what_is_worth_something_follows_full_fine_tuning(tmp_path: Path) -> None:
    config = sweep(sampler="ehvi", trials=4, within=0.1)
    study = opened(config, tmp_path)
    enqueue_first(study, config)
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    assert isinstance(study.sampler, EhviSampler)
    first, second = search.suggest("a"), search.suggest("b")
    assert isinstance(first, dict) and isinstance(second, dict) and first["baseline"] == "full"
    assert study.sampler._least(study.trials) == 0.0
    search.on_trial_complete("b", report(accuracy=0.4))
    assert study.sampler._least(study.trials) == 0.3  # of the best so far
    search.on_trial_complete("a", report(accuracy=0.8))
    assert study.sampler._least(study.trials) == 0.7


def test_what_a_proposal_costs_is_forecast_once(tmp_path: Path) -> None:
    asked: list[tuple[TrialConfig, float]] = []

    def counted(trial: TrialConfig, growth: float) -> Costs:
        asked.append((trial, growth))
        return forecast(trial, growth)

    config = sweep(sampler="ehvi", trials=8)
    search = StudySearcher(opened(config, tmp_path), config, Recorder(), everywhere(config), counted)
    for turn in range(6):
        before = len(asked)
        assert isinstance(search.suggest(str(turn)), dict)
        search.on_trial_complete(str(turn), report(accuracy=0.1 * turn))
        fresh = asked[before:]
        assert len(fresh) == len(set(fresh)) > 0


def test_results_read_back_what_the_study_holds(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    search.suggest("b")
    search.on_trial_complete("a", report())
    complete, running = results(study, sweep())
    assert (complete.state, complete.values, complete.epochs) == ("complete", (0.5, 1e12, 1e8), 3)
    assert (running.state, running.values) == ("running", None)
    assert complete.config.method.trainable_blocks == complete.params["method/trainable_blocks"]


def test_a_complete_trial_keeps_its_last_metrics_and_what_the_test_images_say(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", report(1, train_seconds=1.0))
    search.on_trial_complete("a", report(3, train_seconds=3.0, steady_peak_bytes=9e7) | {"report/budget/block_00": 0.5})
    search.suggest("b")
    search.on_trial_complete("b", report(2, train_seconds=2.0))
    study.set_user_attr("test_accuracy", {"0": 0.75})
    complete, pruned = results(study, sweep())
    assert complete.metrics == {
        "accuracy": 0.5, "train_flops": 1e12, "peak_bytes": 1e8, "epoch": 3.0, "train_seconds": 3.0,
        "steady_peak_bytes": 9e7,
    }  # fmt: skip
    assert (complete.test_accuracy, pruned.test_accuracy, pruned.metrics) == (0.75, None, {})


def test_a_study_begins_with_full_fine_tuning_and_the_papers_configuration(tmp_path: Path) -> None:
    config = sweep()
    study = opened(config, tmp_path)
    enqueue_first(study, config)
    enqueue_first(study, config)  # a driver killed in between does it again
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    full, paper, other = (search.suggest(key) for key in "abc")
    assert isinstance(full, dict)
    assert isinstance(paper, dict)
    assert isinstance(other, dict)
    assert [trial["baseline"] for trial in (full, paper, other)] == ["full", "paper", None]
    assert full["trial"]["method"] == {"name": "full", "from_block": 0}
    assert (paper["trial"]["method"]["reading"], paper["trial"]["method"]["trainable_blocks"]) == ("paper", 9)
    assert paper["trial"]["method"]["floors"] == {"early": 0.01, "middle": 0.01, "late": 0.01}
    search.on_trial_complete("a", report())
    assert study.trials[0].params["method/floors/early"] == 1.0  # the nearest point: there the sampler sees it
    assert study.trials[0].params["method/trainable_blocks"] == 12
    assert results(study, config)[0].config.method.name == "full"
    assert search.remaining == 5


def test_a_study_goes_on_with_the_points_that_were_given(tmp_path: Path) -> None:
    first = ({"method/trainable_blocks": 5}, {"method/floors/early": 0.5})
    config = sweep(begin_with=first)
    study = opened(config, tmp_path)
    enqueue_first(study, config)
    enqueue_first(study, config)
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    for key in "abcde":
        assert isinstance(search.suggest(key), dict)
    given = [trial.params for trial in study.trials[2:4]]
    assert [params | point for params, point in zip(given, first, strict=True)] == given
    assert given[0].keys() == given[1].keys() == study.trials[4].params.keys()
    assert search.remaining == config.trials - 3  # they are among those that were asked for


def test_limits_become_constraints_and_what_breaks_them_is_infeasible(tmp_path: Path) -> None:
    config = sweep(max_memory="100MB", max_flops=2e12, min_accuracy=0.5)
    search, study, observer = searcher(tmp_path, config)
    for key, result in {
        "kept": report(),
        "memory": report(peak_bytes=1.5e8),
        "flops": report(train_flops=3e12),
        "accuracy": report(accuracy=0.25),
    }.items():
        search.suggest(key)
        search.on_trial_complete(key, result)
    assert [end.state for end in observer.ends] == ["complete", "infeasible", "infeasible", "infeasible"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert study.trials[0].constraints == {"max_memory": 0.0, "max_flops": -0.5, "min_accuracy": 0.0}
    assert study.trials[1].constraints["max_memory"] == pytest.approx(0.5)
    assert [end.reason for end in observer.ends] == [
        None,
        "peak 143 MiB is above 95.4 MiB",
        "training 3.00 TFLOP is above 2.00 TFLOP",
        "accuracy 0.2500 is below 0.5",
    ]
    assert [trial.number for trial in study.best_trials] == [0]


def test_what_is_foreseen_to_need_too_much_memory_is_never_launched(tmp_path: Path) -> None:
    config, observer = sweep(max_memory="1GB", trials=5, sampler="random"), Recorder()
    study = opened(config, tmp_path)

    def by_blocks(trial: TrialConfig, growth: float) -> Costs:
        return Costs(1e12, int(2e8) * trial.method.trainable_blocks)  # type: ignore[union-attr]

    search = StudySearcher(study, config, observer, everywhere(config), by_blocks)
    handed = []
    while isinstance(suggestion := search.suggest(str(len(handed))), dict):
        handed.append(suggestion)
        search.on_trial_complete(str(len(handed) - 1), report())
    assert len(handed) == 5  # those never launched do not use up the trials
    assert all(trial["trial"]["method"]["trainable_blocks"] <= 5 for trial in handed)
    unlaunched = [end for end in observer.ends if end.state == "infeasible"]
    assert len(unlaunched) == len(study.trials) - 5 > 0
    assert len(observer.starts) == 5
    assert all((end.reason or "").startswith("never launched: predicted peak") for end in unlaunched)
    assert {trial.state for trial in study.trials if trial.number in {e.number for e in unlaunched}} == {
        TrialState.PRUNED
    }


def test_what_cannot_be_split_so_that_it_keeps_its_own_limit_is_never_launched(tmp_path: Path) -> None:
    train = {"epochs": 3, "accumulate": "auto", "max_memory": "50MB"}
    search, study, observer = searcher(tmp_path, sweep(trials=1, trial={"train": train}))
    assert not isinstance(search.suggest("a"), dict)
    assert {end.state for end in observer.ends} == {"infeasible"}
    assert observer.ends[0].reason == "never launched: predicted peak 95.4 MiB is above 47.7 MiB"
    assert study.trials[0].constraints == {"max_memory": 1.0}


@pytest.mark.parametrize(("alpha", "launched"), [(0.0, False), (0.01, True)])
def test_what_is_foreseen_to_need_too_many_flops_is_never_launched(
    tmp_path: Path, alpha: float, launched: bool
) -> None:
    """Budgets that learn may come to a little less."""
    space = {"method/alpha": {"type": "categorical", "choices": [alpha]}}
    search, _, observer = searcher(tmp_path, sweep(max_flops=0.95e12, trials=1, space=space))
    assert isinstance(search.suggest("a"), dict) is launched
    assert [end.reason for end in observer.ends] == (
        [] if launched else ["never launched: predicted training 1.00 TFLOP is above 950 GFLOP"]
    )


def test_tunes_loop_turns_now_and_then_while_many_are_proposed(tmp_path: Path) -> None:
    search, _, _ = searcher(tmp_path, sweep(trials=20))
    given = [isinstance(search.suggest(str(number)), dict) for number in range(18)]
    assert given == [*[True] * 8, False, *[True] * 8, False]


def test_a_search_ends_when_nothing_is_worth_launching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 8)
    search, study, observer = searcher(tmp_path, sweep(max_memory="1MB"))
    assert search.suggest("a") == StudySearcher.FINISHED
    assert len(study.trials) == len(observer.ends) == 8
    assert search.remaining == 6  # of none of them can it be said that it ran
    assert study.best_trials == observer.starts == []


@pytest.mark.parametrize("sampler", ["ehvi", "random"])
def test_a_space_that_is_used_up_ends_the_search_and_nothing_runs_twice(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 12)
    config = sweep(sampler=sampler, trials=20, space={"method/trainable_blocks": {"type": "int", "low": 1, "high": 4}})
    search, study, observer = searcher(tmp_path, config)
    blocks = []
    while isinstance(suggestion := search.suggest(str(len(blocks))), dict):
        blocks.append(suggestion["trial"]["method"]["trainable_blocks"])
        search.on_trial_complete(str(len(blocks) - 1), report())
    assert sorted(blocks) == [1, 2, 3, 4]
    assert len(observer.ends) == len(results(study, config)) == 4
    if sampler == "ehvi":
        assert len(study.trials) == 4  # none that is not run


def test_out_of_memory_is_an_observation_and_divergence_a_failure(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_complete("a", {"trouble": "CUDA out of memory", "out_of_memory": True, "done": True})
    search.suggest("b")
    search.on_trial_result("b", report(1))
    search.on_trial_complete("b", report(1) | {"trouble": "the loss of epoch 2 is nan", "out_of_memory": False})
    assert [(end.state, end.reason) for end in observer.ends] == [
        ("infeasible", "CUDA out of memory"),
        ("failed", "the loss of epoch 2 is nan"),
    ]
    assert study.trials[0].constraints["max_memory"] > 0
    assert observer.epochs == [(1, 1.0)]


def test_why_a_trial_has_crashed_is_its_reason_and_a_machine_without_memory_an_observation(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    for key, words, starved in (("a", "ValueError: out of luck", False), ("b", "out of memory: killed", True)):
        suggestion = search.suggest(key)
        assert isinstance(suggestion, dict)
        search.crashed(suggestion["number"], words, starved)
        search.crashed(suggestion["number"], "what follows from it", False)
        search.on_trial_complete(key, report(1), error=True)
    assert [(end.state, end.reason) for end in observer.ends] == [
        ("failed", "ValueError: out of luck"),
        ("infeasible", "out of memory: killed"),
    ]
    assert study.trials[1].constraints == {"max_memory": 1.0}


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_what_has_failed_is_run_again_under_a_new_number(tmp_path: Path, sampler: str) -> None:
    space = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 4}}
    config = sweep(sampler=sampler, space=space, trials=4) if sampler == "grid" else sweep(trials=4, sampler=sampler)
    search, study, _ = searcher(tmp_path, config)
    for key in "abcd":
        suggestion = search.suggest(key)
        search.on_trial_complete(key, report(), error=key == "b")
    failed = study.trials[1].params
    assert enqueue_failed(study) == 1
    search, study, _ = searcher(tmp_path, config)
    assert search.remaining == 1
    suggestion = search.suggest("e")
    assert isinstance(suggestion, dict) and suggestion["number"] == 4
    assert study.trials[4].params == failed
    search.on_trial_complete("e", report())
    assert search.suggest("f") == StudySearcher.FINISHED
    assert [(one.number, one.state) for one in results(study, config)] == [(n, "complete") for n in (0, 2, 3, 4)]
    assert enqueue_failed(study) == 0


def test_what_has_failed_is_run_again_though_a_later_proposal_repeated_it(tmp_path: Path) -> None:
    config = sweep(trials=1, space={"method/trainable_blocks": {"type": "int", "low": 1, "high": 4}})
    search, study, _ = searcher(tmp_path, config)
    for blocks in (2, 2, 3):
        study.enqueue_trial({"method/trainable_blocks": blocks})
    search.suggest("a")
    study.ask({})  # the second one, by a driver that was killed then
    search.on_trial_complete("a", report(), error=True)
    search, study, _ = searcher(tmp_path, config)
    assert search.suggest("b") == StudySearcher.FINISHED and study.trials[1].user_attrs[DUPLICATE_OF] == 0
    assert enqueue_failed(study) == 1
    search, study, _ = searcher(tmp_path, config.model_copy(update={"trials": 2}))
    again = [search.suggest("c"), search.suggest("d")]
    assert [isinstance(one, dict) and study.trials[one["number"]].params for one in again] == [
        {"method/trainable_blocks": 3},
        {"method/trainable_blocks": 2},
    ]


def test_a_baseline_that_has_failed_is_run_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, study, _ = searcher(tmp_path, config := sweep(trials=2))
    study.enqueue_trial({"method/alpha": 0.5}, user_attrs={BASELINE: "full"})
    search.suggest("a")
    search.on_trial_complete("a", report(), error=True)

    def killed(name: str, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study, "set_user_attr", killed)
        with pytest.raises(KeyboardInterrupt):
            enqueue_failed(study)
    assert enqueue_failed(study) == 1
    search, study, _ = searcher(tmp_path, config)
    handed = [search.suggest("b"), search.suggest("c")]
    assert [isinstance(one, dict) and one["baseline"] for one in handed] == ["full", None]


def test_curves_are_kept_with_the_trial_and_gone_on_with(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    for epoch in (1, 2):
        search.on_trial_result("a", report(epoch, accuracy=epoch / 10))
    del search, study  # SIGKILL
    search, study, _ = searcher(tmp_path)
    search.suggest("b")
    search.on_trial_result("b", report(2, accuracy=0.25))  # from the checkpoint of the first epoch
    search.on_trial_complete("b", report(3, accuracy=0.3))
    assert [values[0] for values in curve_of(study.trials[0].user_attrs)] == [0.1, 0.25, 0.3]


def test_an_epoch_that_a_restart_repeats_is_told_once_unless_it_came_to_something_else(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    for epoch in (1, 2, 1, 2):  # its worker was lost before the first epoch's checkpoint was written
        search.on_trial_result("a", report(epoch, accuracy=epoch / 10))
    assert observer.epochs == [(0, 1.0), (0, 2.0)]
    search.on_trial_result("a", report(2, accuracy=0.25))  # a GPU does not repeat every bit
    search.on_trial_complete("a", report(3, accuracy=0.3))
    assert observer.epochs == [(0, 1.0), (0, 2.0), (0, 2.0), (0, 3.0)]
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert [values[0] for values in curve_of(trial.user_attrs)] == [0.1, 0.25, 0.3]


def test_each_epoch_costs_the_study_the_same(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    sizes = []
    for epoch in range(1, 10):
        search.on_trial_result("a", report(epoch, accuracy=0.5))
        sizes.append((tmp_path / "study.jsonl").stat().st_size)
    assert len({after - before for before, after in pairwise(sizes)}) == 1
    assert len(curve_of(study.trials[0].user_attrs)) == 9


def test_epochs_behind_one_that_came_to_something_else_are_struck_out(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    for epoch, accuracy in ((1, 0.1), (2, 0.2), (3, 0.3), (1, 0.15)):
        search.on_trial_result("a", report(epoch, accuracy=accuracy))
    assert [values[0] for values in curve_of(study.trials[0].user_attrs)] == [0.15]
    del search, study  # SIGKILL
    search, study, _ = searcher(tmp_path)
    search.suggest("b")
    search.on_trial_result("b", report(2, accuracy=0.25))
    assert [values[0] for values in curve_of(study.trials[0].user_attrs)] == [0.15, 0.25]


def test_epochs_of_an_older_version_are_read_and_gone_on_with() -> None:
    older: dict[str, object] = {"curve": [[0.1, 1.0, 2.0], [0.2, 2.0, 2.0]], "seconds": [3.0, 6.0]}
    assert epochs_of(older) == [[0.1, 1.0, 2.0, 3.0], [0.2, 2.0, 2.0, 6.0]]
    third = [0.3, 3.0, 2.0, 9.0]
    assert epochs_of(older | {epoch_key(3): third}) == [*epochs_of(older), third]
    assert epochs_of(older | {epoch_key(2): None, epoch_key(1): third}) == [third]


def test_who_has_ended_makes_room_for_the_next(tmp_path: Path) -> None:
    config = sweep(trial={"train": {"epochs": 3, "device": "cpu"}})
    study = opened(config, tmp_path)
    search = StudySearcher(study, config, Recorder(), Packing(config, [Node("a", cpu=1, memory=2**34)]), forecast)
    assert isinstance(search.suggest("a"), dict)
    assert search.suggest("b") is None
    search.on_trial_complete("a", report())
    assert isinstance(search.suggest("b"), dict)
    search.on_trial_complete("b", None, error=True)
    assert isinstance(search.suggest("c"), dict)


def test_what_fits_no_node_is_never_launched_and_takes_no_trials_place(tmp_path: Path) -> None:
    config, observer = sweep(trials=2, trial={"train": {"epochs": 3, "device": "cpu"}}), Recorder()
    study = opened(config, tmp_path)

    def by_blocks(trial: TrialConfig, growth: float) -> Costs:
        return Costs(1e12, 2**40 if trial.method.trainable_blocks == 12 else 2**20)  # type: ignore[union-attr]

    for blocks in (12, 1, 2):
        study.enqueue_trial({"method/trainable_blocks": blocks})
    search = StudySearcher(study, config, observer, Packing(config, [Node("a", cpu=8, memory=2**34)]), by_blocks)
    handed = [search.suggest(key) for key in "ab"]
    assert [trial["number"] for trial in handed if isinstance(trial, dict)] == [1, 2] and search.remaining == 0
    (end,) = observer.ends
    assert (end.number, end.state, end.epochs) == (0, "infeasible", 0)
    assert (end.reason or "").startswith("never launched: predicted peak_bytes = 1.00 TiB: predicted, and 768 MiB")


def test_what_an_earlier_driver_was_about_to_refuse_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*values: object, **options: object) -> None:
        raise Killed

    config = sweep(max_memory="1MB", trials=2)
    search, study, _ = searcher(tmp_path, config)
    monkeypatch.setattr(study, "tell", killed)
    with pytest.raises(Killed):
        search.suggest("a")
    monkeypatch.setattr(module, "_PATIENCE", 1)
    search, study, observer = searcher(tmp_path, config)
    assert study.trials[0].state == TrialState.RUNNING and search.remaining == 3
    assert search.suggest("a") == StudySearcher.FINISHED
    assert [end.reason for end in observer.ends] == ["never launched: predicted peak 95.4 MiB is above 977 KiB"]
    assert search.remaining == 2 and observer.starts == []


def test_tune_has_nothing_to_add_and_nothing_to_keep(tmp_path: Path) -> None:
    search, _, _ = searcher(tmp_path)
    assert search.set_search_properties("accuracy", "max", {})
    assert not search.set_search_properties(None, None, {"a": 1})
    assert search.__getstate__() == {}
    search.save(str(tmp_path / "state"))
    search.restore(str(tmp_path / "state"))
    assert (tmp_path / "state").read_bytes() == b""


def test_an_orphan_that_fits_no_node_now_waits_for_a_larger_cluster(tmp_path: Path) -> None:
    config = sweep(trials=1)
    large, study, _ = searcher(tmp_path, config)
    large.suggest("a")
    large.on_trial_result("a", report(1))
    observer = Recorder()
    small = StudySearcher(study, config, observer, Packing(config, [Node("a", cpu=1e6, memory=1e7)]), forecast)
    assert small.suggest("b") == "FINISHED"
    assert (small.waiting, observer.ends, study.trials[0].state) == ([0], [], TrialState.RUNNING)
    again, _, _ = searcher(tmp_path, config)
    assert isinstance(suggestion := again.suggest("c"), dict) and suggestion["number"] == 0


def test_storage_is_listed_for_orphans_alone(tmp_path: Path) -> None:
    config, asked = sweep(trials=2), []

    def checkpoints(number: int) -> list[str]:
        asked.append(number)
        return ["newest"]

    first, study, _ = searcher(tmp_path, config)
    first.suggest("a")
    second = StudySearcher(study, config, Recorder(), everywhere(config), forecast, checkpoints)
    orphan, new = second.suggest("b"), second.suggest("c")
    assert isinstance(orphan, dict) and isinstance(new, dict)
    assert (orphan["resume_from"], new["resume_from"], asked) == (["newest"], [], [0])


@pytest.mark.parametrize("study", ["journal", "sqlite"])
def test_a_sweep_whose_study_is_lost_is_not_begun_again(study: str, tmp_path: Path) -> None:
    config = sweep(study=study)
    with pytest.raises(ConfigError, match=r"^resume = sweep: its study is gone \(.*study\.\w+\), .*; put it back"):
        open_study(config, tmp_path, must_exist=True)
    assert not list(tmp_path.iterdir())
    open_study(config, tmp_path, new=True)
    assert not open_study(config, tmp_path, must_exist=True).trials


def test_a_study_in_a_database_is_found_under_another_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = optuna.storages.InMemoryStorage()
    monkeypatch.setattr(trials, "_database", lambda url: database)
    config, folder = sweep(study="postgresql://me@host/studies"), tmp_path / "nfs" / "sweep"
    study = open_study(config, folder, new=True)
    (tmp_path / "data").symlink_to(tmp_path / "nfs")
    assert open_study(config, tmp_path / "data" / "sweep", must_exist=True).study_name == study.study_name
    (folder / "study.id").unlink()  # as a sweep of an earlier version
    with pytest.raises(ConfigError, match="its study is gone"):
        open_study(config, folder, must_exist=True)
    old = optuna.create_study(
        storage=database, study_name=f"{folder.parent}/sweep", directions=["maximize", "minimize", "minimize"]
    )
    assert open_study(config, folder, must_exist=True).study_name == old.study_name
