"""`alast-tune sweep` before anything runs: help, choices, forecast, YAML, and what is refused."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alast_tune.choices import Machine
from alast_tune.cli import main
from alast_tune.cli import search as module
from alast_tune.cli.plan import plan_of, yaml_of
from alast_tune.cli.sweep import PRESETS, Sweep, goes_on, presets
from alast_tune.cli.train import Train
from alast_tune.config import SweepConfig, TrialConfig, parse, read_mapping, stored_sweep
from alast_tune.errors import ConfigError
from alast_tune.tune.forecast import Costs
from alast_tune.tune.preview import Pace, Preview, hours_of, pace, preview

Said = pytest.CaptureFixture[str]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the command in an empty folder; it must not run anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "run_sweep", lambda *_, **__: pytest.fail("a sweep was run"))

    def command(*words: str) -> None:
        main(["sweep", *words])

    return command


def refused(command: Callable[..., None], *words: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        command(*words)
    assert exit_.value.code == 2


def test_help_fits_a_screen_and_names_every_setting(sweep: Callable[..., None], capsys: Said) -> None:
    sweep("--help")
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 46 and max(map(len, lines)) <= 80
    for name in set(Sweep.model_fields) - {"folder", "chosen", "trial"}:
        assert f"--{name.replace('_', '-')}" in text.replace("\n", " "), name
    assert "FOLDER" in text and "--help-all" in text and "alast-tune sweep --resume pets" in text
    sweep("-h")
    assert capsys.readouterr().out == text


def test_help_all_has_every_path(sweep: Callable[..., None], capsys: Said) -> None:
    with pytest.raises(SystemExit) as exit_:
        sweep("--help-all")
    assert not exit_.value.code
    text = capsys.readouterr().out
    assert text.partition("\n\n")[2].startswith("Search for the Pareto front")
    assert re.search(r"--trial.method.name \{[^}]*}\s+\(default: alast\)", text)
    assert "--trial.method.floors.early" in text and "--time_budget" in text and "--chosen" not in text


def test_help_of_train_is_short_too_and_names_every_option_of_its_own(capsys: Said) -> None:
    main(["train", "--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 46 and max(map(len, lines)) <= 80
    for name in set(Train.model_fields) - set(TrialConfig.model_fields) - {"provenance"}:
        assert f"--{name.replace('_', '-')}" in text, name
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help-all"])
    assert not exit_.value.code
    text = capsys.readouterr().out
    assert re.search(r"--method.name \{[^}]*}\s+\(default: alast\)", text)
    assert "\nExample: alast-tune train" in text and "--method.floors.early" in text and "--output" in text


@pytest.mark.parametrize("command", ["ui", "list", "front", "promote", "report", "sync", "clean", "doctor"])
def test_each_command_shows_an_example_of_itself(command: str, capsys: Said) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"\nExample: alast-tune {command}" in capsys.readouterr().out


def test_the_commands_are_listed_in_a_line_each(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.rpartition("doctor}\n")[2].splitlines()
    assert len(listed) >= 10 and all(line[4] != " " for line in listed)


def test_a_dry_run_says_what_it_would_do_and_its_output_is_the_same_sweep_as_a_preset(
    sweep: Callable[..., None], two_classes: Path, tmp_path: Path, capsys: Said
) -> None:
    words = (str(two_classes), "--model", "embedded", "--trials", "5", "--max-memory", "1GiB", "--time-budget", "2h")
    sweep(*words, "--trial.train.epochs", "3", "--dry-run")
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for line in ("#   classes       2: dark, light", "#   FLOPs  ", "#   peak memory", "of 6 trials, 1 baseline"):
        assert line in text
    assert "#   epochs" not in text  # it was given
    file = tmp_path / "pets.yaml"
    file.write_text(text)
    underscored = [re.sub("(?<=[a-z])-", "_", word) if word[:2] == "--" else word for word in words]
    made = Sweep(_cli_parse_args=[*underscored, "--trial.train.epochs", "3"])  # type: ignore[call-arg]
    again = Sweep(_cli_parse_args=["--preset", str(file)])  # type: ignore[call-arg]
    assert parse(SweepConfig, again.given_values()) == parse(SweepConfig, made.given_values())
    sweep("--preset", str(file), "--dry-run")
    yaml = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert yaml == [line for line in text.splitlines() if not line.startswith("#")]


def test_a_dry_run_refuses_limits_that_nothing_keeps_as_the_sweep_would(
    sweep: Callable[..., None], two_classes: Path, capsys: Said
) -> None:
    words = (str(two_classes), "--model", "embedded", "--trials", "5", "--max-flops", "1e8", "--dry-run")
    refused(sweep, *words)
    said = capsys.readouterr()
    assert "# " in said.out and "space:" not in said.out
    assert said.err.startswith("error: max_flops = ") and "no setting of the space is forecast to keep" in said.err


@pytest.mark.parametrize("preset", presets())
def test_a_preset_written_as_yaml_is_itself(preset: str, tmp_path: Path) -> None:
    before = parse(SweepConfig, read_mapping(PRESETS / f"{preset}.yaml"))
    file = tmp_path / "again.yaml"
    file.write_text(yaml_of(before))
    assert parse(SweepConfig, read_mapping(file)) == before


@pytest.mark.parametrize(
    ("word", "begins"),
    [("runs/pets", Path("runs/pets")), ('[{"method/alpha": 0.5}]', ({"method/alpha": 0.5},))],
)
def test_a_sweep_begins_with_points_or_with_an_earlier_sweeps(word: str, begins: object, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("space: {method/alpha: {type: float, low: 0.1, high: 1}}\n")
    found = Sweep(_cli_parse_args=["--preset", str(file), "--begin_with", word])  # type: ignore[call-arg]
    assert found.begin_with == begins
    assert parse(SweepConfig, found.given_values()).begin_with == begins


def test_a_model_takes_the_place_of_a_presets(sweep: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "trial: {model: {name: vit_tiny_patch16_224, checkpoint: there.pth, image_size: 32}}\n"
        "space: {method/alpha: {type: float, low: 0.1, high: 1}}\n"
    )
    found = Sweep(_cli_parse_args=["--preset", str(file), "--model", "embedded"])  # type: ignore[call-arg]
    assert (found.trial.model.name, found.trial.model.checkpoint) == ("embedded", None)
    assert found.trial.model.image_size == 32


def test_a_folder_that_goes_on_with_a_sweep_is_asked_what_is_another(tmp_path: Path) -> None:
    """Another folder, model or choice of methods is not taken for the first attempt's."""
    variants = {name: {"method": {"name": name}} for name in ("lora", "full")}
    stored = parse(
        SweepConfig,
        {
            "trial": {"data": {"dataset": "folder", "root": tmp_path / "a" / "pets"}, "model": {"name": "embedded"}},
            "space": {"method": {"type": "variants", "variants": variants}},
        },
    )
    file = tmp_path / "runs" / "pets" / "sweep.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(stored.given_values()))

    def options(*words: str) -> Sweep:
        return Sweep(_cli_parse_args=[*words, "--go_on", "--storage", str(tmp_path / "runs")])  # type: ignore[call-arg]

    other = options(str(tmp_path / "b" / "pets"), "--model", "vit_tiny_patch16_224", "--methods", "lora")
    found = parse(SweepConfig, other.given_values())
    assert found.trial.data.root == tmp_path / "b" / "pets"  # whose images are then compared
    assert found.difference(stored_sweep(file.parent)) == "trial/model/name"
    with pytest.raises(ConfigError, match=r"^methods = lora: pets was started with lora, full; leave it out"):
        goes_on(other, found)
    same = options(str(tmp_path / "a" / "pets"), "--model", "embedded", "--methods", "full,lora")
    found = parse(SweepConfig, same.given_values())
    assert goes_on(same, found) and found.difference(stored_sweep(file.parent)) is None
    with pytest.raises(ConfigError, match=r"^methods = apla"):
        goes_on(options(str(tmp_path / "a" / "pets"), "--methods", "apla,lora,full"), found)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/nowhere"], "data.root = /nowhere: no such folder"),
        (["demo"], "folder = demo: is a preset, not a folder of images; give it as --preset demo"),
        (
            ["hf:somebody/pets", "--model", "embedded", "--trial.data.download", "0"],
            "data.dataset = hf:somebody/pets: ",
        ),
        ([], "folder = not given: give a folder of images, --preset (one of"),
        (["pictures", "--preset", "demo"], "folder = pictures: --preset says which images"),
        (["--resume", "old", "--model", "embedded"], "model = embedded: a resumed sweep keeps its own"),
        (["--resume", "old", "--methods", "lora"], "methods = lora: a resumed sweep keeps its own"),
        (["--preset", "demo", "--time-budget", "2"], "time_budget = 2: is no duration"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    sweep: Callable[..., None], capsys: Said, words: list[str], line: str
) -> None:
    refused(sweep, *words)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")


