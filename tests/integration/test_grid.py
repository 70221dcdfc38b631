"""A grid over variants, for real: killed, resumed, and read in MLflow by the variants' names."""

from pathlib import Path

import mlflow
import pytest

from alast_tune.results import FrontFile
from tests.integration.harness import Pareto, kill, wait_for
from tests.integration.test_sweep import trial_states

GRID = """\
sampler: grid
trial:
  data: {dataset: digits, train_images: 64}
  train: {epochs: 1, batch_size: 32, learning_rate: 1.0e-3, device: cpu}
space:
  way:
    type: variants
    variants:
      full: {method: {name: full}}
      lora: {method: {name: lora, rank: 4}}
  train/seed: {type: int, low: 0, high: 1}
"""


@pytest.mark.slow
def test_a_grid_survives_its_driver_and_is_found_by_name(pareto: Pareto, tmp_path: Path) -> None:
    preset, folder = tmp_path / "grid.yaml", pareto.storage / "grid"
    preset.write_text(GRID)
    process = pareto.start("--preset", str(preset), "--name", "grid")
    wait_for(lambda: "COMPLETE" in trial_states(folder), process)
    kill(process)
    refused = pareto.run("--resume", "grid", "--trials", "9", expect=2)
    assert refused.strip() == "error: trials = 9: the grid has 4 combinations, each once; leave it out"
    out = pareto.run("--resume", "grid")
    assert trial_states(folder) == ["COMPLETE"] * 4, out
    front = FrontFile.read(folder / "front.json")
    assert {member.params["way"] for member in front.front} <= {"full", "lora"}
    assert all(member.config.train.learning_rate == 1e-3 and not member.landmark for member in front.front)
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id], "params.way = 'lora'")
    assert sorted(run.data.params["train/seed"] for run in runs) == ["0", "1"]
    assert {run.data.params["method/rank"] for run in runs} == {"4"}
