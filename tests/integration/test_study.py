"""Sweeps on a cluster of several real Ray nodes: the refusal of a store that nodes cannot share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.study import _Stop, checkpoints, reference_point, run_sweep


def sweep(storage: Path) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "storage": storage,
            "trials": 2,
            "trial": {"data": {"train_images": 64}, "train": {"epochs": 1, "batch_size": 32, "device": "cpu"}},
            "space": {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}},
        }
    )


@pytest.fixture
def two_nodes() -> Iterator[None]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_several_nodes_and_a_store_in_a_file_are_refused_before_any_trial(two_nodes: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI = sqlite:.*: several nodes need a tracking server"):
        run_sweep(sweep(tmp_path))
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_reference_point_is_somewhat_above_full_fine_tuning(tmp_path: Path) -> None:
    accuracy, flops, peak = reference_point(sweep(tmp_path).trial)
    assert accuracy == 0.0
    assert flops == pytest.approx(
        1.1 * 64 * 440_558_807_040 // 1056, rel=1e-6
    )  # FLOPs counted over 33 full batches of 32
    assert 5e7 < peak < 2.5e8


def test_a_signal_stops_at_the_next_pulse_and_a_second_one_at_once() -> None:
    stop = _Stop()
    stop.check()
    stop.request(signal.SIGTERM, None)
    with pytest.raises(SystemExit) as exit_:
        stop.check()
    assert exit_.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        stop.request(signal.SIGINT, None)


def test_checkpoints_are_listed_newest_first_over_all_drivers(tmp_path: Path) -> None:
    import os

    for age, folder in enumerate(("driver-01/0003/checkpoint_000000", "driver-00/0003/checkpoint_000001", "driver-00/0004/checkpoint_000000")):  # fmt: skip  # noqa: E501
        file = tmp_path / "tune" / folder / "state.pt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1e9 - age, 1e9 - age))
    assert [path.parts[-3:] for path in checkpoints(tmp_path, 3)] == [
        ("driver-01", "0003", "checkpoint_000000"),
        ("driver-00", "0003", "checkpoint_000001"),
    ]
