"""``torchrun -m alast_tune.cli train``: two real processes equal one, and one line says what has ended both."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alast_tune.config import PromotedConfig, TrialConfig, apply_params
from alast_tune.production import write_config
from alast_tune.train import fit
from tests.integration.harness import PATIENCE, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_trial: Callable[..., TrialConfig]) -> TrialConfig:
    method = {"name": "alast", "alpha": 0.01, "trainable_blocks": 3}
    trial = tiny_trial(method, epochs=1, batch_size=13, learning_rate=1e-2, optimizer="sgd")
    return apply_params(trial, {"data/augment": "paper"})


def torchrun(config: TrialConfig, output: Path, program: tuple[str, ...] = ("-m", "alast_tune.cli")) -> tuple[int, str]:
    """Train in two processes; gives torchrun's exit code and what all of them have printed."""
    output.parent.mkdir(exist_ok=True)
    file = output.parent / "config.yaml"
    write_config(PromotedConfig.model_validate(config.model_dump()), file)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    ended = subprocess.run(
        [*command, "train", "--config", file, "--output", output],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return ended.returncode, ended.stdout


def test_two_processes_equal_one_and_the_first_prints_and_writes(
    config: TrialConfig, storage: Path, tmp_path: Path
) -> None:
    code, printed = torchrun(config, storage / "two")
    assert code == 0, printed
    assert printed.count("model: ") == 1
    (alone,) = fit(config, tmp_path / "one")
    report, weights = (
        json.loads((storage / "two" / "report.json").read_text()),
        load_file(tmp_path / "one/last.safetensors"),
    )
    for name in ("accuracy", "validation_loss", "train_loss"):
        assert report[name] == pytest.approx(alone.metrics()[name], rel=1e-3), name
    assert report["train_flops"] == alone.cost.train_flops
    assert report["peak_bytes"] < alone.cost.peak_bytes  # seven images of thirteen
    for name, tensor in load_file(storage / "two" / "last.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("which", ["both", "1"])
def test_one_line_says_what_has_ended_both(config: TrialConfig, storage: Path, tmp_path: Path, which: str) -> None:
    program: tuple[str, ...] = ("-m", "alast_tune.cli")
    if which == "both":
        config = apply_params(config, {"train/learning_rate": 1e30})
        reason = "training has diverged"
    else:
        program, reason = (str(tmp_path / "fails.py"),), "RuntimeError: out of memory, say"
        Path(program[0]).write_text(FAILS)
    code, printed = torchrun(config, storage / "two", program)
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert reason in line
    assert code == 1
    assert "alast_tune/" not in printed  # nobody's traceback


FAILS = """
import os
from alast_tune.cli import main
from alast_tune.run import Run
step = Run._step

def fail(run, *rest):
    if run.meter.ledger.steps and os.environ["RANK"] == "1":
        raise RuntimeError("out of memory, say")
    return step(run, *rest)

Run._step = fail
main()
"""
