"""Members of a front run again: as they were, wherever their files lie now."""

from pathlib import Path

from alast_tune.config import SweepConfig, TrialConfig, apply_params, without_places
from alast_tune.tune.reseed import _settings_of


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