def small(**settings: Any) -> SweepConfig:
    """A sweep over two methods, full fine-tuning and a probe."""
    train = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    variants = {name: {"method": {"name": name}} for name in ("full", "head")}
    space = {"method": {"type": "variants", "variants": variants}}
    trial = {"data": {"train_images": 64}, "method": {"name": "head"}, "train": train}
    return parse(SweepConfig, {"trial": trial, "space": space} | settings)


def test_a_forecast_has_the_range_over_the_space_and_what_fits_at_a_time() -> None:
    seen = preview(small(trials=6), Machine(cpus=3, memory_bytes=2**36))
    assert (seen.at_a_time, seen.trials, seen.baselines) == (3, 7, 1)
    assert len({point.train_flops for point in seen.points}) == 2
    low, high = seen.range_of("train_flops")
    assert high == 1.0 and 0.3 < low < 0.4  # a probe costs the forward
    assert seen.full_runs == pytest.approx(1 + 6 * (1 + low) / 2)
    assert preview(small(concurrent=2), Machine(16, 2**36)).at_a_time == 2
    assert preview(small(), Machine(16, 2**30)).at_a_time == 0  # not one process fits


def test_hours_are_pace_times_images_over_trials_at_a_time() -> None:
    full = Costs(4e12, 100)
    seen = Preview(2, full, (full, Costs(2e12, 50)), trials=6, baselines=2)
    assert seen.full_runs == 2 + 4 * 0.75
    one, whole = hours_of(seen, Pace(0.1, 0.01), {"train": 3600, "validation": 7200}, epochs=2)
    assert one == pytest.approx(2 * (0.1 + 0.02))
    assert whole == pytest.approx((5 * 0.2 + 6 * 0.04) / 2)


