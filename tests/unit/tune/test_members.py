"""What is asked of complete trials' checkpoints is asked of the epoch that the front shows, or said to be lacking."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from alast_tune import promote
from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.results import FrontMember, TrialResult
from alast_tune.run import Run
from alast_tune.tune import members
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.trainable import finished_run


@pytest.fixture
def trial(tiny_trial: Callable[..., TrialConfig]) -> TrialConfig:
    return tiny_trial({"name": "head"})


@pytest.fixture
def sweep(tmp_path: Path, trial: TrialConfig) -> Path:
    """A sweep's folder with both epochs of trial 0."""
    run = Run(trial)
    for epoch in range(2):
        run.train_epoch()
        run.save(tmp_path / "tune" / "driver-00" / "0000" / f"checkpoint_{epoch:06d}")
    return tmp_path


def member(trial: TrialConfig) -> FrontMember:
    objectives = {"accuracy": 0.5, "train_flops": 1.0, "peak_bytes": 1.0}
    return FrontMember(
        trial_id="0000", mlflow_run_id=None, objectives=objectives, test_accuracy=None, epochs=2, config=trial
    )


def truncate(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])


def zero(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, r"checkpoint_000001: cannot be read \(\w+\); delete it"),
        (zero, r"checkpoint_000001: cannot be read \(\w+\); delete it"),
        (shutil.rmtree, r"checkpoint_000000: is of epoch 1, the front shows epoch 2, whose checkpoint is gone"),
    ],
)
def test_an_earlier_epoch_is_neither_tested_nor_promoted(
    damage: Callable[[Path], None], why: str, sweep: Path, trial: TrialConfig
) -> None:
    run, address = finished_run(trial, checkpoints(sweep, 0))
    assert (run.epoch, Path(address).name) == (2, "checkpoint_000001")
    damage(Path(address))
    with pytest.raises(ConfigError, match=why):
        finished_run(trial, checkpoints(sweep, 0))
    with pytest.raises(ConfigError, match=rf"^pick = 0000: checkpoint = .*{why}; train its config$"):
        promote.export_member(member(trial), sweep, sweep / "model")
    assert not (sweep / "model").exists()


def test_adapters_of_a_promoted_trial_are_beside_its_model(
    tiny_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = tiny_trial({"name": "lora", "rank": 1}, epochs=1)
    run = Run(trial)
    run.train_epoch()
    run.save(tmp_path / "tune" / "driver-00" / "0000" / "checkpoint_000000")
    promote.export_member(member(trial), tmp_path, tmp_path / "model")
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*.*")}
    assert files == {
        "model.safetensors",
        "config.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_the_last_epoch_is_taken_from_whichever_driver_has_it(sweep: Path, trial: TrialConfig) -> None:
    later = sweep / "tune" / "driver-03" / "0000"  # by its name the newest, and of an earlier epoch
    shutil.copytree(sweep / "tune" / "driver-00" / "0000" / "checkpoint_000000", later / "checkpoint_000009")
    run, address = finished_run(trial, checkpoints(sweep, 0))
    assert run.finished and "driver-00" in address


def test_who_cannot_be_asked_is_said_in_a_line_and_the_others_answer(trial: TrialConfig) -> None:
    said: list[str] = []
    trials = [TrialResult(number, "complete", trial, {}, (0.5, 1.0, 1.0), 2) for number in range(4)]

    def ask(question: object, number: int, config: TrialConfig, peak: float) -> int:
        if number == 0:
            raise ConfigError("gpus_per_trial", 1, "no node has so much")
        return number

    def answer(number: int) -> float:
        if number == 1:
            raise MemoryError
        if number == 2:
            raise RuntimeError("the worker died\nof something")
        return 0.5

    tasks = cast("Any", SimpleNamespace(submit=ask, result=answer))
    assert list(members._answers(tasks, lambda *asked: 0.0, trials, "is not tested", said.append)) == [(3, 0.5)]
    assert said == [
        "trial 0000 is not tested: gpus_per_trial = 1: no node has so much",
        "trial 0001 is not tested: MemoryError",
        "trial 0002 is not tested: the worker died",
    ]
