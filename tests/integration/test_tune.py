"""The guarded searcher under a real Ray Tune: what its schedulers and crashes make of trials."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune import RunConfig, TuneConfig
from ray.tune.schedulers import ASHAScheduler

from alast_tune.config import SweepConfig
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import open_study
from tests.unit.tune.test_search import Recorder, everywhere, forecast

EPOCHS = 9


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def epochs(config: dict[str, Any], crash_at: int = 99, nan_from: float = 2.0) -> None:
    """Costs that reward truncation: FLOPs add up over epochs."""
    quality = config["trial"]["method"]["floors"]["early"]
    for epoch in range(1, EPOCHS + 1):
        if epoch == crash_at and quality > 0.5:
            raise RuntimeError("out of luck")
        accuracy = quality * epoch / EPOCHS if quality < nan_from else float("nan")
        tune.report({"report": {"epoch": epoch, "accuracy": accuracy, "train_flops": epoch * 1e9, "peak_bytes": 1e6}})


def run(
    tmp_path: Path, trainable: Any, scheduler: Any = lambda *sweep_and_study: None, trials: int = 12
) -> tuple[Any, Recorder]:
    sweep = SweepConfig.model_validate(
        {
            "trials": trials,
            "sampler": "random",
            "grace_epochs": 1,
            "concurrent": 4,
            "trial": {"train": {"epochs": EPOCHS}},
            "space": {"method/floors/early": {"type": "float", "low": 0.1, "high": 1.0}},
        }
    )
    study, observer = open_study(sweep, tmp_path), Recorder()
    tune.Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=StudySearcher(study, sweep, observer, everywhere(sweep), forecast),
            num_samples=trials,
            scheduler=scheduler(sweep, study),
            reuse_actors=True,
        ),
        run_config=RunConfig(name="t", storage_path=str(tmp_path), verbose=0),
    ).fit()
    return study, observer


@pytest.mark.slow
def test_trials_stopped_by_asha_are_pruned_and_none_is_on_the_front(cluster: None, tmp_path: Path) -> None:
    """With Ray's own searcher these are COMPLETE, and 1-epoch trials the front's cheapest members."""
    asha = ASHAScheduler(
        time_attr="training_iteration",
        metric="report/accuracy",
        mode="max",
        max_t=99,
        grace_period=1,
        reduction_factor=3,
    )
    study, _ = run(tmp_path, epochs, lambda sweep, study: asha)
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.PRUNED] > 0
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == 12
    assert {trial.user_attrs["epochs"] for trial in study.best_trials} == {EPOCHS}
    assert all(trial.values is None for trial in study.trials if trial.state == TrialState.PRUNED)


@pytest.mark.slow
def test_moasha_stops_what_others_dominate_and_the_best_always_finishes(cluster: None, tmp_path: Path) -> None:
    study, observer = run(tmp_path, epochs, MoAsha, trials=16)
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == len(observer.ends) == 16
    assert states[TrialState.PRUNED] >= 4
    stopped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert {trial.user_attrs["epochs"] for trial in stopped} <= {1, 2, 4, 8}
    assert all(len(trial.user_attrs["curve"]) == trial.user_attrs["epochs"] for trial in study.trials)
    (best,) = study.best_trials  # all cost the same: the most accurate dominates
    assert best.params == max(study.trials, key=lambda trial: trial.params["method/floors/early"]).params


@pytest.mark.slow
def test_crashes_after_reports_and_nan_objectives_fail_and_nothing_stays_running(cluster: None, tmp_path: Path) -> None:
    study, observer = run(tmp_path, epochs_that_crash)
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.FAIL] == sum(trial.params["method/floors/early"] > 0.5 for trial in study.trials) > 0
    assert states[TrialState.COMPLETE] == 12 - states[TrialState.FAIL] > 0
    assert len(observer.ends) == 12
    nan_tmp = tmp_path / "nan"
    nan_tmp.mkdir()
    study, _ = run(nan_tmp, epochs_with_nan, trials=6)
    assert {trial.state for trial in study.trials} <= {TrialState.FAIL, TrialState.COMPLETE}
    assert all(trial.params["method/floors/early"] < 0.4 for trial in study.best_trials)


def epochs_that_crash(config: dict[str, Any]) -> None:
    epochs(config, crash_at=4)


def epochs_with_nan(config: dict[str, Any]) -> None:
    epochs(config, nan_from=0.4)
