"""A sweep is refused before anything is written."""

from pathlib import Path

import pytest

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.study import run_sweep


@pytest.mark.parametrize("inner", [".", "runs"])
def test_a_storage_among_the_images(two_classes: Path, inner: str) -> None:
    before = sorted(two_classes.rglob("*"))
    trial = {"data": {"dataset": "folder", "root": two_classes}}
    sweep = SweepConfig.model_validate(
        {
            "storage": two_classes / inner,
            "trial": trial,
            "space": {"method/alpha": {"type": "float", "low": 0, "high": 1}},
        }
    )
    with pytest.raises(ConfigError, match=r"storage = .* lies in data.root .*; give a folder elsewhere"):
        run_sweep(sweep)
    assert sorted(two_classes.rglob("*")) == before
