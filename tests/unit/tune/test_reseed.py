"""Members of a front run again: as they were, wherever their files lie now."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig, apply_params, check_sweep_effects, parse, without_places
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import FILE, Fingerprints
from alast_tune.results import TrialResult
from alast_tune.summary import member_of, summarise
from alast_tune.tune.reseed import _seeds_of, _settings_of, reseed


def test_a_members_settings_make_it_again_with_the_files_of_the_sweep() -> None:
    values = {
        "data": {"dataset": "folder", "root": "/old", "workers": 3, "augment": "paper"},
        "model": {"image_size": 16, "checkpoint": "/old/w"},
        "method": {"name": "lora", "rank": 2},
        "train": {"epochs": 3, "learning_rate": 2e-3},
    }
    member = TrialConfig.model_validate(values)
    base = TrialConfig.model_validate({"data": {"dataset": "folder", "root": "/new"}, "train": {"epochs": 3}})
    space = {"member": {"type": "variants", "variants": {"0001": _settings_of(member)}}}
    sweep = SweepConfig.model_validate({"sampler": "grid", "trial": base, "space": space})
    found = apply_params(sweep.trial, sweep.settings({"member": "0001"}))
    assert without_places(found) == without_places(member)
    assert found.data.root == Path("/new")


def test_budgets_and_first_points_are_the_searchs_alone() -> None:
    """A grid takes neither, and seeds that a budget cuts short tell nothing."""
    space = {"method/rank": {"type": "int", "low": 1, "high": 8}}
    trial = {"method": {"name": "lora"}, "data": {"train_images": 64}}
    ends = {"trials": 9, "time_budget": "1h", "flops_budget": "9x", "min_gain": 0.01, "reseed": 2}
    sweep = parse(
        SweepConfig,
        {"name": "s", "trial": trial, "space": space, "begin_with": [{"method/rank": 2}], "grace_epochs": 1, **ends},
    )
    member = member_of(TrialResult(1, "complete", sweep.trial, {}, (0.9, 1e12, 1e8), 1))
    again = _seeds_of(sweep, {("0001", 1): member, ("0001", 2): member})
    assert [again.settings(point)["train/seed"] for point in again.combinations()] == [1, 2]
    assert (again.name, again.trials, again.reseed, again.begin_with) == ("s-seeds", 2, None, None)
    assert (again.time_budget, again.flops_budget, again.min_gain, again.grace_epochs) == (None, None, None, None)
    check_sweep_effects(again)


def test_micro_batches_that_follow_from_the_sweeps_limit_are_those_of_its_trials() -> None:
    space = {"method/rank": {"type": "int", "low": 1, "high": 8}}
    trial = {"method": {"name": "lora"}, "data": {"train_images": 64}, "train": {"accumulate": "auto"}}
    sweep = parse(SweepConfig, {"name": "s", "trial": trial, "space": space, "max_memory": "1GiB"})
    member = member_of(TrialResult(1, "complete", sweep.with_limit(sweep.trial), {}, (0.9, 1e12, 1e8), 1))
    again = _seeds_of(sweep, {("0001", 1): member})
    assert (again.max_memory, again.trial.train.max_memory) == (None, 1 << 30)


def test_other_images_than_the_sweeps_are_refused(tmp_path: Path) -> None:
    trial = TrialConfig.model_validate({"data": {"train_images": 64}})
    sweep = SweepConfig.model_validate(
        {"name": "pets", "trial": trial, "space": {"method/alpha": {"type": "float", "low": 0, "high": 1}}}
    )
    result = TrialResult(0, "complete", trial, {}, (0.9, 1e12, 1e8), 1)
    summarise("pets", [result], (0.0, 2e12, 2e8)).write(tmp_path / "pets" / "front.json")
    (tmp_path / "pets" / "sweep.json").write_text(json.dumps(sweep.given_values()))
    before = Fingerprints(data="0" * 16, weights=None)
    (tmp_path / "pets" / FILE).write_text(before.model_dump_json())
    with pytest.raises(ConfigError, match=r"^reseed = 2: pets was run otherwise: here are other data \(fingerprint "):
        reseed(tmp_path / "pets", 2, Console(file=io.StringIO()))
