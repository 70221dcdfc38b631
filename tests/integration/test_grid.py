"""A grid over variants, for real: stopped by a signal, resumed; one of its variants cannot run."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from alast_tune.results import FrontFile, TrialResult
from alast_tune.tune.observer import SweepObserver
from tests.integration.harness import Pareto
from tests.integration.test_sweep import logged_epochs, runs_in, trial_states

GRID = """\
sampler: grid
concurrent: 1
retries: 0
trial:
  data: {{dataset: folder, root: {root}}}
  model: {{image_size: 16}}
  train: {{epochs: 1, batch_size: 16, learning_rate: 1.0e-3, device: cpu}}
space:
  way:
    type: variants
    variants:
      full: {{method: {{name: full}}}}
      broken: {{model: {{checkpoint: {broken}}}}}
      lora: {{method: {{name: lora, rank: 4}}}}
  train/seed: {{type: int, low: 0, high: 1}}
"""


@pytest.mark.slow
def test_a_grid_goes_on_after_a_signal_and_without_the_variant_that_cannot_run(
    ray_here: Cluster, pareto: Pareto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, broken, folder = tmp_path / "grid.yaml", tmp_path / "broken.safetensors", pareto.storage / "grid"
    broken.write_text("no weights")
    preset.write_text(GRID.format(root=pareto.pictures, broken=broken))
    ended = SweepObserver.ended

    def stop(observer: SweepObserver, result: TrialResult) -> None:
        """The study knows that the first trial is complete, MLflow does not."""
        os.kill(os.getpid(), signal.SIGTERM)
        ended(observer, result)

    with monkeypatch.context() as patch:
        patch.setattr(SweepObserver, "ended", stop)
        pareto.here("--preset", str(preset), "--name", "grid", "--experiment", "pets", expect=128 + signal.SIGTERM)
    assert Counter(trial_states(folder)) <= Counter(COMPLETE=1, RUNNING=1)
    _, (parent,) = runs_in(pareto.storage, "sweep")
    assert parent.info.status == "KILLED"
    _, runs = runs_in(pareto.storage, "trial")
    assert sorted({run.info.status for run in runs} - {"KILLED"}) == ["FINISHED"]
    assert FrontFile.read(folder / "front.json").trials.complete == 1

    refused = pareto.here("--resume", "grid", "--trials", "9", expect=2)
    assert refused.strip() == "error: trials = 9: the grid has 6 combinations, each once; leave it out"
    out = pareto.here("--resume", "grid")
    assert trial_states(folder) == ["COMPLETE"] * 2 + ["FAIL"] * 2 + ["COMPLETE"] * 2, out
    assert "broken.safetensors" in out
    front = FrontFile.read(folder / "front.json")
    assert (front.trials.complete, front.trials.failed) == (4, 2)
    assert {member.params["way"] for member in front.front} <= {"full", "lora"}
    assert all(member.config.train.learning_rate == 1e-3 and not member.baseline for member in front.front)
    assert logged_epochs(pareto.storage) == dict.fromkeys((0, 1, 4, 5), (1,))  # the others were never launched
    _, runs = runs_in(pareto.storage, "trial")
    lora = [run for run in runs if run.data.params["way"] == "lora"]
    assert sorted(run.data.params["train/seed"] for run in lora) == ["0", "1"]
    assert {run.data.params["method/rank"] for run in lora} == {"4"}
    client, (parent,) = runs_in(pareto.storage, "sweep")
    assert parent.info.status == "FINISHED"
    assert {client.get_experiment(run.info.experiment_id).name for run in (parent, *runs)} == {"pets"}
