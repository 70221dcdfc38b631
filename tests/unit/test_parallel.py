"""Two processes that share each batch equal one that has all of it, and hold the same plans."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alast_tune.config import TrialConfig

WORKER = Path(__file__).with_name("parallel_worker.py")

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "paper": {"name": "alast", "reading": "paper", "alpha": 0.01, "trainable_blocks": 4},
    "authors": {"name": "alast", "reading": "authors", "alpha": 1e-4, "trainable_blocks": 4},
    "lora+alast": {"name": "alast", "reading": "fast", "alpha": 0.01, "lora": {"rank": 4}},
    "top_k": {"name": "top_k", "count": 2, "probe_steps": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and each of two came to, with every method."""
    folder = tmp_path_factory.mktemp("parallel")
    data = {"train_images": 98}
    train = {"epochs": 1, "batch_size": 33, "learning_rate": 1e-2, "optimizer": "sgd", "device": "cpu"}
    files = []
    for name, method in METHODS.items():
        files.append(folder / f"{name}.json")
        config = TrialConfig.model_validate({"data": data, "method": method, "train": train})
        files[-1].write_text(config.model_dump_json())
    workers = []
    for ranks in (1, 2):
        (folder / str(ranks)).mkdir()
        workers += [
            subprocess.Popen([sys.executable, WORKER, folder / str(ranks), str(rank), str(ranks), *files])
            for rank in range(ranks)
        ]
    try:
        assert [worker.wait(timeout=600) for worker in workers] == [0] * 3
    finally:
        for worker in workers:  # who waits for a peer that has failed
            worker.kill()
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, method: str) -> None:
    alone, first, second = (
        torch.load(folder / f"{rank}.pt", weights_only=True)
        for rank in (f"1/{method}-0", f"2/{method}-0", f"2/{method}-1")
    )
    assert first["plans"] == second["plans"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    assert [plan[:2] for plan in first["plans"]] == [plan[:2] for plan in alone["plans"]]
    for mine, whole in zip(first["plans"], alone["plans"], strict=True):
        assert mine[2] == pytest.approx(whole[2], abs=1e-4)
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(first["model"][name], tensor, rtol=1e-3, atol=1e-5)
    for name in ("accuracy", "validation_loss", "train_loss"):
        assert first["report"][name] == pytest.approx(alone["report"][name], rel=1e-3), name
    cost = ("train_flops", "exploration_flops", "peak_bytes", "steady_peak_bytes")
    assert [first["report"][name] for name in cost] == [second["report"][name] for name in cost]
    assert [first["report"][name] for name in cost[:2]] == [alone["report"][name] for name in cost[:2]]
    # The first rank has an image more than the second, 17 of 33: the run's peak is its.
    assert second["report"]["own_peak_bytes"] < first["report"]["own_peak_bytes"] <= first["report"]["peak_bytes"]
    assert first["report"]["peak_bytes"] < alone["report"]["peak_bytes"]
