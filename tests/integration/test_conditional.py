"""A search among methods, each with ranges of its own, for real: resumed, then looked at from every side."""

import json
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from alast_tune.api import open_sweep
from alast_tune.cli import main
from alast_tune.config import in_force, read_mapping, setting_of, stored_sweep
from alast_tune.results import FrontFile
from tests.integration.harness import Pareto
from tests.integration.test_sweep import runs_in, trial_states
from tests.unit.plots.figures import traces

SPACE = """\
trials: 2
concurrent: 1
sampler: random # for speed
seed: 4
trial:
  data: {{dataset: folder, root: {root}}}
  model: {{image_size: 16}}
  train: {{epochs: 1, batch_size: 16, device: cpu}}
space:
  train/batch_size: {{type: categorical, choices: [8, 16]}}
  method:
    type: variants
    variants:
      full: {{method: {{name: full}}, train/learning_rate: {{type: float, low: 1.0e-5, high: 1.0e-3, log: true}}}}
      lora:
        method: {{name: lora}}
        method/rank: {{type: categorical, choices: [2, 4]}}
        method/from_block: {{type: int, low: 6, high: 11}}
        train/learning_rate: {{type: float, low: 1.0e-4, high: 1.0e-2, log: true}}
      head: {{method: {{name: head}}, train/learning_rate: {{type: float, low: 1.0e-3, high: 1.0e-1, log: true}}}}
"""


@pytest.mark.slow
def test_a_search_among_methods_is_resumed_and_says_what_each_trial_had(
    ray_here: Cluster, pareto: Pareto, tmp_path: Path
) -> None:
    preset, folder = tmp_path / "all.yaml", pareto.storage / "all"
    preset.write_text(SPACE.format(root=pareto.pictures))
    pareto.here("--preset", str(preset), "--name", "all")
    assert trial_states(folder) == ["COMPLETE"] * 3  # full fine-tuning, no ALaST, and two of the space
    pareto.here("--resume", "all", "--trials", "6", draw=True)
    assert trial_states(folder) == ["COMPLETE"] * 7

    config, front = stored_sweep(folder), FrontFile.read(folder / "front.json")
    for member in front.front:
        assert list(member.params) == in_force(config.space, member.params)
    _, runs = runs_in(pareto.storage, "trial")
    full, *proposed = sorted(runs, key=lambda run: run.data.tags["alast.trial"])
    assert full.data.params["method/name"] == "full" and full.data.params["train/learning_rate"] == "0.0001"
    assert full.data.params["full/train/learning_rate"] == "0.0001"  # of which it is a point
    ways = [run.data.params["method"] for run in proposed]
    assert set(ways) == {"full", "lora", "head"} and len(ways) == 6
    for run, way in zip(proposed, ways, strict=True):
        params = run.data.params
        assert params["method/name"] == way
        names = run.data.tags["alast.searched"].split(", ")
        assert names == in_force(config.space, {"method": way})
        assert [params[name] for name in names] == [params[setting_of(name)] for name in names]
        assert not [name for name in params if name.split("/")[0] in {"full", "lora", "head"} - {way}]

    page = (folder / "report.html").read_text()
    (lines,) = traces(page, "space")
    axes = {axis["label"]: axis for axis in lines["dimensions"]}
    assert {"method", "rank", "learning_<br>rate", "from_<br>block"} <= axes.keys()
    assert "-" in axes["from_<br>block"]["ticktext"] and len(axes["method"]["values"]) == 6
    table = open_sweep("all", pareto.storage).trials()
    assert list(table["method"]) == ["full", *ways]
    assert table["method/rank"].notna().sum() == ways.count("lora") and table["train/learning_rate"].notna().all()

    best = tmp_path / "best.yaml"
    pick = next(member for member in front.front if not member.baseline)
    main(["promote", str(folder), "--pick", pick.trial_id, "-o", str(best)])
    assert read_mapping(best)["method"]["name"] == pick.params["method"]
    again = json.loads((folder / "sweep.json").read_text())["space"]["method"]["variants"]["lora"]["method/rank"]
    assert again == {"type": "categorical", "choices": [2, 4]}
