from pathlib import Path

import pytest

from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import EpochReport, Measurements
from alast_tune.tune.distributed import _Job, _train, _TrainingController, fit_distributed, resources_per_worker

SMALL, LARGE = {"CPU": 4.0, "memory": 1e9}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("workers", "nodes", "device", "each"),
    [
        (2, [SMALL], "auto", {"CPU": 2}),
        (3, [SMALL], "cuda", {"CPU": 1}),  # that there is no card, the worker says
        (5, [SMALL, LARGE], "cpu", {"CPU": 4}),
        (6, [SMALL, LARGE], "cpu", {"CPU": 3}),
        (1, [SMALL, LARGE], "auto", {"CPU": 16, "GPU": 1}),
        (4, [SMALL, LARGE], "auto", {"CPU": 4, "GPU": 1}),
        (8, [LARGE, {}, LARGE], "cuda", {"CPU": 4, "GPU": 1}),
    ],
)
def test_workers_divide_what_the_cluster_has(
    workers: int, nodes: list[dict[str, float]], device: str, each: dict[str, float]
) -> None:
    assert resources_per_worker(workers, nodes, device) == each


@pytest.mark.parametrize(
    ("workers", "device", "remedy"),
    [
        (5, "auto", "each takes a CPU and a GPU, and the cluster has room for 4"),
        (21, "cpu", "each takes a CPU, and the cluster has room for 20"),
    ],
)
def test_too_many_workers_for_the_cluster_are_refused(workers: int, device: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"workers = {workers}: {remedy}"):
        resources_per_worker(workers, [SMALL, LARGE], device)


@pytest.mark.parametrize("workers", [-1, 0, 129])
def test_every_worker_needs_an_image_of_each_batch(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers = {workers}: .* give 1 to 128 "):
        fit_distributed(TrialConfig(), tmp_path / "out", workers, print)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    job = _Job(TrialConfig(), tmp_path, tmp_path / "elsewhere", {"CPU": 1.0}, None)
    with pytest.raises(ConfigError, match=f"output = {tmp_path}: .* does not see it; all nodes have to share it"):
        _train({"job": job})


def test_an_epoch_that_a_restart_repeats_is_reported_once() -> None:
    def report(epoch: int, seconds: float) -> EpochReport:
        return EpochReport(epoch, 1.0, 1.0, 0.5, Measurements(1, 1, 1, seconds, seconds))

    controller = _TrainingController()
    for epoch, seconds in [(1, 1.0), (2, 2.0), (2, 5.0), (3, 6.0)]:
        controller.tell(report(epoch, seconds))
    assert controller.after(0) == [report(1, 1.0), report(2, 2.0), report(3, 6.0)]
    assert controller.after(2) == [report(3, 6.0)]
