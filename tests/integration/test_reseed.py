"""A front's members run again with other seeds, as a person does it, and once more."""

import json

import mlflow
import pytest
from ray.cluster_utils import Cluster

from alast_tune.results import FrontFile, Reseeded
from alast_tune.tracking import run_ids
from tests.integration.harness import Pareto
from tests.integration.test_sweep import trial_states


@pytest.mark.slow
def test_members_are_run_with_other_seeds_each_once_and_mlflow_has_it(ray_here: Cluster, pareto: Pareto) -> None:
    folder, again = pareto.storage / "small", pareto.storage / "small-seeds"
    out = pareto.here("--preset", pareto.preset(trials=3, epochs=1), "--name", "small", "--reseed", "2")
    assert "small: candidates with 2 other seeds" in out
    front = FrontFile.read(folder / "front.json")
    found = Reseeded.find(folder)
    assert found is not None
    floor = front.region.floor
    assert front.region.source == "full" and floor > 0
    counting = [member.trial_id for member in front.front if member.objectives["accuracy"] >= floor]
    full = [] if any(member.baseline == "full" for member in front.front) else ["0000"]  # which is run again anyhow
    assert [member.trial_id for member in found.members] == counting + full
    lead, mean = "within 1 point of full fine-tuning", "in the mean of 2 other seeds: "
    answer = next(line for line in reversed(out.splitlines()) if line.startswith(lead))
    assert mean in answer  # of the first runs, it was said before
    assert front.knee_seeds == 2
    assert found.seeds == (1, 2)
    page, told = (folder / name for name in ("report.html", "reseeded.json"))
    assert page.stat().st_mtime_ns > told.stat().st_mtime_ns  # drawn again, with what the seeds tell
    objectives = {member.trial_id: member.objectives for member in front.front} | {"0000": front.full}
    for member in found.members:
        assert member.found == objectives[member.trial_id]
        assert [run.seed for run in member.runs] == [1, 2]
        assert all(run.test_accuracy is not None for run in member.runs)
        first, second = (run.objectives["accuracy"] for run in member.runs)
        assert member.mean["accuracy"] == pytest.approx((first + second) / 2)
        assert 0 <= member.front_probability <= 1
    counts = json.loads((again / "front.json").read_text())["trials"]
    assert (counts["complete"], counts["total"]) == (2 * len(found.members),) * 2

    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    for member in found.members:
        run_id = run_ids(folder)[int(member.trial_id)]
        metrics = client.get_run(run_id).data.metrics
        assert metrics["reseeded_accuracy"] == pytest.approx(member.mean["accuracy"])
        assert metrics["front_probability"] == pytest.approx(member.front_probability)

    # Once more, as after a driver that died before it wrote this down: nothing is run twice.
    (folder / "reseeded.json").unlink()
    pareto.here("--resume", "small", "--reseed", "2")
    assert Reseeded.find(folder) == found
    assert trial_states(again) == ["COMPLETE"] * counts["total"]
    assert not (pareto.storage / "small-seeds-2").exists()

    # With one more seed: that one alone is run.
    out = pareto.here("--resume", "small", "--reseed", "3")
    more = Reseeded.find(folder)
    assert more is not None and more.seeds == (1, 2, 3) and "in the mean of 3 other seeds: " in out
    before = {member.trial_id: member.runs for member in found.members}
    assert all(member.runs[:2] == before.get(member.trial_id, member.runs[:2]) for member in more.members)
    new = sum(3 if member.trial_id not in before else 1 for member in more.members)
    assert len(trial_states(pareto.storage / "small-seeds-2")) <= new
