"""The guarded searcher: each defect of Ray's OptunaSearch with several objectives has its test here."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.results import TrialResult
from alast_tune.tune.search import StudySearcher, open_study, results


class Recorder:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.starts: list[tuple[int, str | None]] = []
        self.epochs: list[tuple[int, float]] = []
        self.ends: list[TrialResult] = []

    def started(self, number: int, config: TrialConfig, params: Mapping[str, object], run_id: str | None) -> str | None:
        self.starts.append((number, run_id))
        return f"run-{number}"

    def reported(self, number: int, metrics: Mapping[str, float]) -> None:
        self.epochs.append((number, metrics["epoch"]))

    def ended(self, result: TrialResult) -> None:
        self.ends.append(result)


def sweep(**options: Any) -> SweepConfig:
    values = {
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
    study = open_study(config, tmp_path / "study.db")
    return StudySearcher(study, config, observer, concurrent), study, observer


def test_suggestions_are_whole_trial_configs_within_the_space(tmp_path: Path) -> None:
    search, _, observer = searcher(tmp_path)
    suggestion = search.suggest("a")
    assert isinstance(suggestion, dict)
    config = TrialConfig.model_validate(suggestion["trial"])
    assert config.method.name == "alast"
    assert 1 <= config.method.trainable_blocks <= 12
    assert config.train.epochs == 3
    assert observer.starts == [(0, None)]


def test_complete_means_all_epochs_and_finite_objectives(tmp_path: Path) -> None:
    search, study, observer = searcher(tmp_path)
    search.suggest("a")
    search.on_trial_result("a", report(1))
    search.on_trial_complete("a", report())
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [0.5, 1e12, 1e8]
    assert observer.epochs == [(0, 1.0), (0, 3.0)]
    assert [(end.state, end.epochs, end.mlflow_run_id) for end in observer.ends] == [("complete", 3, "run-0")]


@pytest.mark.parametrize(
    ("result", "error", "state", "reason"),
    [
        (report(accuracy=math.nan), False, TrialState.FAIL, "not a finite number: accuracy"),
        (report(peak_bytes=math.inf), False, TrialState.FAIL, "not a finite number: peak_bytes"),
        ({"report/accuracy": 0.9, "report/epoch": 3.0}, False, TrialState.FAIL, "train_flops, peak_bytes"),
        (None, True, TrialState.FAIL, "crashed"),
        (report(2), True, TrialState.FAIL, "crashed"),
        (report(3), True, TrialState.FAIL, "crashed"),
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


def test_truncated_trials_never_reach_the_front_however_cheap(tmp_path: Path) -> None:
    """Early stopping on one metric puts 1-epoch trials on the front of Ray's own searcher."""
    search, study, _ = searcher(tmp_path)
    for number in range(6):
        search.suggest(str(number))
        search.on_trial_complete(str(number), report(3 if number % 2 else 1, train_flops=1e12 if number % 2 else 1.0))
    assert {trial.number for trial in study.best_trials} == {1, 3, 5}


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
    assert observer.starts[3:5] == [(1, "run-1"), (2, "run-2")]
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
    study = open_study(sweep(), tmp_path / "study.db")
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
    }
    base = {"method": {"name": "alast", "floors": {"early": 0.1, "middle": 0.1, "late": 0.1}, "max_budget": 1.0}}
    search, study, observer = searcher(tmp_path, sweep(space=space, trial=base, trials=12, sampler="random"))
    handed = 0
    while isinstance(search.suggest(str(handed)), dict):
        search.on_trial_complete(str(handed), report(10))
        handed += 1
    states = [trial.state for trial in study.trials]
    assert len(states) == 12
    assert states.count(TrialState.COMPLETE) == handed > 0
    assert states.count(TrialState.FAIL) == 12 - handed > 0
    assert all("above max_budget" in (end.reason or "") for end in observer.ends if end.state == "failed")


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_proposes_and_learns(tmp_path: Path, sampler: str) -> None:
    search, study, _ = searcher(tmp_path, sweep(sampler=sampler, trials=14))
    for number in range(14):
        suggestion = search.suggest(str(number))
        assert isinstance(suggestion, dict)
        blocks = suggestion["trial"]["method"]["trainable_blocks"]
        search.on_trial_complete(str(number), report(accuracy=blocks / 12, train_flops=float(blocks)))
    assert len(study.trials) == 14
    # The evolutionary one keeps some of a parent's parameters, the model-based ones may go to the bounds.
    assert len({trial.params["method/alpha"] for trial in study.trials}) >= 6


def test_results_read_back_what_the_study_holds(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path)
    search.suggest("a")
    search.suggest("b")
    search.on_trial_complete("a", report())
    complete, running = results(study, sweep().trial)
    assert (complete.state, complete.values, complete.epochs) == ("complete", (0.5, 1e12, 1e8), 3)
    assert (running.state, running.values) == ("running", None)
    assert complete.config.method.trainable_blocks == complete.params["method/trainable_blocks"]
