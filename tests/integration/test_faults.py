"""What was broken and what was lost: one real sweep in which trials fail in every way, and what became of each."""

import io
import os
import re
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
from alast_tune.cost import STEPS
from alast_tune.failpoints import VARIABLE
from alast_tune.results import EpochReport, FrontFile, TrialCounts, TrialResult
from alast_tune.tune import study as study_module
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.observer import TuneEvents
from alast_tune.tune.study import run_sweep
from alast_tune.tune.trainable import AlastTrainable
from tests.integration.harness import PATIENCE, short_end
from tests.integration.test_sweep import runs_in

EPOCHS = 3

KILLED = {
    2: "worker killed in an epoch",
    3: "worker killed after a save",
    4: "checkpoint damaged, then a crash",
    5: "hang while it is built",
}
FAILING = {2: "crash before the last report", 3: "nan", 4: "inf", 5: "diverged", 6: "out of memory"}
"""By the trial's number; 0 and 1 are the baselines, the one behind these is sound."""

After = tuple[dict[int, TrialResult], Path, str]
"""A sweep that is over: results by number, its folder, what was printed."""


class Faulty(AlastTrainable):
    """Real training, in which some trials meet with a fault at every try, some only at the first."""

    def begin(self, addresses: Any) -> None:
        if self.config["fault"].startswith("hang"):
            self.mark("hangs")
            time.sleep(10_000)
        super().begin(addresses)

    def step(self) -> dict[str, Any]:
        if not hasattr(self, "_run"):
            self.begin(self.config["resume_from"])
        fault, epoch = self.config["fault"], self._run.epoch + 1
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
            newest = max(Path(self.config["folder"]).glob(f"tune/*/{self.config['number']:04d}/checkpoint_*/state.pt"))
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


@pytest.fixture(scope="session")  # tests of a process come in any order
def killed(ray_here: Cluster, tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path) -> After:
    """The sweep of which workers are killed."""
    return swept(KILLED, tmp_path_factory, two_classes, empty_mlflow)


@pytest.fixture(scope="session")  # tests of a process come in any order
def failing(
    ray_here: Cluster, tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path
) -> After:
    """The sweep of which trials fail by themselves."""
    return swept(FAILING, tmp_path_factory, two_classes, empty_mlflow)


def swept(
    faults: dict[int, str], tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path
) -> After:
    storage = tmp_path_factory.mktemp("faults")
    shutil.copy(empty_mlflow, storage / "mlflow.db")
    folder, console = storage / "sweep", Console(record=True, width=200, file=io.StringIO())
    original = study_module.StudySearcher.suggest
    sweep = SweepConfig.model_validate(
        {
            "storage": storage,
            "trials": max(faults),  # beside two baselines
            "concurrent": 1,
            "sampler": "random",
            "scheduler": "none",
            "retries": 1,
            "keep": "all",
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
        if not isinstance(suggestion, dict):
            return suggestion
        return suggestion | {"folder": str(folder), "fault": faults.get(suggestion["number"], "")}

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
        (2, "complete", EPOCHS, None),
        (3, "complete", EPOCHS, None),
        (4, "complete", EPOCHS, None),
        (5, "failed", 0, f"no epoch finished within {PATIENCE} seconds"),
        (6, "complete", EPOCHS, None),
    ],
    ids=[*KILLED.values(), "sound"],
)
def test_a_killed_worker_costs_its_own_trial_at_most(
    killed: After, number: int, state: str, epochs: int, reason: str | None
) -> None:
    check(killed, number, state, epochs, reason)
    if epochs:
        newest = checkpoints(killed[1], number)[0]
        lines = Path(newest, STEPS).read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(EPOCHS * 2))]  # of every worker


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
        (3, "failed", 1, "not a finite number: accuracy"),
        (4, "failed", 1, "not a finite number: peak_bytes"),
        (5, "failed", 1, "diverged"),
        (6, "infeasible", 1, "CUDA out of memory"),
        (7, "complete", EPOCHS, None),
    ],
    ids=[*FAILING.values(), "sound"],
)
def test_a_fault_of_its_own_costs_that_trial_alone(
    failing: After, number: int, state: str, epochs: int, reason: str | None
) -> None:
    check(failing, number, state, epochs, reason)


def check(after: After, number: int, state: str, epochs: int, reason: str | None) -> None:
    results, _, printed = after
    result = results[number]
    assert (result.state, result.epochs) == (state, epochs)
    assert (result.reason is None) if reason is None else (reason in (result.reason or "") and reason in printed)
    assert (result.values is not None) == (state == "complete")


@pytest.mark.slow
def test_what_is_tried_again_is_said(killed: After) -> None:
    _, _, printed = killed
    for number in (2, 3, 4):
        assert re.search(rf"trial {number:04d}: .+; tried again", printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sweep", "counts"),
    [
        ("killed", TrialCounts(total=7, complete=6, infeasible=0, pruned=0, failed=1)),
        ("failing", TrialCounts(total=8, complete=3, infeasible=1, pruned=0, failed=4)),
    ],
)
def test_nothing_is_lost_nothing_twice_and_only_whole_trials_are_on_the_front(
    request: pytest.FixtureRequest, sweep: str, counts: TrialCounts
) -> None:
    results, folder, _ = request.getfixturevalue(sweep)
    assert sorted(results) == list(range(counts.total))
    front = FrontFile.read(folder / "front.json")
    assert front.trials == counts
    assert {results[int(member.trial_id)].state for member in front.front} == {"complete"}
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    assert len(study.trials) == counts.total
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "FAIL", "PRUNED"}
    client, runs = runs_in(folder.parent, "trial")
    assert sorted(int(run.data.tags["alast.trial"]) for run in runs) == list(range(counts.total))
    failed = {int(run.data.tags["alast.trial"]) for run in runs if run.info.status == "FAILED"}
    assert failed == {number for number, result in results.items() if result.state == "failed"}
    for run in runs:
        if run.info.status == "FINISHED" and run.data.tags["alast.state"] == "complete":
            history = client.get_metric_history(run.info.run_id, "accuracy")
            assert [point.step for point in history] == list(range(1, EPOCHS + 1))
