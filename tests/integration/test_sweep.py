"""A whole sweep as a person runs it: to its end, killed and resumed, refused."""

import json
import random
import re
import signal
import sqlite3
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from ray.cluster_utils import Cluster

from alast_tune.cli import main
from alast_tune.config import TrialConfig, stored_sweep
from alast_tune.lease import exclusive_driver
from alast_tune.results import FrontFile
from tests.integration.harness import ROOT, Pareto, kill, wait_for


def trial_states(folder: Path) -> list[str]:
    """Read every trial's state from the study's file, as another program would."""
    if not (folder / "study.db").exists():
        return []
    with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as connection:
        try:
            return [state for (state,) in connection.execute("select state from trials order by number")]
        except sqlite3.OperationalError:  # being created
            return []


def runs_in(storage: Path, kind: str) -> tuple[mlflow.MlflowClient, list[Run]]:
    """The runs of one kind, ``sweep`` or ``trial``, that a storage's store has."""
    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, list(client.search_runs(experiments, f"tags.`alast.kind` = '{kind}'"))


def logged_epochs(storage: Path) -> dict[int, tuple[int, ...]]:
    """The epochs of every trial's run, in the order in which they were logged; each trial has one run, and it ended."""
    client, runs = runs_in(storage, "trial")
    assert {run.info.status for run in runs} == {"FINISHED"}
    numbers = [int(run.data.tags["alast.trial"]) for run in runs]
    assert len(set(numbers)) == len(numbers)
    histories = [client.get_metric_history(run.info.run_id, "accuracy") for run in runs]
    return {
        number: tuple(point.step for point in history)
        for number, history in sorted(zip(numbers, histories, strict=True))
    }


@pytest.mark.slow
def test_a_folder_is_a_whole_sweep(ray_here: Cluster, pareto: Pareto) -> None:
    words = ("--model", "embedded", "--trials", "1", "--trial.train.epochs", "1", "--concurrent", "1")
    out = pareto.here(str(pareto.pictures), *words, "--sampler", "random")
    assert out.index("settings chosen for") < out.index("forecast") < out.index("trial 0000 complete")
    assert "1 of 2 trials, 1 baseline among them" in out
    (folder,) = (file.parent for file in pareto.storage.glob("*/front.json"))
    assert folder.name == pareto.pictures.name
    # Of the four points that it begins with, three wait for more --trials.
    assert trial_states(folder) == ["COMPLETE"] * 2 + ["WAITING"] * 3
    assert stored_sweep(folder).trial.train.batch_size == 8


@pytest.mark.slow
def test_a_sweep_leaves_its_front_on_disk_and_in_mlflow(
    ray_here: Cluster, pareto: Pareto, capsys: pytest.CaptureFixture[str]
) -> None:
    out = pareto.here("--preset", pareto.preset(trials=4), "--name", "small", "--sampler", "ehvi", draw=True)
    line = r"trial 0003 complete \(ALaST, .*\): accuracy [\d.]+, \d+% of the FLOPs, .* \| 4 of 4 trials done"
    assert re.search(line, out)
    assert "within 1 point of full fine-tuning" in out and "front: " in out and "alast-tune ui" in out
    assert "drawn" not in out

    folder = pareto.storage / "small"
    values = json.loads((folder / "front.json").read_text())
    assert values["schema"] == 1 and values["sweep"] == "small" and values["validation_images"] == 16
    counts = {"infeasible": 0, "pruned": 0, "failed": 0, "earlier": 0}
    assert values["trials"] == {"total": 4, "complete": 4} | counts
    assert [objective["name"] for objective in values["objectives"]] == ["accuracy", "train_flops", "peak_bytes"]
    assert 0 < values["hypervolume_share"] < 1 and values["hypervolume"] > 0
    front = FrontFile.read(folder / "front.json")
    assert 1 <= len(front.front) <= 4
    for member in front.front:
        assert member.test_accuracy is not None and member.test_accuracy * 8 == int(member.test_accuracy * 8)
        assert member.epochs == 2
    assert TrialConfig.model_validate(values["front"][0]["config"])
    assert trial_states(folder) == ["COMPLETE"] * 4

    client, (parent,) = runs_in(pareto.storage, "sweep")
    _, children = runs_in(pareto.storage, "trial")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert logged_epochs(pareto.storage) == dict.fromkeys(range(4), (1, 2))
    on_front = {run.info.run_id for run in children if run.data.tags.get("pareto") == "true"}
    assert on_front == {member.mlflow_run_id for member in front.front}
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    steps = [metric.step for metric in history]  # from when full fine-tuning has ended, in one reference
    assert steps == sorted(steps) and {3, 4} <= set(steps)
    assert values["region"]["source"] == "full" and values["region"]["floor"] == values["reference_point"][0]
    assert all(child.data.metrics["train_flops"] > 0 for child in children)
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"front.json", "front.png", "search-space.png", "blocks-knee.png", "report.html"} <= names
    assert {"search-importances.png", "search-convergence.png", "blocks-knee.png"} <= names

    main(["front", "small", "--storage", str(pareto.storage)])
    assert f"{len(front.front)} of 4 complete trials" in capsys.readouterr().out
    again = pareto.here("--preset", pareto.preset(), "--name", "small", expect=2)
    assert again.strip().splitlines()[-1].startswith("error: name = small: already exists; go on with --resume small")


