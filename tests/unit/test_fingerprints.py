"""A folder is gone on with only where images and starting weights are those that it began with, wherever they lie."""

import re
import shutil
from pathlib import Path

import pytest

from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import FILE, Fingerprints, keep_fingerprints, read_fingerprints
from alast_tune.models import EMBEDDED_WEIGHTS
from alast_tune.train import fit

ONE = Fingerprints(data="d1", weights="w1")


def test_differences_name_both_fingerprints() -> None:
    other = Fingerprints(data="d2", weights=None)
    assert ONE.differences(ONE) == ""
    assert ONE.differences(other) == (
        "other data (fingerprint d2, not d1), other starting weights (fingerprint none, not w1)"
    )


def test_what_a_folder_began_with_is_kept_and_compared(tmp_path: Path) -> None:
    keep_fingerprints(ONE, tmp_path, "output", new=True)
    keep_fingerprints(ONE, tmp_path, "output")
    assert read_fingerprints(tmp_path) == ONE
    with pytest.raises(
        ConfigError,
        match=r"^output = .*: was begun otherwise: here are other data \(.+, not d1\); put them back, or start",
    ):
        keep_fingerprints(Fingerprints(data="d2", weights="w1"), tmp_path, "output")


def test_a_folder_that_was_counted_in_another_way_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"data": "d1", "weights": "w1"}')  # as the first version has written it
    remedy = "use the version of alast-tune that counted so, or start anew"  # nobody can put a meter back
    with pytest.raises(ConfigError, match=rf"here are FLOPs counted in another way \(meter 2, not 1\); {remedy}$"):
        keep_fingerprints(ONE, tmp_path, "resume")
    (tmp_path / FILE).unlink()  # nor has the version before that written one
    with pytest.raises(ConfigError, match=f"^resume = .*: has no {FILE}: .* counted FLOPs in another way; use that"):
        keep_fingerprints(ONE, tmp_path, "resume")
    assert not (tmp_path / FILE).exists()


def test_a_run_goes_on_where_its_files_have_moved_and_not_where_they_are_others(
    tmp_path: Path, two_classes: Path
) -> None:
    shutil.copytree(two_classes, tmp_path / "moved")
    shutil.copy(EMBEDDED_WEIGHTS, tmp_path / "w.safetensors")

    def trial(root: Path, epochs: int = 1, **model: object) -> TrialConfig:
        values = {"data": {"dataset": "folder", "root": root}, "model": {"image_size": 16, **model}}
        train = {"epochs": epochs, "batch_size": 16, "device": "cpu"}
        return TrialConfig.model_validate(values | {"method": {"name": "head"}, "train": train})

    folder = tmp_path / "run"
    assert len(list(fit(trial(two_classes), folder))) == 1
    assert list(fit(trial(tmp_path / "moved", checkpoint=tmp_path / "w.safetensors"), folder)) == []
    with pytest.raises(ConfigError, match="belongs to a run with other settings"):
        list(fit(trial(two_classes, epochs=2), folder))
    shutil.copytree(two_classes, tmp_path / "other")
    next((tmp_path / "other" / "train").rglob("*.*")).unlink()
    before = read_fingerprints(folder)
    assert before
    with pytest.raises(ConfigError, match=re.escape(f", not {before.data})")):
        list(fit(trial(tmp_path / "other"), folder))
