"""Production training by two real workers of Ray Train: equal to one, whatever dies on the way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from alast_tune.cli import main
from alast_tune.config import TrialConfig
from alast_tune.cost import STEPS
from alast_tune.errors import DivergedError
from alast_tune.parallel import world
from alast_tune.results import EpochReport
from alast_tune.run import Run
from alast_tune.train import fit
from alast_tune.tune import distributed
from alast_tune.tune.distributed import fit_distributed
from tests.integration.harness import ROOT, kill
from tests.unit.tiny import DEPTH, trial

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

EPOCHS, STEPS_AN_EPOCH = 3, 2

pytestmark = pytest.mark.slow


def recording(options: dict[str, Any]) -> None:
    """Be a worker; keep this rank's own account of all steps so far, each epoch."""
    train_epoch, folder = Run.train_epoch, options["job"].folder

    def record(run: Run, on_step: Any = None) -> EpochReport:
        report = train_epoch(run, on_step)
        run.meter.ledger.write(folder / f"steps-{world()[0]}.csv")
        return report

    Run.train_epoch = record  # type: ignore[method-assign]
    distributed._train(options)


def dying(options: dict[str, Any]) -> None:
    """Be a worker; the second one is killed, once, after an epoch's training and before it is saved."""
    train_epoch, mark = Run.train_epoch, options["job"].folder / "killed"

    def die(run: Run, on_step: Any = None) -> EpochReport:
        report = train_epoch(run, on_step)
        if world()[0] == 1 and not run.finished and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    Run.train_epoch = die  # type: ignore[method-assign]
    distributed._train(options)


def counting(options: dict[str, Any]) -> None:
    """Be a worker, and leave a mark of it."""
    with (options["job"].folder / "starts").open("a") as file:
        file.write("x")
    distributed._train(options)


PROGRAM = """
import sys, time
from alast_tune.cli import main
from alast_tune.run import Run
from alast_tune.tune import distributed

train = distributed._train

def outliving(options):
    train_epoch = Run.train_epoch

    def wait(run, on_step=None):
        while run.report and options["job"].scratch.is_dir():
            time.sleep(0.05)
        return train_epoch(run, on_step)

    Run.train_epoch = wait
    train(options)

distributed._train = outliving
main(sys.argv[1:])
"""
"""`alast-tune` whose workers, after their first epoch, wait until another driver has taken over."""


def start(folder: Path, address: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address},
        start_new_session=True,
    )


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders have the same model, to the last bit."""
    first, second = (load_file(folder / "last.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def untimed(reports: list[EpochReport]) -> list[EpochReport]:
    """Without what no two runs have in common."""
    return [replace(one, cost=replace(one.cost, wall_seconds=0, train_seconds=0)) for one in reports]


@pytest.fixture(scope="module")
def config(two_classes: Path) -> TrialConfig:
    # Calibrates, learns budgets, draws blocks, and has adapters to merge.
    method = {"name": "alast", "reading": "fast", "alpha": 0.01, "trainable_blocks": 2, "lora": {"rank": 4}}
    # Shares of 6 and 5 images. Not Adam, which makes steps of the same size out of rounding errors.
    return trial(two_classes, method, epochs=EPOCHS, batch_size=11, learning_rate=1e-2, optimizer="sgd")


@pytest.fixture(scope="module")
def two(
    ray_here: "Cluster", config: TrialConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[EpochReport]]:
    """A run of two workers that nothing disturbs: its folder, and what the driver was told."""
    folder = tmp_path_factory.mktemp("two")
    reports: list[EpochReport] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "_train", recording)
        fit_distributed(config, folder, 2, reports.append)
    return folder, reports


def test_two_workers_equal_one(two: tuple[Path, list[EpochReport]], config: TrialConfig, tmp_path: Path) -> None:
    folder, reports = two
    alone = list(fit(config, tmp_path))
    assert [one.epoch for one in reports] == list(range(1, EPOCHS + 1))
    for ours, theirs in zip(reports, alone, strict=True):
        assert ours.cost.train_flops == theirs.cost.train_flops
        assert 0 < ours.cost.peak_bytes < theirs.cost.peak_bytes  # half of the activations
        assert (ours.trained, ours.tokens) == (theirs.trained, theirs.tokens)
        assert ours.budgets == pytest.approx(theirs.budgets, abs=1e-4)
        assert ours.accuracy == theirs.accuracy
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
    model = load_file(folder / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(model[name], tensor, rtol=1e-3, atol=1e-5)


def test_both_ranks_carry_out_the_same_plans(two: tuple[Path, list[EpochReport]]) -> None:
    folder, _ = two
    tables = [(folder / name).read_text().splitlines() for name in ("steps-0.csv", "steps-1.csv")]
    assert tables[0] == (folder / STEPS).read_text().splitlines()
    header = tables[0][0].split(",")
    same = [column for column, name in enumerate(header) if not name.endswith("_bytes")]  # which go by the share
    assert {"flops", f"tokens_{DEPTH - 1:02d}", f"trains_{DEPTH - 1:02d}", f"budget_{DEPTH - 1:02d}"} <= {
        header[column] for column in same
    }
    first, second = ([[line.split(",")[column] for column in same] for line in table] for table in tables)
    assert len(first) == 1 + STEPS_AN_EPOCH * EPOCHS
    assert first == second
    assert len({tuple(line[-DEPTH:]) for line in first[1:]}) == STEPS_AN_EPOCH * EPOCHS  # the budgets did move


def test_a_killed_worker_changes_nothing(
    two: tuple[Path, list[EpochReport]], config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, undisturbed = two
    reports: list[EpochReport] = []
    monkeypatch.setattr(distributed, "_train", dying)
    fit_distributed(config, tmp_path, 2, reports.append)
    assert (tmp_path / "killed").exists()
    assert untimed(reports) == untimed(undisturbed)  # each once
    assert same_weights(tmp_path, folder)


def test_a_killed_driver_changes_nothing(
    two: tuple[Path, list[EpochReport]],
    config: TrialConfig,
    ray_here: "Cluster",
    tmp_path: Path,
    with_store: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command, killed after its first epoch, and again; the first one's workers outlive it for a moment."""
    folder, undisturbed = two
    (with_store(tmp_path) / "one.json").write_text(config.model_dump_json())
    command = ["train", "--config", "one.json", "--output", "out", "--workers", "2"]
    first = start(tmp_path, ray_here.address, *command)
    assert first.stdout
    said = next(line for line in first.stdout if line.startswith("epoch "))
    kill(first)
    assert said.startswith(f"epoch 1/{EPOCHS} accuracy {undisturbed[0].accuracy:.4f}")
    monkeypatch.chdir(tmp_path)
    main(command)
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert told == [f"{epoch}/{EPOCHS}" for epoch in range(2, EPOCHS + 1)]
    assert same_weights(tmp_path / "out", folder)
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".ray-")] == []


def test_what_another_try_would_repeat_is_not_tried_again(
    ray_here: "Cluster", config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_train", counting)
    hot = config.model_copy(update={"train": config.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(DivergedError, match="training has diverged; lower"):
        fit_distributed(hot, tmp_path, 1, lambda report: None)
    assert (tmp_path / "starts").read_text() == "x"