@pytest.mark.slow
def test_a_driver_killed_between_two_writes_loses_and_repeats_nothing(ray_here: Cluster, pareto: Pareto) -> None:
    """By SIGKILL, with a real store; more such windows are tried, without one, in tests/unit/tune/test_crashes.py."""
    folder = pareto.storage / "killed"
    kills = [
        # Where, the study's states then, and how many trials the front has seen, which is there whole.
        ("after-ask:2", ["COMPLETE", "RUNNING"], 1),  # a baseline, which is there from the start
        ("after-tell", ["COMPLETE", "COMPLETE"], 1),  # nobody else knows of the second
        ("while-front-is-written", ["COMPLETE", "COMPLETE"], 1),  # a resumed sweep begins with that
    ]
    arguments = ["--preset", pareto.preset(trials=4), "--name", "killed"]
    for place, states, seen in kills:
        pareto.run(*arguments, expect=-signal.SIGKILL, RAY_ADDRESS=ray_here.address, ALAST_FAILPOINT=place)
        assert trial_states(folder) == states
        assert FrontFile.read(folder / "front.json").trials.complete == seen
        arguments = ["--resume", "killed"]

    out = pareto.here("--resume", "killed")
    assert trial_states(folder) == ["COMPLETE"] * 4, out
    counts = FrontFile.read(folder / "front.json").trials
    assert (counts.total, counts.complete) == (4, 4)
    assert logged_epochs(pareto.storage) == dict.fromkeys(range(4), (1, 2))
    _, (parent,) = runs_in(pareto.storage, "sweep")
    assert parent.info.status == "FINISHED"


@pytest.mark.nightly
@pytest.mark.timeout(2400)
def test_sigkill_of_the_driver_at_twenty_random_moments_loses_and_repeats_nothing(pareto: Pareto) -> None:
    """Moments that nobody has thought of; those that have a name are above."""
    draw = random.Random()  # other moments each time; the seed is of no use, the machine's speed differs anyway
    folder = pareto.storage / "killed"
    arguments: tuple[str, ...] = ("--preset", pareto.preset(trials=16, epochs=3, concurrent=2), "--name", "killed")
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
    # No trial ran twice to the end, over all drivers.
    assert logged_epochs(pareto.storage) == dict.fromkeys(range(16), (1, 2, 3))


def test_a_sweep_of_which_nothing_can_keep_the_limit_says_so(pareto: Pareto) -> None:
    out = pareto.here("--preset", pareto.preset(trials=3), "--name", "small", "--max-memory", "1MiB", expect=2)
    assert out.startswith(
        "error: max_memory = 1.00 MiB: no setting of the space is forecast to keep the limits: of the "
    )
    assert len(out.splitlines()) == 1 and not (pareto.storage / "small").exists()


def test_a_second_driver_of_the_same_sweep_is_refused(pareto: Pareto) -> None:
    with exclusive_driver(pareto.storage / "busy"):
        out = pareto.here("--preset", pareto.preset(), "--name", "busy", expect=2)
    assert out.strip().endswith("error: name = busy: another driver is at work on it; wait for it or stop it")
    assert trial_states(pareto.storage / "busy") == []


ALAST = ROOT / "tests" / "unit" / "alast.yaml"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "nope"], "error: preset = nope: not a file and none of"),
        (["--resume", "nope"], "error: resume = nope: "),
        ([], "error: folder = not given: give a folder of images, --preset"),
        (["--preset", "demo", "--nonsense", "1"], "error: unrecognized arguments: --nonsense; see --help"),
        (["--preset", "demo", "--trials", "0"], "error: trials = 0: "),
        (
            ["--preset", str(ALAST), "--trial.method.trainable_blocks", "13"],
            "error: method.trainable_blocks = 13: the model",
        ),
        (["--preset", "demo", "--trial.model.name", "resnet18"], "error: model.name = resnet18: "),
        (["--preset", "demo", "--trial.data.dataset", "folder"], "error: data.root = "),
        (
            ["--preset", "demo", "--study", "postgresql://me:pw@h/x"],
            "error: study = postgresql://me:...@h/x: holds",
        ),
        (["--preset", "demo", "--reseed", "1"], "error: reseed = 1: "),  # one run has no spread
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path: Path, arguments: list[str], line: str) -> None:
    lines = Pareto(tmp_path, tmp_path).here(*arguments, expect=2).strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert not (tmp_path / "runs").exists()
