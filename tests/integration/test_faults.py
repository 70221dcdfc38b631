"""What was broken and what was lost: one real sweep in which trials fail in every way, and what became of each."""

import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

from alast_tune.config import SweepConfig
from alast_tune.failpoints import VARIABLE
from alast_tune.results import EpochReport, FrontFile, TrialCounts, TrialResult
from alast_tune.tune import study as study_module
from alast_tune.tune.observer import TuneEvents
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trainable import AlastTrainable
from tests.integration.harness import PATIENCE, short_end
from tests.integration.test_sweep import runs_in

EPOCHS = 3

FAULTS = {
    2: "crash before the last report",
    3: "worker killed in an epoch",
    4: "worker killed after a save",
    5: "checkpoint damaged, then a crash",
    6: "nan",
    7: "inf",
    8: "diverged",
    9: "out of memory",
    10: "hang before the first report",
}
"""By the trial's number; 0 and 1 are the landmarks, 11 is sound."""
TRIALS = 12


class Faulty(AlastTrainable):
    """Real training, in which some trials meet with a fault at every try, some only at the first."""

    def step(self) -> dict[str, Any]:
        if not hasattr(self, "_run"):
            self.begin(self.config["resume_from"])
        fault, epoch = FAULTS.get(self.config["number"], ""), self._run.epoch + 1
        if fault.startswith("hang"):
            self.mark("hangs")
            time.sleep(10_000)
        if fault == "diverged" and epoch == 2:
            with torch.no_grad():
                next(iter(self._run.model.parameters())).fill_(float("nan"))
        if fault == "out of memory" and epoch == 2:
            self._run.train_epoch = starve  # type: ignore[method-assign]
        if fault == "worker killed in an epoch" and epoch == 2 and self.mark("killed in an epoch"):
            os.environ[VARIABLE] = "mid-epoch"
        if fault == "worker killed after a save" and epoch == 2 and self.mark("killed after a save"):
            os.environ[VARIABLE] = "after-save"
        if fault.startswith("checkpoint damaged") and epoch == 3 and self.mark("damaged"):
            newest = max(Path(self.config["folder"]).glob("tune/*/0005/checkpoint_*/state.pt"))
            newest.write_bytes(newest.read_bytes()[:1000])
            os._exit(1)
        if fault == "crash before the last report" and epoch == EPOCHS:
            self._run.train_epoch = unlucky  # type: ignore[method-assign]
        result = super().step()
        if fault in {"nan", "inf"}:
            result["report"]["accuracy" if fault == "nan" else "peak_bytes"] = float(fault)
        return result

    def mark(self, name: str) -> bool:
        """Say that something happens here; whether it is the first time."""
        mark = Path(self.config["folder"], name)
        first = not mark.exists()
        mark.touch()
        return first


def unlucky() -> EpochReport:
    """Fail with what is markup, an escape sequence, no Unicode, and a password."""
    raise ValueError("out of luck [/data/a.jpg] [enforce fail at alloc.cpp:1] \x1b[2J\udcff at http://me:hunter2@h")


def starve() -> EpochReport:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.fixture(scope="module")
def after(
    ray_here: Cluster, tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path
) -> tuple[dict[int, TrialResult], Path, str]:
    """The sweep with all faults, over: results by number, its folder, what was printed."""
    storage = tmp_path_factory.mktemp("faults")
    shutil.copy(empty_mlflow, storage / "mlflow.db")
    folder, console = storage / "sweep", Console(record=True, width=200, file=io.StringIO())
    original = study_module.StudySearcher.suggest
    sweep = SweepConfig.model_validate(
        {
            "storage": storage,
            "trials": TRIALS,
            "concurrent": 1,
            "sampler": "random",
            "scheduler": "none",
            "retries": 1,
            "epoch_timeout": PATIENCE,
            "trial": {
                "data": {"dataset": "folder", "root": two_classes},
                "model": {"image_size": 16},
                "train": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 1e-3, "device": "cpu"},
            },
            "space": {"method/target_budget": {"type": "float", "low": 0.2, "high": 1.0}},
        }
    )

    def suggest(self: Any, trial_id: str) -> Any:
        suggestion = original(self, trial_id)
        return suggestion | {"folder": str(folder)} if isinstance(suggestion, dict) else suggestion

    def clock() -> float:
        """Once the trial hangs, the time that it is given is over."""
        return time.monotonic() + 2 * PATIENCE * (folder / "hangs").exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "AlastTrainable", Faulty)
        patch.setattr(study_module.StudySearcher, "suggest", suggest)
        patch.setattr(TuneEvents, "clock", staticmethod(clock))
        short_end(patch)
        results = run_sweep(sweep, console=console)
    return {result.number: result for result in results}, folder, console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "epochs", "reason"),
    [
        (
            2,
            "failed",
            2,
            "ValueError: out of luck [/data/a.jpg] [enforce fail at alloc.cpp:1] \ufffd[2J\ufffd at http://h",
        ),
        (3, "complete", EPOCHS, None),
        (4, "complete", EPOCHS, None),
        (5, "complete", EPOCHS, None),
        (6, "failed", 1, "not a finite number: accuracy"),
        (7, "failed", 1, "not a finite number: peak_bytes"),
        (8, "failed", 1, "diverged"),
        (9, "infeasible", 1, "CUDA out of memory"),
        (10, "failed", 0, f"no epoch finished within {PATIENCE} seconds"),
        (11, "complete", EPOCHS, None),
    ],
    ids=[*FAULTS.values(), "sound"],
)
def test_each_fault_costs_its_own_trial_at_most(
    after: tuple[dict[int, TrialResult], Path, str], number: int, state: str, epochs: int, reason: str | None
) -> None:
    results, _, printed = after
    result = results[number]
    assert result.state == state
    assert result.epochs == epochs
    if reason is None:
        assert result.reason is None
    else:
        assert reason in (result.reason or "") or f"trial {number:04d}: " in printed
        assert reason in printed
    assert (result.values is not None) == (state == "complete")


@pytest.mark.slow
def test_nothing_is_lost_nothing_twice_and_only_whole_trials_are_on_the_front(
    after: tuple[dict[int, TrialResult], Path, str],
) -> None:
    results, folder, _ = after
    assert sorted(results) == list(range(TRIALS))
    front = FrontFile.read(folder / "front.json")
    assert front.trials == TrialCounts(total=TRIALS, complete=6, infeasible=1, pruned=0, failed=5)
    assert {results[int(member.trial_id)].state for member in front.front} == {"complete"}
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    assert len(study.trials) == TRIALS
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL", "PRUNED"}
    client, runs = runs_in(folder.parent, "trial")
    assert sorted(int(run.data.tags["alast.trial"]) for run in runs) == list(range(TRIALS))
    failed = {int(run.data.tags["alast.trial"]) for run in runs if run.info.status == "FAILED"}
    assert failed == {number for number, result in results.items() if result.state == "failed"}
    for run in runs:
        if run.info.status == "FINISHED" and run.data.tags["alast.state"] == "complete":
            history = client.get_metric_history(run.info.run_id, "accuracy")
            assert [point.step for point in history] == list(range(1, EPOCHS + 1))
