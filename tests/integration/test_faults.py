"""What was broken and what was lost: one real sweep in which trials fail in every way, and what became of each."""

import io
import os
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import ray
import torch
from rich.console import Console

from alast_tune.config import SweepConfig
from alast_tune.results import EpochReport, FrontFile, TrialResult
from alast_tune.tune import study as study_module
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trainable import AlastTrainable

EPOCHS = 3

FAULTS = {
    2: "crash before the first report",
    3: "crash between reports",
    4: "crash before the last report",
    5: "crash once",
    6: "worker gone",
    7: "nan",
    8: "inf",
    9: "diverged",
    10: "out of memory",
    11: "hang",
    12: "checkpoint damaged, then a crash",
}
"""By the trial's number; 0 and 1 are the landmarks, 13 and 14 sound."""


class Faulty(AlastTrainable):
    """Real training, in which some trials meet with a fault at every try, some only at the first."""

    def step(self) -> dict[str, Any]:
        fault, epoch = FAULTS.get(self.config["number"], ""), self._run.epoch + 1
        if fault == "crash before the first report" or (fault == "crash between reports" and epoch == 2):
            raise ValueError("out of luck")
        if fault == "hang" and epoch == 2:
            time.sleep(10_000)
        if fault == "diverged" and epoch == 2:
            with torch.no_grad():
                next(iter(self._run.model.parameters())).fill_(float("nan"))
        if fault == "out of memory" and epoch == 2:
            self._run.train_epoch = starve  # type: ignore[method-assign]
        if fault in {"crash once", "worker gone", "checkpoint damaged, then a crash"} and epoch == 3 and self.first():
            if fault == "crash once":
                raise ValueError("out of luck")
            if fault.startswith("checkpoint damaged"):
                newest = max(Path(self.config["folder"]).glob("tune/*/0012/checkpoint_*/state.pt"))
                newest.write_bytes(newest.read_bytes()[:1000])
            os._exit(1)
        result = super().step()
        if fault in {"nan", "inf"}:
            result["report"]["accuracy" if fault == "nan" else "peak_bytes"] = float(fault)
        if fault == "crash before the last report" and epoch == EPOCHS:
            raise ValueError("out of luck")
        return result

    def first(self) -> bool:
        """Whether this trial asks for the first time."""
        mark = Path(self.config["folder"], f"tried-{self.config['number']}")
        mark.touch(exist_ok=True)
        tries = len(mark.read_text())
        mark.write_text("x" * (tries + 1))
        return tries == 0


def starve() -> EpochReport:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def tiny(storage: Path, **options: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "storage": storage,
            "trials": 15,
            "seed": 1,
            "sampler": "random",
            "scheduler": "none",
            "retries": 1,
            "trial": {
                "data": {"train_images": 64},
                "train": {"epochs": EPOCHS, "batch_size": 32, "learning_rate": 1e-3, "device": "cpu"},
            },
            "space": {"method/target_budget": {"type": "float", "low": 0.2, "high": 1.0}},
        }
        | options
    )


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, TrialResult], Path, str]:
    """The sweep with all faults, over: results by number, its folder, what was printed."""
    storage = tmp_path_factory.mktemp("faults")
    folder, console = storage / "sweep", Console(record=True, width=200, file=io.StringIO())
    original = study_module.StudySearcher.suggest

    def suggest(self: Any, trial_id: str) -> Any:
        suggestion = original(self, trial_id)
        return suggestion | {"folder": str(folder)} if isinstance(suggestion, dict) else suggestion

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "AlastTrainable", Faulty)
        patch.setattr(study_module.StudySearcher, "suggest", suggest)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            results = run_sweep(tiny(storage, epoch_timeout=60), console=console)
        finally:
            ray.shutdown()
    return {result.number: result for result in results}, folder, console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "epochs", "reason"),
    [
        (2, "failed", 0, "ValueError: out of luck"),
        (3, "failed", 1, "ValueError: out of luck"),
        (4, "failed", 2, "ValueError: out of luck"),
        (5, "complete", EPOCHS, None),
        (6, "complete", EPOCHS, None),
        (7, "failed", 1, "not a finite number: accuracy"),
        (8, "failed", 1, "not a finite number: peak_bytes"),
        (9, "failed", 1, "diverged"),
        (10, "infeasible", 1, "CUDA out of memory"),
        (11, "failed", 1, "no epoch finished within 60 seconds"),
        (12, "complete", EPOCHS, None),
        (13, "complete", EPOCHS, None),
        (14, "complete", EPOCHS, None),
    ],
    ids=[*FAULTS.values(), "sound", "sound too"],
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
    assert sorted(results) == list(range(15))
    front = FrontFile.read(folder / "front.json")
    assert front.trials.model_dump() == {"total": 15, "complete": 7, "infeasible": 1, "pruned": 0, "failed": 7}
    assert {results[int(member.trial_id)].state for member in front.front} == {"complete"}
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    assert len(study.trials) == 15
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "FAIL", "PRUNED"}
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    children = [run for run in client.search_runs([experiment.experiment_id]) if "mlflow.parentRunId" in run.data.tags]
    assert sorted(int(run.data.tags["alast.trial"]) for run in children) == list(range(15))
    failed = {int(run.data.tags["alast.trial"]) for run in children if run.info.status == "FAILED"}
    assert failed == {number for number, result in results.items() if result.state == "failed"}
