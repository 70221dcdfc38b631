"""Settings: readings, paths, round trips, and refusals of one line each."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alast_tune.config import AlastConfig, SweepConfig, TrialConfig, apply_params, flatten, parse, read_mapping
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
        ({"trials": 0}, "trials = 0: Input should be greater than or equal to 1"),
        ({"trial": {"train": {"epochs": "many"}}}, "trial.train.epochs = many: Input should be a valid integer"),
        ({"trial": {"method": {"name": "alast", "alpha": -1}}}, "trial.method.alpha = -1: Input should be greater"),
        ({"trial": {"method": {"name": "magic"}}}, "trial.method = {...}: Input tag 'magic' found"),
        ({"trial": {"data": {"dataset": "mnist"}}}, "trial.data.dataset = mnist: Input should be 'digits', 'cifar100'"),
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
        ({"space": {}}, "space = {...}: Dictionary should have at least 1 item"),
        ({"name": "../x"}, "name = ../x: String should match pattern"),
    ],
)
def test_each_refusal_is_one_line_with_field_value_and_remedy(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(SweepConfig, {"space": SPACE} | values)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


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
        ({"name": "tome"}, "method = {...}: give either merge (8, say) or target_flops"),
        ({"name": "tome", "merge": 2, "target_flops": 0.5}, "give either merge (8, say) or target_flops"),
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
