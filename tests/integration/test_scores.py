"""A sweep by macro F1 on images of which one class is rare: the study, the front, MLflow and the pages say so."""

import json
import shutil

import pytest
from ray.cluster_utils import Cluster

import alast_tune
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile
from alast_tune.summary import joint_front
from tests.integration.harness import Pareto, short_end
from tests.integration.test_sweep import runs_in

pytestmark = pytest.mark.slow


def test_a_sweep_maximizes_its_score(ray_here: Cluster, pareto: Pareto, monkeypatch: pytest.MonkeyPatch) -> None:
    short_end(monkeypatch)
    rare = shutil.copytree(pareto.pictures, pareto.folder / "rare")
    for part, left in (("train", 4), ("val", 3), ("test", 2)):
        for file in sorted((rare / part / "light").iterdir())[left:]:
            file.unlink()
    preset = pareto.preset(trials=3, epochs=1)
    data = {"root": str(rare), "class_weights": "balanced", "sampling": "balanced"}
    settings = {"trial": {"data": data, "train": {"score": "macro_f1"}}, "storage": pareto.storage}
    sweep = alast_tune.sweep(preset=preset, name="f1", min_accuracy=0.01, **settings)
    assert sweep.trials().state.isin(["complete", "infeasible"]).all()

    front = FrontFile.read(sweep.folder / "front.json")
    assert front.score == "macro_f1" and front.objectives[0].name == "accuracy"
    _, runs = runs_in(pareto.storage, "trial")
    logged = {run.data.tags["alast.trial"]: run.data.metrics for run in runs}
    accuracies = sweep.trials().set_index("number").accuracy
    for trial, metrics in logged.items():
        assert metrics["macro_f1"] == pytest.approx(accuracies[int(trial)], abs=1e-5) != metrics["accuracy"]
        assert metrics["balanced_accuracy"] > 0 and "top5" not in metrics
    for member in front.front:
        assert member.objectives["accuracy"] == pytest.approx(logged[member.trial_id]["macro_f1"], abs=1e-5)
        assert member.test_accuracy == pytest.approx(logged[member.trial_id]["test_macro_f1"], abs=1e-5)
    _, (parent,) = runs_in(pareto.storage, "sweep")
    assert parent.data.metrics["best_macro_f1"] == pytest.approx(front.best_accuracy, abs=1e-5)
    assert "best_accuracy" not in parent.data.metrics
    assert "| trial | macro F1 | test |" in parent.data.tags["mlflow.note.content"]

    with pytest.raises(ConfigError, match=r"have train/score = macro_f1, this sweep's accuracy: such results do not"):
        alast_tune.sweep(
            preset=preset, name="plain", warm_start=sweep.folder, storage=pareto.storage, trial={"data": data}
        )
    raw = json.loads((sweep.folder / "front.json").read_text())
    for member in raw["front"]:
        member["config"]["train"]["score"] = "accuracy"
    other = FrontFile.model_validate(raw | {"sweep": "plain", "score": "accuracy"})
    with pytest.raises(ConfigError, match=r"sweep = plain: has train/score = accuracy, f1 has macro_f1"):
        joint_front([front, other])
