"""Every sampler that a sweep may ask for proposes what is in force, and goes on where a killed driver was."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import TrialConfig, in_force
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import enqueue_first, results
from tests.unit.tune.conditional import METHODS, SPACE, accuracy, forecast, sweep
from tests.unit.tune.test_search import Recorder, everywhere, opened, report

CHOICES = {name: settings | {"train/learning_rate": 1e-3} for name, settings in METHODS.items()}
"""For a grid: no real parameters."""


def search_of(folder: Path, config: Any, **options: Any) -> tuple[StudySearcher, optuna.Study]:
    study = opened(config, folder)
    enqueue_first(study, config)
    return StudySearcher(study, config, Recorder(), everywhere(config), forecast), study


def run(search: StudySearcher, most: int = 99) -> int:
    """Train the next trials, as if; how many there were."""
    for count in range(most):
        suggestion = search.suggest("a")
        if not isinstance(suggestion, dict):
            return count
        config = TrialConfig.model_validate(suggestion["trial"])
        costs = forecast(config)
        values = {"accuracy": accuracy(config), "train_flops": costs.train_flops, "peak_bytes": float(costs.peak_bytes)}
        search.on_trial_complete("a", report(**values))
    return most


@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "nsga2", "gp", "random", "grid"])
def test_what_is_in_force_is_proposed_and_gone_on_with(
    tmp_path: Path, sampler: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"sampler": sampler}
    if sampler == "grid":
        options["trials"] = 2 * (2 + 2 + 1)
        options["space"] = SPACE | {"way": {"type": "variants", "variants": CHOICES}}
    config = sweep(**options)
    search, study = search_of(tmp_path, config)
    assert run(search, 8) == 8
    search.suggest("killed")
    trial = study.ask()  # killed while asking: what the choice takes is not there yet
    trial._suggest("way", search._space["way"])
    del search
    search, study = search_of(tmp_path, config)
    run(search)
    proposed = [trial for trial in study.trials if BASELINE not in trial.user_attrs]
    complete = [trial for trial in proposed if trial.state == TrialState.COMPLETE]
    assert len(complete) == config.trials
    assert all(set(trial.params) == set(in_force(config.space, trial.params)) for trial in proposed)
    assert len({tuple(sorted(trial.params.items())) for trial in complete}) == config.trials
    assert {trial.params["way"] for trial in complete} >= {"lora", "full"}
    for result in results(study, config):
        if result.baseline is None:
            assert result.config.method.name == result.params["way"]
            rate = result.params.get(f"{result.params['way']}/train/learning_rate", result.config.train.learning_rate)
            assert result.config.train.learning_rate == rate
    assert not [record for record in caplog.records if record.levelname == "WARNING"]  # what is not modelled is drawn


@pytest.mark.parametrize("sampler", ["ehvi", "tpe", "nsga2", "gp", "random"])
def test_the_largest_seed_proposes_too(tmp_path: Path, sampler: str) -> None:
    search, _ = search_of(tmp_path, sweep(sampler=sampler, seed=2**32 - 1))
    assert run(search, 2) == 2
