"""Settings: readings, paths, round trips, and refusals of one line each."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alast_tune.config import (
    AlastConfig,
    Choice,
    SweepConfig,
    TrainConfig,
    TrialConfig,
    Variants,
    apply_params,
    check_effects,
    check_sweep_effects,
    flatten,
    parse,
    read_mapping,
    stored_sweep,
    without_places,
    write_yaml,
)
from alast_tune.errors import ConfigError

SPACE = {"method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}}


def test_readings_fill_what_is_left_open_and_no_more() -> None:
    authors = AlastConfig.model_validate({"reading": "authors", "initial_budget": 0.7, "floors": {"late": 0.2}})
    assert (authors.selection, authors.keep_reference, authors.first_delta) == ("softmax", "incoming", "zero")
    assert (authors.initial_budget, authors.floors.early, authors.floors.late) == (0.7, 0.5, 0.2)
    paper = AlastConfig.model_validate({"reading": "paper"})
    assert (paper.initial_budget, paper.budget_timing, paper.keep_multiple) == (1.0, "same_step", 1)
    assert AlastConfig() == AlastConfig.model_validate({"reading": "fast"})
    assert AlastConfig().initial_budget == "calibrate"


def test_another_reading_replaces_what_the_first_filled_in_but_not_what_was_set() -> None:
    base = TrialConfig.model_validate({"method": {"name": "alast", "reading": "authors", "max_budget": 0.8}})
    other = apply_params(base, {"method/reading": "fast"}).method
    assert isinstance(other, AlastConfig)
    assert (other.selection, other.initial_budget, other.max_budget) == ("proportional", "calibrate", 0.8)


def test_paths_set_nested_values_and_leave_the_rest() -> None:
    base = TrialConfig.model_validate({"train": {"epochs": 3}})
    trial = apply_params(base, {"method/floors/early": 0.4, "method/trainable_blocks": 5, "train/learning_rate": 0.01})
    assert isinstance(trial.method, AlastConfig)
    assert (trial.method.floors.early, trial.method.floors.late, trial.method.trainable_blocks) == (0.4, 0.1, 5)
    assert (trial.train.learning_rate, trial.train.epochs) == (0.01, 3)
    assert base.train.learning_rate == 1e-4


def test_configurations_survive_json_and_are_hashable() -> None:
    trial = apply_params(TrialConfig(), {"method/reading": "authors", "data/root": "/tmp"})
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial
    assert len({trial, TrialConfig.model_validate_json(trial.model_dump_json())}) == 1
    sweep = parse(SweepConfig, {"space": SPACE})
    assert SweepConfig.model_validate_json(sweep.model_dump_json()) == sweep


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"trails": 3}, "trails = 3: no such setting; see --help for those there are"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial = 1.5: is above 1 and not whole"),
        ({"trials": 0}, "trials = 0: Input should be greater than or equal to 1"),
        ({"trial": {"train": {"seed": 2**60}}}, f"trial.train.seed = {2**60}: Input should be less than"),
        ({"trial": {"data": {"split_seed": -1}}}, "trial.data.split_seed = -1: Input should be greater"),
        ({"trial": {"train": {"epochs": "many"}}}, "trial.train.epochs = many: Input should be a valid integer"),
        ({"trial": {"method": {"name": "alast", "alpha": -1}}}, "trial.method.alpha = -1: Input should be greater"),
        ({"trial": {"method": {"name": "magic"}}}, "trial.method.name = magic: no such method; known are alast, full"),
        ({"trial": {"data": {"augment": "mild"}}}, "trial.data.augment = mild: Input should be 'none', 'paper'"),
        (
            {"space": {"method/alfa": SPACE["method/alpha"]}},
            "space.method/alfa = 0.0001: method/alfa = 0.0001: a trial",
        ),
        ({"space": {"method/alpha": {"type": "float", "low": 2, "high": 1}}}, "low = 2.0, high = 1.0: low must not"),
        ({"space": {"method/alpha": {"type": "float", "low": 0, "high": 1, "log": True}}}, "nor be <= 0 with log"),
        (
            {"space": {"method/trainable_blocks": {"type": "int", "low": -1, "high": 5}}},
            "space.method/trainable_blocks = -1",
        ),
        ({"space": {}}, "space = {}: nothing varies; give parameters, or auto"),
        ({"begin_with": [{"method/alfa": 1}]}, "begin_with.0.method/alfa = 1: the space has no such parameter; it has"),
        ({"begin_with": [{"method/alpha": 7}]}, "begin_with.0.method/alpha = 7: lies outside of space.method/alpha; "),
        ({"name": "../x"}, "name = ../x: String should match pattern"),
    ],
)
def test_each_refusal_is_one_line_with_field_value_and_remedy(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(SweepConfig, {"space": SPACE} | values)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"grace_epochs": 4, "trial": {"train": {"epochs": 4}}},
            "grace_epochs = 4: a trial has 4 epochs, and would never be stopped",
        ),
        (
            {"grace_epochs": 1, "trial": {"train": {"epochs": 2}}},
            "grace_epochs = 1: no trial is stopped early; leave it out",
        ),
        ({"grace_epochs": 1, "scheduler": "none"}, "grace_epochs = 1: no trial is stopped early"),
        ({"trial": {"train": {"batch_size": 4, "accumulate": 8}}}, "train.accumulate = 8: a batch has"),
    ],
)
def test_settings_of_a_sweep_without_effect_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_sweep_effects(parse(SweepConfig, {"space": SPACE} | settings))
    check_sweep_effects(parse(SweepConfig, {"space": SPACE, "grace_epochs": 3, "trial": {"train": {"epochs": 4}}}))


def test_floors_above_the_largest_budget_contradict_it() -> None:
    with pytest.raises(ConfigError, match=r"floors.late = 0.9 is above max_budget = 0.5"):
        apply_params(TrialConfig(), {"method/max_budget": 0.5, "method/floors/late": 0.9})


def test_files_are_mappings_in_yaml_or_json(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("train: {epochs: 2}\n")
    assert parse(TrialConfig, read_mapping(tmp_path / "good.yaml")).train.epochs == 2
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in {
        "none.yaml": "cannot be read",
        "list.yaml": "holds no mapping",
        "broken.yaml": "is not YAML",
        "binary.yaml": "is not YAML",
    }.items():
        with pytest.raises(ConfigError, match=words) as error:
            read_mapping(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_adapters_have_their_own_learning_rate_unless_one_is_set() -> None:
    """Appendix E: 1e-3 for LoRA, 1e-4 for the rest."""
    plain = TrialConfig()
    assert plain.train.learning_rate == 1e-4
    lora = TrialConfig.model_validate({"method": {"name": "lora"}})
    assert lora.train.learning_rate == 1e-3
    assert TrialConfig.model_validate_json(lora.model_dump_json()) == lora
    assert apply_params(lora, {"method/rank": 4}).train.learning_rate == 1e-3
    assert TrialConfig.model_validate({"method": {"name": "alast", "lora": {}}}).train.learning_rate == 1e-3
    set_by_hand = TrialConfig.model_validate({"method": {"name": "lora"}, "train": {"learning_rate": 1e-4}})
    assert set_by_hand.train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"name": "tome"}, "method = {...}: give one of merge (8, say), target_flops (0.6, say) and merge_once_in"),
        (
            {"name": "tome", "merge": 2, "target_flops": 0.5},
            "give one of merge (8, say), target_flops (0.6, say) and merge_once_in",
        ),
        ({"name": "lora", "targets": ["qkvs"]}, "method.targets.0 = qkvs: Input should be"),
        ({"name": "alast", "lora": {"rank": 0}}, "method.lora.rank = 0: Input should be greater than or equal to 1"),
        ({"name": "bsr", "keep": 0}, "method.keep = 0: Input should be greater than 0"),
    ],
)
def test_methods_refuse_in_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(line)):
        parse(TrialConfig, {"method": values})


def test_a_flat_configuration_has_plain_values_by_their_paths() -> None:
    trial = TrialConfig.model_validate({"model": {"checkpoint": "/a/b.safetensors"}, "method": {"name": "alast"}})
    flat = flatten(trial)
    assert flat["model/checkpoint"] == "/a/b.safetensors"
    assert flat["method/floors/early"] == 0.1
    json.dumps(flat)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "-2e3", ".5e1", "1.0e-4"])
def test_numbers_with_an_exponent_are_numbers_as_in_yaml_1_2_and_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(f"choices: [{text}]\nquoted: '{text}'\nname: 1e-4x\n")
    assert read_mapping(tmp_path / "a.yaml") == {"choices": [float(text)], "quoted": text, "name": "1e-4x"}
    (tmp_path / "b.yaml").write_text(write_yaml({"fingerprint": text, "number": float(text)}))
    assert read_mapping(tmp_path / "b.yaml") == {"fingerprint": text, "number": float(text)}
    (tmp_path / "c.json").write_text(json.dumps({"choices": [1e-5, 1e-7]}))
    assert read_mapping(tmp_path / "c.json") == {"choices": [1e-5, 1e-7]}


def test_text_where_a_number_is_meant_is_no_choice() -> None:
    space = {"train/learning_rate": {"type": "categorical", "choices": ["1e-4"]}}
    with pytest.raises(ConfigError, match=r"space.train/learning_rate = 1e-4: is text where a number is meant; leave"):
        parse(SweepConfig, {"space": space})
    calibrated = {"method/initial_budget": {"type": "categorical", "choices": ["calibrate", 0.5]}}
    assert parse(SweepConfig, {"space": calibrated}).space


@pytest.mark.parametrize("given", ["~/pets", "$DATA/pets", "${DATA}/pets", "$DATA/./pets"])
def test_paths_are_written_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    pets = tmp_path / "pets"
    trial = {"data": {"root": given}, "model": {"checkpoint": given}}
    sweep = parse(SweepConfig, {"space": SPACE, "storage": given, "warm_start": given, "trial": trial})
    assert (sweep.storage, sweep.warm_start, sweep.trial.data.root, sweep.trial.model.checkpoint) == (pets,) * 4
    assert apply_params(TrialConfig(), {"data/root": given}).data.root == pets


IDLE: list[tuple[dict[str, Any], str]] = [
    ({"method": {"name": "top_k", "blocks": [3], "count": 2}}, "method.count = 2: is for blocks that are still to be "),
    ({"method": {"name": "bsr", "blocks": [3], "probe_steps": 2}}, "method.probe_steps = 2: is for blocks that are "),
    ({"method": {"name": "tome", "merge": 4, "merge_share": 0.3}}, "method.merge_share = 0.3: is what method.merge_"),
    ({"method": {"name": "alast", "reading": "paper", "target_budget": 0.3}}, "method.target_budget = 0.3: is what "),
    ({"train": {"batch_size": 4, "accumulate": 5}}, "train.accumulate = 5: a batch has train.batch_size = 4 images "),
    ({"data": {"dataset": "digits", "root": "there"}}, "data.root = there: digits come with scikit-learn; leave it "),
]


@pytest.mark.parametrize(("values", "said"), IDLE)
def test_what_is_given_and_changes_nothing_is_refused_where_something_new_begins(
    values: dict[str, Any], said: str
) -> None:
    """Not where it is read, as something stored may have it, nor where a space makes of it what it will."""
    trial = parse(TrialConfig, values)
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        check_effects(trial)
    (group,) = values
    check_effects(trial, {f"{group}/workers": Choice(choices=(1, 2))})
    variants = {"one": {f"{group}/workers": 1}, "two": {}}
    check_effects(trial, {"own": Variants(variants=variants)})


def test_defaults_that_are_written_out_are_taken() -> None:
    for method in (
        {"name": "top_k", "blocks": [3]},
        {"name": "tome", "merge": 4},
        {"name": "alast", "reading": "paper"},
    ):
        whole = parse(TrialConfig, {"method": method}).model_dump(mode="json")
        check_effects(parse(TrialConfig, whole))


def test_a_path_that_cannot_be_written_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match=r"data.root = \$NOWHERE/x: the environment variable NOWHERE is not set; set"):
        parse(TrialConfig, {"data": {"root": "$NOWHERE/x"}})
    with pytest.raises(ConfigError, match=r"storage = s3://\$NOWHERE/x: the environment variable NOWHERE is not set"):
        parse(SweepConfig, {"space": SPACE, "storage": "s3://$NOWHERE/x"})
    with pytest.raises(ConfigError, match=r"model.checkpoint = ~nobody-of-that-name/x: there is no home folder"):
        parse(TrialConfig, {"model": {"checkpoint": "~nobody-of-that-name/x"}})


def test_in_a_job_relative_paths_mean_the_submitters_folder_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with pytest.raises(ConfigError, match=r"data.root = data: is relative, but a job runs in a copy"):
        parse(TrialConfig, {"data": {"root": "data"}})
    assert parse(TrialConfig, {"data": {"root": "/data"}}).data.root == Path("/data")
    monkeypatch.setenv("ALAST_TUNE_SUBMITTED_FROM", "/submitted")
    assert parse(TrialConfig, {"data": {"root": "data"}}).data.root == Path("/submitted/data")
    monkeypatch.delenv("ALAST_TUNE_SUBMITTED_FROM")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}}))
    assert parse(TrialConfig, {"data": {"root": "data"}}).data.root == Path("data")


def test_in_a_job_the_usual_storage_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps import pareto

    job = {"runtime_env": {"working_dir": "gcs://_ray_pkg_0123.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    monkeypatch.setattr("sys.argv", ["pareto.py", "--preset", "demo"])
    with pytest.raises(SystemExit):
        pareto.main()
    assert capsys.readouterr().err.startswith("error: storage = runs: is relative, but a job runs in a copy")


@pytest.mark.parametrize("name", ["K (blocks)", "K=blocks, n", "a/b", "", ".", "..", "K\n", "x" * 300])
def test_names_of_variants_that_mlflow_refuses_are_refused(name: str) -> None:
    space = {name: {"type": "variants", "variants": {"one": {"method/alpha": 0.5}}}}
    with pytest.raises(ConfigError) as error:
        parse(SweepConfig, {"space": space})
    assert str(error.value).startswith(f"space.{name} = variants: MLflow takes no such name")


def test_what_mlflow_takes_as_the_name_of_variants_is_taken() -> None:
    from mlflow.utils.validation import _validate_param_name

    for name in ("K blocks", "way", "Größe", "a.b-c_d: e"):
        _validate_param_name(f"space/{name}")
        assert parse(SweepConfig, {"space": {name: {"type": "variants", "variants": {"one": {"method/alpha": 0.5}}}}})


INCOMPARABLE = {
    "train/epochs": {"type": "int", "low": 2, "high": 5},
    "train/seed": {"type": "categorical", "choices": [1, 2]},
    "data/split_seed": {"type": "int", "low": 0, "high": 3},
    "data/validation_fraction": {"type": "float", "low": 0.1, "high": 0.3},
    "data/train_images": {"type": "categorical", "choices": [100, 200]},
    "data/dataset": {"type": "categorical", "choices": ["digits", "cifar100"]},
    "longer": {"type": "variants", "variants": {"as it is": {}, "long": {"train/epochs": 20}}},
    "whole": {"type": "variants", "variants": {"long": {"train": {"epochs": 20}}}},
}


@pytest.mark.parametrize("path", INCOMPARABLE)
def test_what_makes_trials_incomparable_is_no_parameter_of_a_search(path: str) -> None:
    space = {path: INCOMPARABLE[path]}
    with pytest.raises(ConfigError, match=rf"space.{path} = .*: trials that differ in .*/.* do not compare; set it in"):
        parse(SweepConfig, {"space": SPACE | space})
    if INCOMPARABLE[path]["type"] != "float":
        assert parse(SweepConfig, {"space": space, "sampler": "grid"}).sampler == "grid"


@pytest.mark.parametrize("sampler", ["ehvi", "grid"])
@pytest.mark.parametrize(
    "parameter",
    [
        {"train/score": {"type": "categorical", "choices": ["accuracy", "macro_f1"]}},
        {"way": {"type": "variants", "variants": {"by F1": {"train/score": "macro_f1"}}}},
    ],
)
def test_a_front_is_of_one_measure_of_quality(parameter: dict[str, Any], sampler: str) -> None:
    with pytest.raises(ConfigError, match=r"space\..* = .*: sets train.score, and a front has one; set it in trial"):
        parse(SweepConfig, {"space": parameter, "sampler": sampler})


def test_a_warm_up_ends_within_the_training() -> None:
    assert parse(TrialConfig, {"train": {"epochs": 2, "warmup_epochs": 2}})
    with pytest.raises(ConfigError, match=r"train.warmup_epochs = 3.0: is beyond train.epochs = 2"):
        parse(TrialConfig, {"train": {"epochs": 2, "warmup_epochs": 3}})


def test_places_of_files_do_not_make_another_trial_and_nothing_else_is_such() -> None:
    here = {
        "data": {"root": "/a", "workers": 2, "cache": "none"},
        "model": {"checkpoint": "/w"},
        "train": {"device": "cpu"},
    }
    there = {"data": {"root": "/b", "download": False}, "model": {"checkpoint": "/v"}, "train": {"device": "cuda"}}
    assert without_places(parse(TrialConfig, here)) == without_places(parse(TrialConfig, there))
    assert without_places(parse(TrialConfig, {"train": {"seed": 1}})) != without_places(TrialConfig())
    one, other = (parse(SweepConfig, {"space": SPACE, "trial": trial}) for trial in (here, there))
    free = {
        "trials": 99,
        "concurrent": 3,
        "cpus_per_trial": 2,
        "gpus_per_trial": 1.0,
        "retries": 0,
        "epoch_timeout": 9.0,
    }
    assert one.difference(other.model_copy(update=free)) is None
    assert one.difference(one.model_copy(update={"seed": 9})) == "seed"
    assert (
        one.difference(parse(SweepConfig, {"space": SPACE, "trial": {"data": {"root": "/a"}, "train": {"epochs": 3}}}))
        == "trial/train/epochs"
    )


def test_every_preset_and_spec_of_the_repository_is_valid() -> None:
    root = Path(__file__).parents[2]
    for file in sorted(
        [
            *root.glob("alast_tune/presets/*.yaml"),
            *root.glob("sweeps/presets/**/*.yaml"),
            *root.glob("benchmarks/specs/*.yaml"),
        ]
    ):
        values = read_mapping(file)
        if file.parent.name == "specs":  # beside the space the methods that are compared with
            values = {name: value for name, value in values.items() if name in SweepConfig.model_fields}
        kind = SweepConfig if "space" in values else TrialConfig
        assert parse(kind, values if "space" in values else values["trial"]), file


def test_a_sweep_of_an_older_version_counts_everything_and_others_what_they_say(tmp_path: Path) -> None:
    assert parse(SweepConfig, {"space": SPACE}).within == 0.05
    for given, found in (({}, None), ({"within": None}, None), ({"within": 0.1}, 0.1)):
        (tmp_path / "sweep.json").write_text(json.dumps({"space": SPACE} | given))
        assert stored_sweep(tmp_path).within == found
    (tmp_path / "sweep.json").write_text(json.dumps(stored_sweep(tmp_path).given_values()))
    assert stored_sweep(tmp_path).within == 0.1
    for within in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=rf"^within = {within}: "):
            parse(SweepConfig, {"space": SPACE, "within": within})
    other = parse(SweepConfig, {"name": tmp_path.name, "space": SPACE, "within": 0.2})
    assert other.difference(stored_sweep(tmp_path)) == "within"


MODERN = {"optimizer": "adamw", "weight_decay": 0.05, "schedule": "cosine", "clip_grad": 1.0, "label_smoothing": 0.1}


def test_a_recipe_sets_what_is_left_open_and_the_papers_is_what_was() -> None:
    assert parse(TrialConfig, {"recipe": "paper"}) == TrialConfig()
    trial = parse(TrialConfig, {"recipe": "modern", "method": {"name": "full"}, "train": {"epochs": 20, "seed": 1}})
    assert {name: getattr(trial.train, name) for name in MODERN} == MODERN
    assert (trial.train.layer_decay, trial.train.warmup_epochs, trial.train.precision) == (0.75, 2.0, "auto")
    given = parse(
        TrialConfig, {"recipe": "modern", "train": {"optimizer": "sgdw", "layer_decay": 0.9, "clip_grad": None}}
    )
    assert (given.train.optimizer, given.train.layer_decay, given.train.clip_grad) == ("sgdw", 0.9, None)
    assert given.train.weight_decay == 0.05


def test_what_a_recipe_fills_in_is_not_given_and_follows_method_and_epochs() -> None:
    values = {"recipe": "modern", "method": {"name": "full"}, "train": {"epochs": 20}}
    trial = parse(TrialConfig, values)
    assert trial.given_values() == values
    assert parse(TrialConfig, trial.given_values()) == trial == parse(TrialConfig, trial.model_dump(mode="json"))
    lora = apply_params(trial, {"method": {"name": "lora"}, "train/epochs": 10})
    assert (lora.train.layer_decay, lora.train.learning_rate, lora.train.warmup_epochs) == (1.0, 1e-3, 1.0)
    assert apply_params(lora, {"method": {"name": "full"}}).train.layer_decay == 0.75
    back = apply_params(trial, {"recipe": "paper"})
    assert back.train == parse(TrialConfig, {"method": {"name": "full"}, "train": {"epochs": 20}}).train
    moved = parse(TrialConfig, {"recipe": "paper", "train": trial.train})  # as Python hands it on
    assert (moved.train.optimizer, moved.train.epochs) == ("adam", 20)
    for method, decay in (({"name": "alast", "lora": {}}, 1.0), ({"name": "alast"}, 0.75), ({"name": "head"}, 1.0)):
        assert parse(TrialConfig, values | {"method": method}).train.layer_decay == decay


def test_precision_is_the_devices_where_it_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from alast_tune.device import precision_of

    auto = TrainConfig(precision="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for majors, expected in (((9,), "bf16"), ((7,), "fp32"), ((8, 7), "fp32"), ((), "fp32")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda majors=majors: len(majors))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda card, majors=majors: SimpleNamespace(major=majors[card])
        )
        assert precision_of(auto) == expected
        assert precision_of(auto.model_copy(update={"device": "cpu"})) == "fp32"
        assert precision_of(TrainConfig(precision="fp16")) == "fp16"
