"""A run killed within an epoch, or told to end, goes on there, and equals one that nobody has interrupted."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alast_tune import checkpoint
from alast_tune.cli.train import Told
from alast_tune.config import TrialConfig, apply_params
from alast_tune.cost import STEPS as STEPS_CSV
from alast_tune.errors import InterruptedTrainingError
from alast_tune.results import EpochReport
from alast_tune.run import Run
from alast_tune.train import fit, last_report
from tests.unit.tiny import ALAST, STEPS

TinyTrial = Callable[..., TrialConfig]


def values(reports: list[EpochReport]) -> list[dict[str, float]]:
    return [{name: v for name, v in report.metrics().items() if "seconds" not in name} for report in reports]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (ALAST, {"train/schedule": "cosine", "data/augment": "paper"}),
        ({"name": "lora", "rank": 2}, {"train/token_keep": 0.5}),
        ({"name": "top_k", "count": 2, "probe_steps": 1}, {"train/precision": "fp16", "train/accumulate": 2}),
        ({"name": "top_k", "blocks": (4,), "from_block": 3}, {"data/features": "cache"}),
    ],
    ids=["budgets and draws", "tokens at random", "exploration, loss scale", "features"],
)
def test_a_run_killed_within_an_epoch_goes_on_from_its_last_step_bit_for_bit(
    tmp_path: Path, tiny_trial: TinyTrial, method: dict[str, Any], more: dict[str, Any]
) -> None:
    config, whole, killed = apply_params(tiny_trial(method), more), tmp_path / "whole", tmp_path / "killed"
    expected = list(fit(config, whole))
    reports: list[EpochReport] = []
    for epoch in range(2):
        steps: list[int] = []

        def kill(step: int, steps: list[int] = steps, epoch: int = epoch) -> None:
            steps.append(step)
            if len(reports) == epoch and step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reports.extend(fit(config, killed, kill, checkpoint_every=0))
        assert steps == ([1, 2, 3] if epoch == 0 else [3, 4, 1, 2, 3])
    assert last_report(killed) == reports[0]
    reports += fit(config, killed)
    assert values(reports) == values(expected)
    for name in (checkpoint.BEST, checkpoint.LAST, STEPS_CSV):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_checkpoint_is_written_when_its_time_has_come(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    found: list[bool] = []
    config = tiny_trial({"name": "head"}, epochs=1)
    for name, seconds in (("soon", 0.0), ("late", 3600.0), ("never", None)):
        file = tmp_path / name / checkpoint.FILE
        list(fit(config, file.parent, lambda step, file=file: found.append(file.exists()), seconds))
    assert found == [False] + [True] * (STEPS - 1) + [False] * 2 * STEPS


def test_time_in_steps_goes_on_too(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    run, again = (Run(tiny_trial({"name": "head"})) for _ in range(2))
    run.train_epoch(lambda step: run.save(tmp_path))
    again.load(tmp_path)
    assert (again.steps_done, again.report) == (STEPS, None)
    assert 0 < again.meter.clock.read()["train_seconds"] <= run.meter.clock.read()["train_seconds"]


def test_sigterm_leaves_a_checkpoint_between_two_steps(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    config, told = tiny_trial({"name": "head"}, epochs=1), Told()

    def tell(step: int) -> None:
        if step == 2:
            told(signal.SIGTERM, None)

    with pytest.raises(InterruptedTrainingError, match=r"after 2 of 4 steps of epoch 1; the same command goes on"):
        list(fit(config, tmp_path, tell, is_to_end=told.is_to_end))
    assert last_report(tmp_path) is None
    steps: list[int] = []
    (report,) = fit(config, tmp_path, steps.append)
    assert steps == [3, 4]
    assert values([report]) == values(list(fit(config, tmp_path / "whole")))
    with pytest.raises(SystemExit):  # the second time
        told(signal.SIGTERM, None)
    with pytest.raises(SystemExit):  # no step is taken
        Told()(signal.SIGTERM, None)
