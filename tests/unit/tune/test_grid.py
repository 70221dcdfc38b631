"""Grids and variants: every combination once, in order, whatever happens to the driver."""

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from alast_tune.config import SweepConfig, TrialConfig, parse
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints
from alast_tune.summary import summarise
from alast_tune.terminal import front_table
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.space import trial_config
from alast_tune.tune.trials import enqueue_first, results
from alast_tune.tune.warm_start import earlier_results, feed
from tests.unit.tune.test_search import Recorder, everywhere, forecast, opened, report, searcher

VARIANTS = {
    "full": {"method": {"name": "full"}, "train/learning_rate": 5e-5},
    "lora": {"method": {"name": "lora"}, "method/rank": 4},
    "narrow": {"method/trainable_blocks": 2},
}
SPACE = {
    "way": {"type": "variants", "variants": VARIANTS},
    "train/seed": {"type": "int", "low": 0, "high": 1},
}
COMBINATIONS = [(name, seed) for name in VARIANTS for seed in (0, 1)]

ORIGIN = Fingerprints(data="d1", weights="w1")


def grid(**options: Any) -> SweepConfig:
    return parse(
        SweepConfig,
        {"sampler": "grid", "study": "journal", "trial": {"train": {"epochs": 3}}, "space": SPACE} | options,
    )


def names(study: Any) -> list[tuple[str, int]]:
    return [(trial.params["way"], trial.params["train/seed"]) for trial in study.trials]


def test_variants_set_whole_records_and_single_settings() -> None:
    config = grid()
    full, lora, narrow = (parse_trial(config, name) for name in VARIANTS)
    assert (full.method.name, full.train.learning_rate, full.train.epochs) == ("full", 5e-5, 3)
    assert (lora.method.name, lora.method.rank, lora.train.learning_rate) == ("lora", 4, 1e-3)  # that of adapters
    assert (narrow.method.name, narrow.method.trainable_blocks) == ("alast", 2)


def parse_trial(config: SweepConfig, name: str) -> Any:
    return trial_config(config, {"way": name, "train/seed": 0})


def test_a_resumed_sweep_reads_its_variants_and_readings_as_the_first_driver_did() -> None:
    """What was filled in (the adapters' learning rate, a reading's options) is not stored as if it had been given."""
    config = grid(trial={"method": {"name": "alast", "reading": "authors"}})
    stored = parse(SweepConfig, json.loads(json.dumps(config.given_values())))
    assert stored == config
    assert parse_trial(stored, "lora") == parse_trial(config, "lora")
    assert parse_trial(stored, "lora").train.learning_rate == 1e-3
    readings = grid(space={"method/reading": {"type": "categorical", "choices": ["paper", "fast"]}})
    stored = parse(SweepConfig, json.loads(json.dumps(readings.given_values())))
    assert trial_config(stored, {"method/reading": "paper"}).method.initial_budget == 1.0  # type: ignore[union-attr]


def test_a_grid_has_as_many_trials_as_combinations_and_stops_nobody() -> None:
    config = grid(trial={"train": {"epochs": 8}})
    assert (config.trials, config.stops_early) == (6, False)
    assert grid(trials=6).trials == 6
    assert grid(scheduler="moasha").stops_early
    assert SweepConfig.model_validate_json(config.model_dump_json()) == config
    assert [tuple(point.values()) for point in config.combinations()] == COMBINATIONS


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"trials": 5}, "trials = 5: the grid has 6 combinations, each once; leave it out"),
        (
            {"space": {"method/alpha": {"type": "float", "low": 0, "high": 1}}},
            "space.method/alpha = float: a grid has no place for a real parameter; list values: {type: categorical",
        ),
        (
            {"space": {"way": {"type": "variants", "variants": {"odd": {"method/alfa": 1}}}}},
            "space.way = odd: method/alfa = 1: a trial has no such setting; paths look like method/alpha",
        ),
        (
            {"space": {"way": {"type": "variants", "variants": {"odd": {"method": {"name": "magic"}}}}}},
            "space.way = odd: method.name = magic: no such method; known are",
        ),
        ({"space": {"a/b": SPACE["way"]}}, "space.a/b = variants: MLflow takes no such name"),
        (
            {"space": {"way": {"type": "variants", "variants": {}}}},
            "space.way = {...}: Dictionary should have",
        ),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(**options)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_every_combination_is_handed_out_once_in_order_and_no_baseline(tmp_path: Path) -> None:
    config = grid()
    search, study, _ = searcher(tmp_path, config)
    enqueue_first(study, config)
    assert search.remaining == 6
    methods = []
    while isinstance(suggestion := search.suggest(str(len(methods))), dict):
        methods.append(suggestion["trial"]["method"]["name"])
        search.on_trial_complete(str(len(methods) - 1), report(accuracy=0.5 + len(methods) / 100))
    assert methods == ["full", "full", "lora", "lora", "alast", "alast"]
    assert names(study) == COMBINATIONS
    assert search.remaining == 0
    ended = results(study, config)
    assert [result.params for result in ended] == list(config.combinations())
    assert ended[2].config == TrialConfig.model_validate_json(json.dumps(ended[2].config.model_dump(mode="json")))
    front = summarise("grid", ended, (0.0, 2e12, 2e8))
    assert [member.params for member in front.front] == [{"way": "narrow", "train/seed": 1}]


