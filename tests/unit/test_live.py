"""The account of searches that train for real (benchmarks/live.py)."""

import pytest
from ray.tune.search import Searcher

from alast_tune.config import TrialConfig
from alast_tune.results import TrialResult
from benchmarks.live import Account, Budgeted, Listener
from benchmarks.searchers import RayOptuna
from tests.unit.test_replay import make_table

FINAL = {"accuracy": 0.9, "train_flops": 1e12, "peak_bytes": 1e9}


def test_optuna_search_gets_whole_configurations_and_no_more_once_the_budget_is_spent() -> None:
    table = make_table()
    search = Budgeted(RayOptuna(table, 0, ["full"]), account := Account(table), budget=1.5, seed=7)
    first = TrialConfig.model_validate(search.suggest("a")["trial"])
    assert (first.method.name, first.train.seed) == ("full", 7)  # which goes first for all
    assert isinstance(search.suggest("b"), dict)
    search.on_trial_result("b", FINAL | {"train_flops": 4e11})
    search.on_trial_complete("a", FINAL)
    assert account.found[0].config == table.point_of_baseline("full")
    assert account.spent == account.found[0].spent == pytest.approx(1.4)  # of trials that still run, too
    assert isinstance(search.suggest("c"), dict)
    search.on_trial_result("b", FINAL | {"train_flops": 5e11})
    assert search.suggest("d") == Searcher.FINISHED


def test_a_sweeps_account_counts_stopped_trials_and_finds_complete_ones_alone() -> None:
    table = make_table()
    listener = Listener(table, account := Account(table))
    listener.on_epoch_end(0, FINAL)
    listener.on_trial_end(TrialResult(0, "complete", TrialConfig(), {}, (0.9, 1e12, 1e9), 4, baseline="full"))
    listener.on_epoch_end(1, FINAL | {"train_flops": 3e11})
    listener.on_trial_end(TrialResult(1, "pruned", TrialConfig(), table.points[5], None, 1))
    listener.on_epoch_end(2, FINAL | {"train_flops": 2e11})
    listener.on_trial_end(TrialResult(2, "complete", TrialConfig(), table.points[4], (0.8, 2e11, 1e9), 4))
    assert [found.config for found in account.found] == [table.baseline("full"), 4]
    assert [found.spent for found in account.found] == pytest.approx([1.0, 1.5])
