"""What a worker goes on from, and which disk it says is full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from alast_tune.config import TrialConfig
from alast_tune.run import Run
from alast_tune.storage import copy_of, open_filesystem
from alast_tune.tune.storage_errors import storage_trouble
from alast_tune.tune.trainable import AlastTrainable
from tests.unit.tiny import STEPS

FULL = OSError(28, "No space left on device")


@pytest.fixture
def trial(tiny_trial: Callable[..., TrialConfig]) -> TrialConfig:
    return tiny_trial({"name": "head"})


def worker(trial: TrialConfig, sweep: str) -> AlastTrainable:
    made = AlastTrainable.__new__(AlastTrainable)  # Tune's own part needs a Ray
    made.config = {"number": 0, "trial": trial.model_dump(mode="json"), "threads": 1, "sweep": sweep, "resume_from": []}
    made._trial_info = None
    made.setup(made.config)
    return made


def test_from_object_storage_too_a_damaged_checkpoint_falls_back_to_the_one_before(
    trial: TrialConfig, bucket: str, tmp_path: Path
) -> None:
    run = Run(trial)
    for epoch in range(2):
        run.train_epoch()
        run.save(tmp_path / f"checkpoint_{epoch:06d}")
    newest = tmp_path / "checkpoint_000001" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    filesystem, root = open_filesystem(copy_of(f"{bucket}/pets"))
    for epoch in range(2):
        name = f"checkpoint_{epoch:06d}"
        there = f"{root}/tune/driver-00/0000/{name}"
        fs.copy_files(str(tmp_path / name), there, fs.LocalFileSystem(), filesystem)
    (tmp_path / "checkpoint_000000").rename(tmp_path / "elsewhere")
    handed = newest.parent.rename(tmp_path / "checkpoint_tmp_b")  # as Tune fetches it
    gone_on = worker(trial, f"{bucket}/pets")
    gone_on.load_checkpoint(str(handed))
    assert gone_on._run.epoch == 1
    assert [record.step for record in gone_on._run.meter.ledger.read()] == list(range(STEPS))  # its history is there


@pytest.mark.parametrize("error", [FULL, RuntimeError("PytorchStreamWriter failed writing\nfile data/0")])
def test_a_full_disk_in_training_is_the_workers_own(
    trial: TrialConfig, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(Run, "train_epoch", full)
    with pytest.raises(RuntimeError, match=r"\(on a disk of the worker's own\)$") as told:
        worker(trial, str(tmp_path)).step()
    assert storage_trouble(f"{error}\n{told.value}", str(tmp_path)) is None


@pytest.mark.parametrize("beside", [True, False])
def test_a_full_disk_in_saving_is_the_sweeps_only_if_they_share_one(
    trial: TrialConfig, beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise FULL

    saving = worker(trial, str(tmp_path) if beside else "s3://bucket/sweeps/pets")
    saving.begin([])
    monkeypatch.setattr(Run, "save", full)
    with pytest.raises((OSError, RuntimeError)) as told:
        saving.save_checkpoint(str(tmp_path))
    assert storage_trouble(str(told.value), saving.config["sweep"]) == ("No space left on device" if beside else None)