def test_a_failed_combination_is_not_tried_again_and_takes_no_others_place(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path, grid())
    for number in range(6):
        search.suggest(str(number))
        search.on_trial_complete(str(number), report(), error=number % 2 == 0)
    assert search.suggest("more") == StudySearcher.FINISHED
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE] * 3
    assert names(study) == COMBINATIONS


def test_a_grid_goes_on_where_a_killed_driver_was(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path, grid())
    for key in "abc":
        search.suggest(key)
    search.on_trial_complete("b", report())
    study.ask().suggest_categorical("way", tuple(VARIANTS))  # killed while asking: its seed is not there yet
    assert study.trials[3].params == {"way": "lora"}
    del search, study  # SIGKILL
    search, study, _ = searcher(tmp_path, grid())
    handed = []
    while isinstance(suggestion := search.suggest(str(len(handed))), dict):
        handed.append(suggestion["number"])
        search.on_trial_complete(str(len(handed) - 1), report())
    assert handed == [0, 2, 3, 4, 5]
    assert names(study) == COMBINATIONS
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_what_breaks_a_limit_before_it_starts_ends_a_grid_no_later(tmp_path: Path) -> None:
    config = grid(max_memory="1MB")
    search, study, observer = searcher(tmp_path, config)
    assert search.suggest("a") == StudySearcher.FINISHED
    assert len(study.trials) == len(observer.ends) == 6
    assert {end.state for end in observer.ends} == {"infeasible"}


def test_results_of_an_earlier_sweep_are_no_combinations_any_more(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    seeds = {"train/seed": {"type": "categorical", "choices": [0]}}
    before = grid(name="before", storage=tmp_path, space={"way": SPACE["way"]} | seeds)
    search, study, _ = searcher(tmp_path / "before", before)
    (tmp_path / "before" / "sweep.json").write_text(json.dumps(before.given_values()))
    while isinstance(search.suggest("a"), dict):
        search.on_trial_complete("a", report())
    after = grid(name="after", storage=tmp_path, warm_start=tmp_path / "before")
    study = opened(after, tmp_path)
    assert feed(study, after, earlier_results(after, ORIGIN, [].append)) == 3
    search = StudySearcher(study, after, Recorder(), everywhere(after), forecast)
    assert search.remaining == 3
    assert [search.suggest(key)["trial"]["train"]["seed"] for key in "abc"] == [1, 1, 1]  # type: ignore[index]
    others = {"way": {"type": "variants", "variants": {"full": VARIANTS["full"], "head": {"method": {"name": "head"}}}}}
    third = grid(name="third", storage=tmp_path, warm_start=tmp_path / "before", space=others | seeds)
    assert (
        feed(opened(third, tmp_path), third, earlier_results(third, ORIGIN, [].append)) == 1
    )  # the others are no variants of it


def test_a_search_over_variants_begins_with_full_fine_tuning(tmp_path: Path) -> None:
    config = grid(sampler="random", trials=3, space={"way": SPACE["way"]})
    study = opened(config, tmp_path)
    enqueue_first(study, config)
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    full, other = (search.suggest(key) for key in "ab")
    assert isinstance(full, dict) and isinstance(other, dict)
    assert (full["baseline"], other["baseline"], full["trial"]["method"]["name"]) == ("full", None, "full")
    assert full["trial"]["train"]["learning_rate"] == 5e-5  # of the variant at whose place it stands
    assert study.trials[1].params["way"] in VARIANTS


def test_the_table_of_a_front_names_variants(tmp_path: Path) -> None:
    search, study, _ = searcher(tmp_path, grid())
    for number in range(6):
        search.suggest(str(number))
        search.on_trial_complete(str(number), report(accuracy=0.5 + number / 10, train_flops=(number + 1) * 1e11))
    console = Console(width=80, record=True)
    console.print(front_table(summarise("grid", results(study, grid()), (0.0, 2e12, 2e8))))
    lines = [line.strip() for line in console.export_text().splitlines()]
    assert [line for line in lines if "seed" in line] == [f"{name}, seed {seed}" for name, seed in COMBINATIONS]


def test_a_parameter_that_is_not_in_the_grid_is_refused(tmp_path: Path) -> None:
    _, study, _ = searcher(tmp_path, grid())
    with pytest.raises(ValueError, match="other is not in the grid"):
        study.ask().suggest_int("other", 0, 1)
