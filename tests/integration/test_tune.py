"""The guarded searcher and the scheduler under a real Ray Tune, with trials that train nothing.

What becomes of trials that crash, vanish or come to no number is in test_faults.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune import RunConfig, TuneConfig

from alast_tune.config import SweepConfig
from alast_tune.tune.schedule import MoAsha
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import curve_of, open_study
from tests.unit.tune.test_search import Recorder, everywhere, forecast

EPOCHS, TRIALS = 9, 16


def epochs(config: dict[str, Any]) -> None:
    """Costs that reward truncation: FLOPs add up over epochs."""
    quality = config["trial"]["method"]["floors"]["early"]
    for epoch in range(1, EPOCHS + 1):
        accuracy = quality * epoch / EPOCHS
        tune.report({"report": {"epoch": epoch, "accuracy": accuracy, "train_flops": epoch * 1e9, "peak_bytes": 1e6}})


@pytest.mark.slow
def test_what_others_dominate_is_stopped_and_pruned_and_the_best_finishes(ray_here: Cluster, tmp_path: Path) -> None:
    """With Ray's own searcher the stopped ones are COMPLETE, and 1-epoch trials the front's cheapest members."""
    sweep = SweepConfig.model_validate(
        {
            "trials": TRIALS,
            "sampler": "random",
            "grace_epochs": 1,
            "concurrent": 2,
            "trial": {"train": {"epochs": EPOCHS}},
            "space": {"method/floors/early": {"type": "float", "low": 0.1, "high": 1.0}},
        }
    )
    study, observer = open_study(sweep, tmp_path), Recorder()
    tune.Tuner(
        epochs,
        tune_config=TuneConfig(
            search_alg=StudySearcher(study, sweep, observer, everywhere(sweep), forecast),
            num_samples=TRIALS,
            scheduler=MoAsha(sweep, study),
            reuse_actors=True,
        ),
        run_config=RunConfig(name="t", storage_path=str(tmp_path), verbose=0),
    ).fit()
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == len(observer.ends) == TRIALS
    assert states[TrialState.PRUNED] >= 4
    stopped = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert {trial.user_attrs["epochs"] for trial in stopped} <= {1, 2, 4, 8}
    assert all(trial.values is None for trial in stopped)
    assert all(len(curve_of(trial.user_attrs)) == trial.user_attrs["epochs"] for trial in study.trials)
    (best,) = study.best_trials  # all cost the same: the most accurate dominates
    assert best.user_attrs["epochs"] == EPOCHS
    assert best.params == max(study.trials, key=lambda trial: trial.params["method/floors/early"]).params