def test_the_pace_is_that_of_full_fine_tuning_on_a_trials_threads() -> None:
    before = torch.get_num_threads()
    timed = pace(small())
    assert timed.look_seconds > 0 and timed.step_seconds > 0
    assert torch.get_num_threads() == before


def test_hours_are_not_made_up_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "10.0.0.1:6379")
    lines = list(plan_of(small(), []))
    assert "as many as fit on the cluster" in lines[1]
    assert "said once the first trial has ended" in lines[-1]


def test_a_limit_that_full_fine_tuning_breaks_is_said() -> None:
    assert not [line for line in plan_of(small(), []) if "is not run" in line]
    (line,) = (line for line in plan_of(small(max_memory="20MiB"), []) if "is not run" in line)
    assert "full fine-tuning is above --max-memory" in line


def test_runs_with_other_seeds_are_forecast() -> None:
    *_, last = plan_of(small(reseed=2, flops_budget="9x"), [])
    assert last == "  other seeds   then 2 more runs of each member in the region, and of full, within the budget"


@pytest.mark.parametrize("words", [["--space", "auto"], ["--space=auto"]])
def test_the_word_auto_replaces_a_presets_space(words: list[str], sweep: Callable[..., None], capsys: Said) -> None:
    (Path("here.yaml")).write_text(
        "trial: {data: {dataset: digits, train_images: 64}, method: {name: top_k}, train: {batch_size: 8}}\n"
        "space: {train/clip_grad: {type: float, low: 0.5, high: 2.0}}\n"
    )
    sweep("--preset", "here.yaml", *words, "--dry-run")
    text = capsys.readouterr().out
    assert "method/count:" in text and "clip_grad" not in text


def test_a_space_without_a_point_that_works_is_refused() -> None:
    space = {"method/count": {"type": "int", "low": 50, "high": 60}}
    method = {"name": "top_k"}
    values = small().given_values() | {"space": space}
    values["trial"]["method"] = method
    with pytest.raises(ConfigError, match=r"^space = method/count: none of 48 points of it works"):
        preview(parse(SweepConfig, values))
