"""What Weights & Biases gets of a sweep, read from what its offline mode writes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from alast_tune.callbacks import WandB
from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from tests.unit.callbacks.sweep import happen


def test_a_missing_package_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"WandB: needs the package wandb: pip install 'alast-tune\[wandb\]'"):
        WandB()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of another package's, in what it starts
def test_a_trial_is_a_run_and_the_front_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.chdir(tmp_path)
    space = {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}}
    happen(WandB(project="p", mode="offline", dir=tmp_path), SweepConfig.model_validate({"name": "s", "space": space}))
    wandb.teardown()
    runs = {}
    for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        records = list(read(file))
        (run,) = [record.run for record in records if record.HasField("run")][:1]
        runs[run.display_name] = (run, records)
    assert runs.keys() == {"0000 alast", "0001 alast", "0003 alast", "front"}
    run, records = runs["0000 alast"]
    assert (run.project, run.run_group, run.job_type) == ("p", "s", "trial")
    config = {item.key: item.value_json for item in run.config.update}
    assert config["method/alpha"] == "0.5" and config["train/epochs"] == "2"
    history = [
        {(i.key or i.nested_key[0]): i.value_json for i in one.history.item}
        for one in records
        if one.HasField("history")
    ]
    assert [(row["epoch"], row["accuracy"]) for row in history] == [("1", "0.4"), ("2", "0.8")]
    codes = {name: one.exit.exit_code for name, (_, them) in runs.items() for one in them if one.HasField("exit")}
    assert codes == {"0000 alast": 0, "0001 alast": 1, "0003 alast": 1, "front": 0}
    tables = list(tmp_path.glob("wandb/offline-run-*/files/media/table/front*.json"))
    assert [json.loads(table.read_text())["data"] for table in tables] == [[["0000", "alast", None, 0.8, 2e12, 4e8]]]


def read(file: Path) -> Any:
    """Read the records that offline mode has written: LevelDB's log format, behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    block, data, at, whole = 32768, file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in {1, 4}:  # a record in one piece, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
