"""Two processes that share each batch equal one that has all of it, and hold the same plans."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from alast_tune.config import TrialConfig, apply_params
from tests.integration.harness import PATIENCE, ROOT
from tests.unit import parallel_worker

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "paper": {"name": "alast", "reading": "paper", "alpha": 0.01, "trainable_blocks": 3},
    "authors": {"name": "alast", "reading": "authors", "alpha": 1e-4, "trainable_blocks": 3},
    "lora+alast": {"name": "alast", "reading": "fast", "alpha": 0.01, "trainable_blocks": 3, "lora": {"rank": 4}},
    "top_k": {"name": "top_k", "count": 2, "probe_steps": 1},
    "rare classes": {"name": "full"},
    "mixed": {"name": "full"},
}
RECIPE: dict[str, Any] = {"batch_size": 12, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "clip_grad": 0.5}
RECIPE |= {"ema": 0.5, "layer_decay": 0.75}
MORE: dict[str, dict[str, Any]] = {
    "paper": {"data/augment": "paper"},
    "top_k": {"data/augment": "trivial", "data/random_erasing": 0.5},
    "mixed": {"data/augment": "paper"} | {f"train/{name}": value for name, value in RECIPE.items()},
}
"""Each image is augmented by its number, whichever rank it comes to."""
MORE["rare classes"] = {"data/class_weights": "balanced", "data/sampling": "balanced"}
"""On a quarter as many images of one class as of the other."""

DRAWN = {"train/token_keep": 0.5, "method": {"name": "lora", "rank": 4}}
"""Tokens, by each rank for itself."""


@pytest.fixture(scope="module")
def configs(
    tiny_trial: Callable[..., TrialConfig], two_classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TrialConfig]:
    train = {"epochs": 1, "batch_size": 13, "learning_rate": 1e-2, "optimizer": "sgd"}
    trials = {name: tiny_trial(method, **train) for name, method in METHODS.items()}
    rare = shutil.copytree(two_classes, tmp_path_factory.mktemp("rare") / "pictures")
    for file in sorted((rare / "train" / "light").iterdir())[4:]:
        file.unlink()
    own = {"rare classes": {"data/root": rare}}
    drawn = apply_params(trials["full"], DRAWN)
    more = {"drawn": drawn, "drawn, resumed": drawn}
    return {name: apply_params(trial, MORE.get(name, {}) | own.get(name, {})) for name, trial in trials.items()} | more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, configs: dict[str, TrialConfig]) -> Path:
    """What each of two processes came to, with every method."""
    folder = tmp_path_factory.mktemp("parallel")
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(config.model_dump_json())
    files = [folder / f"{name}.json" for name in configs]
    command = [sys.executable, "-m", "tests.unit.parallel_worker", folder, *files]
    ranks = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        assert ranks.wait(timeout=PATIENCE) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)  # who waits for a peer that has failed
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_two_processes_equal_one(folder: Path, configs: dict[str, TrialConfig], method: str) -> None:
    alone = parallel_worker.outcome(configs[method])
    first, second = (torch.load(folder / f"{method}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["plans"] == second["plans"]
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    assert [plan[:2] for plan in first["plans"]] == [plan[:2] for plan in alone["plans"]]
    for mine, whole in zip(first["plans"], alone["plans"], strict=True):
        assert mine[2] == pytest.approx(whole[2], abs=1e-4)
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(first["model"][name], tensor, rtol=1e-3, atol=1e-5)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "validation_loss", "train_loss"):
        assert first["report"][name] == pytest.approx(alone["report"][name], rel=1e-3), name
    cost = ("train_flops", "exploration_flops", "peak_bytes", "steady_peak_bytes")
    assert [first["report"][name] for name in cost] == [second["report"][name] for name in cost]
    assert [first["report"][name] for name in cost[:2]] == [alone["report"][name] for name in cost[:2]]
    # The first rank has an image more than the second, 7 of 13: the run's peak is its.
    # Where images are mixed both have pairs, six each.
    assert second["report"]["own_peak_bytes"] <= first["report"]["own_peak_bytes"] <= first["report"]["peak_bytes"]
    assert method == "mixed" or second["report"]["own_peak_bytes"] < first["report"]["own_peak_bytes"]
    assert first["report"]["peak_bytes"] < alone["report"]["peak_bytes"]


@pytest.mark.slow
def test_two_processes_go_on_within_an_epoch_each_with_what_it_draws(folder: Path) -> None:
    for rank in (0, 1):
        whole, resumed = (
            torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for name in ("drawn", "drawn, resumed")
        )
        assert whole["plans"] == resumed["plans"]
        for name, tensor in whole["model"].items():
            assert torch.equal(tensor, resumed["model"][name]), name
        for name in ("accuracy", "train_loss", "train_flops", "peak_bytes"):
            assert whole["report"][name] == resumed["report"][name], name
