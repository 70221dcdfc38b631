"""A sweep is refused before anything is written."""

import sys
from pathlib import Path

import pytest

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trials import open_study


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


def test_a_study_in_a_database_whose_driver_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    sweep = SweepConfig.model_validate({"study": "postgresql://u@127.0.0.1:9/db", "space": space})
    with pytest.raises(
        ConfigError, match=r"^study = postgresql://u@127.0.0.1:9/db: .*; pip install 'psycopg\[binary\]'$"
    ):
        open_study(sweep, tmp_path, new=True)
