"""What benchmarks make of runs (benchmarks/accuracy.py, tabular.py, timm_script.py, plain.py)."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alast_tune.config import TrialConfig, apply_params, parse
from alast_tune.errors import ConfigError, DivergedError
from benchmarks import accuracy, tabular
from benchmarks.accuracy import KEY, best_rate, settings_of, summarise
from benchmarks.plain import Side
from benchmarks.timm_script import TRIAL, check

SPEC: dict[str, Any] = {
    "learning_rates": [0.001, 0.002],
    "trial": {
        "data": {"dataset": "digits", "train_images": 64},
        "model": {"name": "embedded", "image_size": 16},
        "train": {"epochs": 1, "batch_size": 32, "device": "cpu"},
    },
    "methods": {"full": {"method": {"name": "full"}}},
}


def trial(*settings: str) -> TrialConfig:
    ((_, config, _),) = accuracy.trials(SPEC, [*settings], [])
    return config


def row(rate: float, seed: int, *accuracies: float, **values: Any) -> dict[str, Any]:
    """A row of `full`; one without accuracies diverged."""
    found = {"name": "full", "learning_rate": rate, "seed": seed, "accuracies": [*accuracies]}
    if not accuracies:
        return found | {"diverged": "the loss is nan"}
    costs = dict.fromkeys(("test_accuracy", "train_flops", "peak_bytes", "steady_peak_bytes", "train_seconds"), 0.5)
    return found | costs | values


def test_settings_are_what_was_given_but_places_and_the_key() -> None:
    same = settings_of(trial(), *KEY)
    assert settings_of(trial("data/workers=2", "train/device=cuda", "train/epochs=1"), *KEY) == same
    assert settings_of(trial("train/seed=3", "train/learning_rate=0.1"), *KEY) == same
    assert settings_of(trial("train/learning_rate=0.1"), "train/seed") != settings_of(trial(), "train/seed")
    assert settings_of(trial("train/epochs=2"), *KEY) != same


def test_finished_runs_of_other_settings_are_refused_and_rows_that_do_not_say_theirs_count(tmp_path: Path) -> None:
    rows = [row(rate, 0, 0.5) for rate in SPEC["learning_rates"]]
    rows[0]["settings"] = settings_of(trial(), *KEY)
    results = tmp_path / "full.jsonl"
    results.write_text("".join(json.dumps(one) + "\n" for one in rows))
    options = argparse.Namespace(set=[], only=[], seeds=1, jobs=1, threads=None)
    accuracy.measure(SPEC, options, results)  # nothing is missing
    for other in (["train/epochs=2"], ["model/drop_path=0.1"]):
        options.set = other
        with pytest.raises(
            ConfigError, match=r"results = .*full\.jsonl: has runs of other settings; give another file"
        ):
            accuracy.measure(SPEC | {"learning_rates": [0.5]}, options, results)  # whatever their rate
    assert len(accuracy.read(results)) == 2


def test_a_table_refuses_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train/learning_rate": {"type": "categorical", "choices": [0.001, 0.002]}}
    spec, results = tmp_path / "spec.yaml", tmp_path / "spec.jsonl"
    spec.write_text(json.dumps({"trial": SPEC["trial"], "space": space, "methods": {"full": {"name": "full"}}}))
    of_old = {"params": {"train/learning_rate": 0.001}, "seed": 0, "accuracy": [0.5]}
    results.write_text(json.dumps(of_old) + "\n")
    monkeypatch.setattr(tabular, "curves", lambda config: {"accuracy": [config.train.learning_rate]})
    command = ["tabular.py", str(spec), "--results", str(results), "--seeds", "1"]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", command)
        tabular.main()
    assert [one["accuracy"] for one in tabular.read(results)] == [[0.5], [1e-4], [0.002]]
    assert [len(one.get("settings", "")) for one in tabular.read(results)] == [0, 12, 12]
    monkeypatch.setattr("sys.argv", [*command, "--set", "train/epochs=2"])
    with pytest.raises(SystemExit):
        tabular.main()
    assert "has runs of other settings" in capsys.readouterr().err
    assert len(tabular.read(results)) == 3


def test_a_run_that_diverges_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverging:
        finished = False

        def __init__(self, config: TrialConfig) -> None:
            pass

        def train_epoch(self) -> None:
            raise DivergedError("the loss is nan")

    monkeypatch.setattr(accuracy, "Run", Diverging)
    found = accuracy.run("full", apply_params(trial(), {"train/learning_rate": 0.5, "train/seed": 0}))
    assert found["settings"] == settings_of(trial(), *KEY)
    assert (found["learning_rate"], found["accuracies"], found["diverged"]) == (0.5, [], "the loss is nan")
    json.dumps(found)


def test_diverged_runs_are_never_chosen_and_in_no_mean() -> None:
    rows = [row(0.1, 0, 0.6), row(0.5, 0), row(0.1, 1), row(0.1, 2, 0.8)]
    assert best_rate(rows) == 0.1
    (found,) = summarise(rows, 3)
    assert (found["seeds"], found["diverged"], found["accuracy"]) == (2, 1, pytest.approx(0.7))
    assert "diverged" not in summarise([rows[0]], 3)[0]
    other = row(0.5, 0) | {"name": "head"}
    assert best_rate([other]) is None
    lost = summarise([*rows, other], 3, "full")[1]
    assert (lost.pop("method"), lost.pop("seeds"), lost.pop("diverged"), {*lost.values()}) == ("head", 0, 1, {None})
    with pytest.raises(ConfigError, match="give one of full"):
        summarise([*rows, other], 3, "head")


def test_without_test_images_there_is_no_test_accuracy() -> None:
    rows = [row(0.1, seed, 0.5, test_accuracy=None, name=name) for name in ("full", "head") for seed in (0, 1)]
    for found in summarise(rows, 2, "full"):
        assert found["test_accuracy"] is found["test_difference"] is None
        assert found["accuracy"] == 0.5


@pytest.mark.parametrize(("path", "value"), [("train/precision", "fp16"), ("train/optimizer", "sgd")])
def test_what_timm_does_otherwise_is_refused(path: str, value: str) -> None:
    config = apply_params(parse(TrialConfig, TRIAL), {path: value})
    with pytest.raises(ConfigError, match=f"{path} = {value}"):
        check(config, {path: value})


def test_weights_moments_and_images_are_resident_once() -> None:
    model, images = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)), torch.ones(5, 3)
    model[2].weight = model[0].weight
    side = Side(model, model)
    peak = side.peak_bytes(images, torch.zeros(5, dtype=torch.int64))
    weights, buffers, steps = 9 + 3 * 4, 3 + 3 + 2, 5  # the count of batches takes 8 bytes
    assert side.resident_bytes(images) == 4 * (3 * weights + buffers + steps + 5 * 3) < peak
