"""A sweep as Python sees it: its front, its trials, who is the best, and what is refused before anything starts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

import alast_tune
from alast_tune.api import Sweep
from alast_tune.config import SweepConfig, TrialConfig, Variants
from alast_tune.errors import ConfigError
from alast_tune.results import FrontFile
from alast_tune.summary import summarise
from alast_tune.tune.space import to_optuna
from alast_tune.tune.trials import epoch_key, open_study, results

SPACE = {
    "train/learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2},
    "method/trainable_blocks": {"type": "int", "low": 1, "high": 12},
}
# Full fine-tuning, dominated; cheap and near; accurate and dear; cheap and bad.
VALUES = [(0.90, 4e12, 8e8), (0.895, 2e12, 3e8), (0.91, 3e12, 5e8), (0.6, 1e12, 1e8)]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """A sweep that was interrupted: four trials complete, one stopped, one left running."""
    config = SweepConfig.model_validate({"storage": tmp_path, "name": "s", "space": SPACE, "trials": 5})
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(config.given_values()))
    study = open_study(config, folder, new=True)
    study.set_user_attr("test_accuracy", {"1": 0.88})
    for number in range(6):
        values = VALUES[number] if number < len(VALUES) else None
        attributes: dict[str, Any] = {"landmark": "full"} if number == 0 else {}
        if number < 5:
            attributes |= {"epochs": 2, epoch_key(1): [0.5, 1e11, 1e8, 10.0 + number]}
        if number == 4:
            attributes |= {"reason": "stopped after 2 of 10 epochs"}
        states = [TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.RUNNING]
        study.add_trial(
            create_trial(
                state=states[number],
                params={"train/learning_rate": 1e-3, "method/trainable_blocks": 1 + number},
                distributions=to_optuna(config.space),
                values=values,
                user_attrs=attributes,
            )
        )
    found = [replace(one, baseline="full") if one.number == 0 else one for one in results(study, config)]
    ended = [one for one in found if one.state != "running"]
    summarise("s", ended, (0.0, 5e12, 1e9)).write(folder / "front.json")
    return alast_tune.open("s", storage=tmp_path)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("torch", "timm", "ray", "optuna", "mlflow", "pandas", "pydantic", "rich")
    code = f"import sys, alast_tune; dir(alast_tune); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


def test_every_name_of_the_package_is_there() -> None:
    for name in (*alast_tune.__all__, "open"):
        assert callable(getattr(alast_tune, name)), name
    with pytest.raises(AttributeError, match="has no attribute 'sweeps'"):
        _ = alast_tune.sweeps


def test_a_sweep_is_opened_by_folder_or_name(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    for opened in (alast_tune.open(tmp_path / "s"), alast_tune.open(f"{tmp_path.name}/s"), sweep):
        assert (opened.name, opened.folder) == ("s", tmp_path / "s")
        assert [member.trial_id for member in opened.front] == ["0003", "0001", "0002"]
    with pytest.raises(ConfigError, match="neither a folder nor a sweep under"):
        alast_tune.open("t", storage=tmp_path)
    with pytest.raises(ConfigError, match=r"holds neither a sweep\.json nor a front\.json"):
        alast_tune.open(tmp_path)


def test_trials_are_a_table_one_row_each(sweep: Sweep) -> None:
    trials = sweep.trials()
    assert list(trials.columns) == [
        "number", "state", "method", "train/learning_rate", "method/trainable_blocks", "accuracy", "test_accuracy",
        "train_flops", "peak_bytes", "epochs", "seconds", "on_front", "reason",
    ]  # fmt: skip
    assert trials.number.tolist() == list(range(6))
    assert trials.state.tolist() == ["complete"] * 4 + ["pruned", "running"]
    assert trials.method.tolist() == ["full"] + ["alast"] * 5
    assert trials["method/trainable_blocks"].isna().tolist() == [True] + [False] * 5  # full fine-tuning has none
    assert trials.accuracy.tolist()[:4] == [0.9, 0.895, 0.91, 0.6] and trials.accuracy.isna().sum() == 2
    assert trials.seconds.tolist()[:5] == [10.0, 11.0, 12.0, 13.0, 14.0]
    assert trials[trials.on_front].number.tolist() == [1, 2, 3]
    assert trials.test_accuracy.dropna().tolist() == [0.88]
    assert trials.reason[4] == "stopped after 2 of 10 epochs"


@pytest.mark.parametrize(
    ("asked", "trial"),
    [
        ({}, "0001"),
        ({"within": 0.005}, "0001"),
        ({"within": 0.004}, "0002"),
        ({"within": 0.3}, "0003"),
        ({"max_memory": "400MB"}, "0001"),  # the most accurate that keeps it
        ({"max_flops": 1.5e12}, "0003"),
        ({"within": 0.3, "max_memory": 5e8, "max_flops": 3e12}, "0003"),
    ],
)
def test_the_best_member(sweep: Sweep, asked: dict[str, Any], trial: str) -> None:
    assert sweep.best(**asked).trial_id == trial


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"max_memory": 5}, "max_memory = 5: no member of the front of s keeps this limit; loosen it"),
        ({"within": 0.01, "max_flops": 1.5e12}, "within = 0.01: no member of the front is so near: full fine-tuning"),
        ({"max_memory": "6 pounds"}, "max_memory = 6 pounds: "),
        ({"max_flops": 0}, "max_flops = 0: "),
        ({"within": 1.5}, "within = 1.5: is a difference in accuracy, from 0 to 1"),
    ],
)
def test_nobody_is_the_best(sweep: Sweep, asked: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep.best(**asked)
    assert str(refused.value).startswith(line)


def test_without_full_fine_tuning_there_is_nothing_to_be_near(sweep: Sweep) -> None:
    file = sweep.folder / "front.json"
    FrontFile.read(file).model_copy(update={"full": None}).write(file)
    with pytest.raises(ConfigError, match="full fine-tuning has not ended in s; give limits"):
        sweep.best()
    assert sweep.best(max_memory="1GiB").trial_id == "0002"


def test_a_sweep_says_what_it_is(sweep: Sweep, tmp_path: Path) -> None:
    assert repr(sweep) == f"<Sweep {tmp_path / 's'}>"
    shown = str(sweep)
    assert "within 1 point of full fine-tuning" in shown and "3 of 4 complete trials on the front" in shown
    assert "\x1b" not in shown and max(map(len, shown.splitlines()[2:])) <= 120
    page = sweep._repr_html_()
    assert page.startswith("<p><b>s</b>: 3 of 4 complete trials on the front</p><table>")
    assert page.count("<tr>") == 4 and "2.00 TFLOP (50%)" in page and "data:image/png;base64,iVBOR" in page
    (sweep.folder / "study.db").unlink()  # front.json alone was copied
    assert "data:image" not in Sweep(sweep.folder)._repr_html_()
    assert sweep.front._repr_html_().count("<tr>") == 4


def test_what_is_promoted_is_a_member(sweep: Sweep, tmp_path: Path) -> None:
    output = tmp_path / "best.yaml"
    theirs = sweep.best().model_copy(update={"objectives": {"accuracy": 1.0, "train_flops": 1.0, "peak_bytes": 1.0}})
    with pytest.raises(ConfigError, match="pick = 0001: is of another sweep, not of s; promote it there"):
        sweep.promote(theirs, output)
    for pick, line in ((9, "pick = 9: not on the front"), (sweep.best(), "pick = 0001: no checkpoint of it under")):
        with pytest.raises(ConfigError) as refused:
            sweep.promote(pick, output)
        assert str(refused.value).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "folder = not given: give a folder of images, --preset (one of"),
        ({"what": "/nowhere/pets"}, "data.root = /nowhere/pets: "),
        ({"what": "/nowhere/pets", "preset": "demo"}, "folder = /nowhere/pets: --preset says which images"),
        ({"preset": "domo"}, "preset = domo: not a file and none of deit-s-cifar100"),
        ({"preset": "demo", "trails": 4}, "trails = 4: no such setting; see alast-tune sweep --help-all"),
        ({"preset": "demo", "trials": 0}, "trials = 0: "),
        ({"preset": "demo", "trial": {"train": {"epochs": 0}}}, "trial.train.epochs = 0: "),
        ({"preset": "demo", "methods": ["magic"]}, "methods = magic: no such method; known are full"),
        ({"preset": "demo", "callbacks": [object()]}, "callbacks = object: has none of on_sweep_start"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(arguments: dict[str, Any], line: str, tmp_path: Path) -> None:
    what = arguments.pop("what", None)
    with pytest.raises(ConfigError) as refused:
        alast_tune.sweep(what, storage=tmp_path, **arguments)
    assert str(refused.value).startswith(line)


def test_settings_go_into_those_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SweepConfig] = []

    def stopped(config: SweepConfig, **options: Any) -> None:
        asked.append(config)
        raise SystemExit(130)  # as a sweep that Ctrl-C has ended

    monkeypatch.setattr("alast_tune.tune.study.run_sweep", stopped)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "sweep.json").touch()  # the name is taken
    train = {"train": {"epochs": 5}}
    with pytest.raises(KeyboardInterrupt):
        alast_tune.sweep(preset="demo", storage=tmp_path, trials=3, max_memory="1GiB", trial=train)
    (config,) = asked
    assert (config.name, config.trials, config.max_memory) == ("demo-2", 3, 1 << 30)
    assert (config.trial.train.epochs, config.trial.train.batch_size) == (5, 32)
    assert not config.space  # auto, which the sweep makes out
    with pytest.raises(KeyboardInterrupt):
        alast_tune.sweep(config, trial=TrialConfig.model_validate({"train": {"seed": 3}}))
    assert asked[1].trial.train.seed == 3 and asked[1].trial.train.epochs == 5
    with pytest.raises(KeyboardInterrupt):
        alast_tune.sweep(preset="demo", storage=tmp_path, methods=["lora", "head"])
    choice = asked[2].space["method"]
    assert isinstance(choice, Variants) and list(choice.variants) == ["lora", "head"]


@pytest.mark.slow
def test_a_folder_is_swept_as_the_command_does_and_what_was_chosen_is_said(
    two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[SweepConfig] = []

    def stopped(config: SweepConfig, **options: Any) -> None:
        asked.append(config)
        raise SystemExit(143)  # as a sweep that SIGTERM has ended

    monkeypatch.setattr("alast_tune.tune.study.run_sweep", stopped)
    monkeypatch.setattr("alast_tune.cli.plan.plan_of", lambda sweep, chosen: chosen)  # which trains a few steps
    with pytest.raises(SystemExit):
        alast_tune.sweep(two_classes, model="embedded", storage=tmp_path, max_memory="1GiB", trials=3)
    (config,) = asked
    assert (config.trial.data.root, config.trial.model.name, config.trials) == (two_classes, "embedded", 3)
    captured = capsys.readouterr()
    assert "32 to train on, 16 to validate, 8 to test" in captured.err and captured.out == ""
