"""What a sweep rests on: its reference point, signals, which checkpoint is the newest."""

import os
import signal
from pathlib import Path

import pytest

from alast_tune.config import FullConfig, SweepConfig, TrialConfig, parse
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.cluster import Stop
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.space import full_config
from alast_tune.tune.study import MARGIN, reference_point


def sweep(storage: Path) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "storage": storage,
            "trials": 2,
            "trial": {"data": {"train_images": 64}, "train": {"epochs": 1, "batch_size": 32, "device": "cpu"}},
            "space": {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}},
        }
    )


OTHER = "driver-00/0004/checkpoint_000000"


def write_checkpoint(folder: Path, name: str, age: int) -> None:
    file = folder / "tune" / name / "state.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (1e9 + age, 1e9 + age))


def test_reference_point_is_somewhat_above_full_fine_tuning(tmp_path: Path) -> None:
    accuracy, flops, peak = reference_point(sweep(tmp_path), Forecast())
    assert accuracy == 0.0
    # Counted over 33 full batches of 32, and of the last block no queries, projection and MLP of the 64 patches.
    counted = 440_558_807_040 - 1056 * (6 * 64 * 10 * 80**2 + 14 * 64 * 65 * 80)
    assert flops == pytest.approx(1.1 * 64 * counted // 1056, rel=1e-6)
    assert 5e7 < peak < 2.5e8


def test_reference_point_is_the_full_fine_tuning_that_the_sweep_runs(tmp_path: Path) -> None:
    """With the space's largest images and its nearest batch, and without the last images that fill no batch."""
    space = {
        "model/image_size": {"type": "categorical", "choices": [32, 64]},
        "train/batch_size": {"type": "categorical", "choices": [10, 20]},
    }
    searched = sweep(tmp_path).model_copy(update={"space": parse(SweepConfig, {"space": space}).space})
    small, forecast = sweep(tmp_path).trial.given_values(), Forecast()
    run = parse(TrialConfig, small | {"model": {"image_size": 64}, "train": small["train"] | {"batch_size": 20}})
    costs = forecast.costs(run.model_copy(update={"method": FullConfig()}))
    assert reference_point(searched, forecast) == (0.0, MARGIN * costs.train_flops, MARGIN * costs.peak_bytes)
    assert costs.train_flops % 60 == 0 and full_config(searched).train.batch_size == 20


def test_a_signal_stops_at_the_next_pulse_and_a_second_one_at_once() -> None:
    stop = Stop()
    stop.check()
    stop.request(signal.SIGTERM, None)
    with pytest.raises(SystemExit) as exit_:
        stop.check()
    assert exit_.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        stop.request(signal.SIGINT, None)


def test_checkpoints_are_listed_newest_first_over_all_drivers_whenever_they_were_written(tmp_path: Path) -> None:
    for age, folder in enumerate(("driver-01/0003/checkpoint_000000", "driver-00/0003/checkpoint_000001", OTHER)):
        write_checkpoint(tmp_path, folder, age)
    assert [Path(place).parts[-3:] for place in checkpoints(tmp_path, 3)] == [
        ("driver-01", "0003", "checkpoint_000000"),
        ("driver-00", "0003", "checkpoint_000001"),
    ]


def test_what_a_worker_parted_from_its_sweep_writes_late_is_not_the_newest(tmp_path: Path) -> None:
    """Without a network between them; with one in test_partition."""
    trial = "driver-00/0003"
    for age, epoch in enumerate((0, 1, 9, 10, 9)):  # ended by another worker, then the parted one saves the tenth epoch
        write_checkpoint(tmp_path, f"{trial}/checkpoint_{epoch:06d}", age)
    (tmp_path / "tune" / trial / "checkpoint_000011").mkdir()  # and has begun on another that it will not end
    (tmp_path / "tune" / trial / "checkpoint_000011" / "state.pt.tmp").touch()
    newest = [Path(place).name for place in checkpoints(tmp_path, 3)]
    assert newest == [f"checkpoint_{epoch:06d}" for epoch in (10, 9, 1, 0)]
