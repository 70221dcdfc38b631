"""A whole sweep as a person runs it: to its end, killed and resumed, stopped, refused."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import psutil
import pytest

import alast_tune
from alast_tune.config import TrialConfig
from alast_tune.results import FrontFile
from tests.integration.harness import PATIENCE, Pareto, kill, wait_for


def trial_states(folder: Path) -> list[str]:
    """Read every trial's state from the study's file, as another program would."""
    if not (folder / "study.db").exists():
        return []
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as connection:
        try:
            return [state for (state,) in connection.execute("select state from trials order by number")]
        except sqlite3.OperationalError:  # being created
            return []


@pytest.mark.slow
def test_a_sweep_leaves_its_front_on_disk_and_in_mlflow(pareto: Pareto) -> None:
    out = pareto.run("--preset", pareto.preset(trials=4), "--name", "small")
    assert re.search(r"trial 000\d complete \| 4/4 finished", out)  # whichever ends last
    assert "front: " in out and "mlflow ui" in out

    folder = pareto.storage / "small"
    values = json.loads((folder / "front.json").read_text())
    assert values["schema"] == 1 and values["sweep"] == "small"
    assert values["trials"] == {"total": 4, "complete": 4, "infeasible": 0, "pruned": 0, "failed": 0}
    assert [objective["name"] for objective in values["objectives"]] == ["accuracy", "train_flops", "peak_bytes"]
    assert 0 < values["hypervolume_share"] < 1 and values["hypervolume"] > 0
    front = FrontFile.read(folder / "front.json")
    assert 1 <= len(front.front) <= 4
    for member in front.front:
        assert member.test_accuracy is not None and 0 <= member.test_accuracy <= 1
        assert member.epochs == 2
        assert TrialConfig.model_validate(values["front"][0]["config"])
    assert trial_states(folder) == ["COMPLETE"] * 4

    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert (len(parents), len(children)) == (1, 4)
    assert {run.info.status for run in runs} == {"FINISHED"}
    on_front = {run.info.run_id for run in children if run.data.tags.get("pareto") == "true"}
    assert on_front == {member.mlflow_run_id for member in front.front}
    history = client.get_metric_history(parents[0].info.run_id, "hypervolume")
    assert [metric.step for metric in history][:4] == [1, 2, 3, 4]
    for child in children:
        assert len(client.get_metric_history(child.info.run_id, "accuracy")) == 2
        assert child.data.metrics["train_flops"] > 0
    names = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"front.json", "front.html", "front.png", "search.html", "search-space.png", "blocks.html"} <= names
    assert {"search-importances.png", "search-convergence.png", "blocks-knee.png"} <= names
    assert "drawn" not in out

    shown = subprocess.run(
        [sys.executable, "-m", "alast_tune.cli", "front", "small", "--storage", str(pareto.storage)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{len(front.front)} of 4 complete trials" in shown.stdout
    again = pareto.run("--preset", pareto.preset(), "--name", "small", expect=2)
    assert again.strip().splitlines()[-1].startswith("error: name = small: already exists; go on with --resume small")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_sigkill_of_the_driver_at_twenty_random_moments_loses_and_repeats_nothing(pareto: Pareto) -> None:
    draw = random.Random()  # other moments each time; the seed is of no use, the machine's speed differs anyway
    folder = pareto.storage / "killed"
    arguments: tuple[str, ...] = ("--preset", pareto.preset(trials=16, epochs=3), "--name", "killed")
    finished: set[int] = set()
    for _ in range(20):
        process = pareto.start(*arguments)
        if not finished:
            wait_for(lambda: "RUNNING" in trial_states(folder), process)
        time.sleep(draw.uniform(0, 16))  # also while it starts
        kill(process)
        complete = {number for number, state in enumerate(trial_states(folder)) if state == "COMPLETE"}
        assert finished <= complete, "a finished trial was lost"
        finished = complete
        arguments = ("--resume", "killed")
    out = pareto.run("--resume", "killed")
    assert trial_states(folder) == ["COMPLETE"] * 16, out
    front = FrontFile.read(folder / "front.json")
    assert (front.trials.total, front.trials.complete) == (16, 16)
    # No trial ran twice to the end: one final checkpoint each, over all drivers, and every epoch logged once.
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    children = client.search_runs([experiment.experiment_id], "tags.`alast.kind` = 'trial'")
    assert len(children) == 16
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sorted(int(run.data.metrics["epoch"]) for run in children) == [3] * 16


@pytest.mark.slow
def test_sigterm_ends_mlflow_runs_as_killed_and_leaves_a_resumable_sweep(pareto: Pareto) -> None:
    folder = pareto.storage / "stopped"
    process = pareto.start("--preset", pareto.preset(trials=3, epochs=3), "--name", "stopped")
    wait_for(lambda: "COMPLETE" in trial_states(folder), process)
    process.send_signal(signal.SIGTERM)  # often between the study's COMPLETE and MLflow's FINISHED
    client_db = f"sqlite:///{pareto.storage / 'mlflow.db'}"
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, out
    client = mlflow.MlflowClient(client_db)
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses["KILLED"] >= 1 and statuses["RUNNING"] == 0
    assert FrontFile.read(folder / "front.json").trials.complete >= 1
    pareto.run("--resume", "stopped")
    assert trial_states(folder) == ["COMPLETE"] * 3
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses == {"FINISHED": 4}


@pytest.mark.slow
def test_a_killed_worker_costs_no_trial(pareto: Pareto) -> None:
    folder = pareto.storage / "worker"
    process = pareto.start("--preset", pareto.preset(trials=3, epochs=4), "--name", "worker")
    wait_for(lambda: any(folder.glob("tune/*/*/checkpoint_*")), process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "Trainable" in " ".join(child.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out
    assert trial_states(folder) == ["COMPLETE"] * 3, out
    assert {member.epochs for member in FrontFile.read(folder / "front.json").front} == {4}


@pytest.mark.slow
def test_a_trial_that_cannot_run_fails_with_its_reason_and_the_others_go_on(pareto: Pareto, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_text("no weights")
    preset = Path(pareto.preset(trials=6, epochs=1))
    good = Path(alast_tune.__file__).parent / "embedded" / "backbone.safetensors"
    preset.write_text(f"{preset.read_text()}  model/checkpoint: {{type: categorical, choices: [{good}, {broken}]}}\n")
    out = pareto.run("--preset", str(preset), "--name", "half", "--sampler", "random", "--retries", "0")
    states = Counter(trial_states(pareto.storage / "half"))
    assert states["FAIL"] > 0 and states["COMPLETE"] > 0 and states["FAIL"] + states["COMPLETE"] == 6
    front = FrontFile.read(pareto.storage / "half" / "front.json")
    assert front.trials.failed == states["FAIL"]
    assert {member.config.model.checkpoint for member in front.front} == {good}
    assert "broken.safetensors" in out
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    runs = client.search_runs([experiment.experiment_id], "tags.`alast.kind` = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"] * states["COMPLETE"]  # the others were never launched


@pytest.mark.slow
def test_a_sweep_of_which_nothing_can_keep_the_limit_says_so(pareto: Pareto) -> None:
    out = pareto.run("--preset", pareto.preset(trials=2), "--name", "small", "--max-memory", "1MiB")
    assert "never launched: predicted peak" in out
    assert "2 of 2 trials were not run: all that is left to propose was tried before, or is predicted to break" in out


@pytest.mark.slow
def test_a_second_driver_of_the_same_sweep_is_refused(pareto: Pareto) -> None:
    folder = pareto.storage / "busy"
    first = pareto.start("--preset", pareto.preset(trials=2, epochs=3), "--name", "busy")
    wait_for(lambda: "RUNNING" in trial_states(folder), first)
    out = pareto.run("--resume", "busy", expect=2)
    assert "error: name = busy: another driver is at work on it" in out
    out, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "nope"], "error: preset = nope: not a file and none of"),
        (["--resume", "nope"], "error: resume = nope: "),
        ([], "error: preset = not given: give --preset"),
        (["--preset", "demo", "--nonsense", "1"], "error: unrecognized arguments: --nonsense 1"),
        (["--preset", "demo", "--trials", "0"], "error: trials = 0: "),
        (
            ["--preset", "demo", "--trial.method.trainable_blocks", "13"],
            "error: method.trainable_blocks = 13: the model",
        ),
        (["--preset", "demo", "--trial.model.name", "resnet18"], "error: model.name = resnet18: "),
        (["--preset", "demo", "--trial.data.dataset", "folder"], "error: data.root = "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_a_non_zero_exit(pareto: Pareto, arguments: list[str], line: str) -> None:
    lines = pareto.run(*arguments, expect=2).strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(line)
