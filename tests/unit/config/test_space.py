"""Variants with ranges of their own: names, what is in force, how many points there are, what is refused."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from alast_tune.config import (
    Choice,
    FloatRange,
    IntRange,
    Record,
    SweepConfig,
    TrialConfig,
    Variants,
    combinations,
    in_force,
    is_conditional,
    known_methods,
    parameters,
    parse,
    point_of,
    read_mapping,
    setting_of,
    size_of,
    write_yaml,
)
from alast_tune.errors import ConfigError

RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
METHODS: dict[str, Any] = {
    "full": {"method": {"name": "full"}, "train/learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3}},
    "lora": {
        "method/rank": {"type": "categorical", "choices": [4, 16]},
        "method": {"name": "lora", "rank": 8, "lora_alpha": 32},
        "train/weight_decay": 0.1,
        "train/learning_rate": RATE,
    },
    "head": {"method": {"name": "head"}},
}
SPACE = {
    "train/batch_size": {"type": "categorical", "choices": [16, 32]},
    "way": {"type": "variants", "variants": METHODS},
}
NAMES = ["train/batch_size", "way", "full/train/learning_rate", "lora/method/rank", "lora/train/learning_rate"]


def sweep(space: dict[str, Any] = SPACE, **options: Any) -> SweepConfig:
    return parse(SweepConfig, {"space": space} | options)


def of_lora(**settings: Any) -> dict[str, Any]:
    """The space, with other settings of one variant."""
    lora = METHODS["lora"] | {name.replace("__", "/"): value for name, value in settings.items()}
    return SPACE | {"way": {"type": "variants", "variants": METHODS | {"lora": lora}}}


def test_a_conditional_parameter_is_named_after_its_variant_and_in_force_with_it() -> None:
    space = sweep().space
    assert list(parameters(space)) == NAMES
    assert in_force(space, {"way": "lora"}) == [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]
    assert in_force(space, {"way": "head"}) == in_force(space, {}) == NAMES[:2]
    assert [setting_of(name) for name in NAMES] == [*NAMES[:2], "train/learning_rate", "method/rank", NAMES[2][5:]]
    low = {"train/batch_size": 32, "way": "lora", "lora/method/rank": 4, "lora/train/learning_rate": 1e-4}
    asked: list[str] = []

    def value_of(one: Any) -> Any:
        asked.append(one.name)
        return low[one.name]

    assert point_of(space, value_of) == low
    assert asked == list(low)
    assert is_conditional(space)
    plain = {name: {"method": settings["method"]} for name, settings in METHODS.items()}
    assert not is_conditional(sweep({"way": {"type": "variants", "variants": plain}}).space)


def test_a_point_sets_whole_records_first_then_what_the_variant_lists() -> None:
    config = sweep()
    params = {"train/batch_size": 32, "way": "lora", "lora/method/rank": 4, "lora/train/learning_rate": 2e-3}
    assert config.settings(params) == {
        "train/batch_size": 32,
        "method/rank": 4,
        "method": METHODS["lora"]["method"],
        "train/weight_decay": 0.1,
        "train/learning_rate": 2e-3,
    }
    shared = SPACE | {"train/learning_rate": RATE}
    first = sweep({"train/learning_rate": RATE, **SPACE})
    assert first.settings({"train/learning_rate": 1e-4, **params})["train/learning_rate"] == 2e-3  # the later one
    with pytest.raises(ConfigError, match="is set again by space"):
        sweep(shared)


def test_a_sweep_is_read_again_as_it_was(tmp_path: Path) -> None:
    config = sweep()
    assert parse(SweepConfig, json.loads(json.dumps(config.given_values()))) == config
    (tmp_path / "sweep.yaml").write_text(write_yaml(config.given_values()))
    assert parse(SweepConfig, read_mapping(tmp_path / "sweep.yaml")) == config
    assert SweepConfig.model_validate_json(config.model_dump_json()) == config
    by_hand = Variants(
        variants={"lora": {"method": {"name": "lora"}, "train/learning_rate": FloatRange(low=1, high=2)}}
    )
    assert by_hand.ranges("lora") == {"train/learning_rate": FloatRange(low=1, high=2)}
    other = sweep(of_lora(train__learning_rate=RATE | {"high": 2e-2}))
    assert config.difference(other) == "space/way" and config.difference(sweep()) is None


SIMPLE = st.one_of(
    st.integers(0, 3).map(lambda high: IntRange(low=0, high=high)),
    st.integers(1, 3).map(lambda count: Choice(choices=tuple("abc"[:count]))),
)
OWN = st.dictionaries(st.sampled_from(["train/x", "train/y"]), st.one_of(SIMPLE, st.just(1)), max_size=2)
WAYS = st.dictionaries(st.sampled_from(["one", "two", "three"]), OWN, min_size=1).map(lambda v: Variants(variants=v))


@given(st.dictionaries(st.sampled_from(["train/a", "train/b"]), SIMPLE, max_size=2), WAYS)
def test_every_point_comes_once_with_what_is_in_force(shared: dict[str, Any], ways: Variants) -> None:
    space = {**shared, "way": ways}
    points = list(combinations(space))
    assert len(points) == size_of(space) == len({tuple(point.items()) for point in points})
    for point in points:
        assert list(point) == in_force(space, point)
    assert math.isinf(size_of({**space, "train/c": FloatRange(low=0, high=1)}))


def test_a_grid_has_each_variants_own_grid() -> None:
    space = SPACE | {"way": {"type": "variants", "variants": {"lora": METHODS["lora"], "head": METHODS["head"]}}}
    space["way"]["variants"]["lora"] = METHODS["lora"] | {"train/learning_rate": 1e-3}  # type: ignore[index]
    config = sweep(space, sampler="grid")
    assert config.trials == 2 * (2 + 1)
    assert [tuple(point.values()) for point in config.combinations()][:4] == [
        (16, "lora", 4),
        (16, "lora", 16),
        (16, "head"),
        (32, "lora", 4),
    ]
    line = "space.way.full.train/learning_rate = float: a grid has no place for a real parameter"
    with pytest.raises(ConfigError, match=line):
        sweep(sampler="grid")


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (of_lora(method__rankk={"type": "int", "low": 1, "high": 4}), "space.way.lora.method/rankk = 1: method/rankk"),
        (
            of_lora(train__learning_rate={"type": "float", "low": -1, "high": 1}),
            "space.way.lora.train/learning_rate = -1.0: train.learning_rate = -1.0: Input should be greater than 0",
        ),
        (
            of_lora(train__learning_rate={"type": "float", "low": 0, "high": 1, "log": True}),
            "space.way.lora.train/learning_rate = {...}: low = 0.0, high = 1.0: low must not exceed high",
        ),
        (of_lora(method__from_block={"type": "int", "low": 0}), "space.way.lora.method/from_block.high = not given"),
        (
            of_lora(method__from_block={"type": "int", "low": 0, "high": "x"}),
            "space.way.lora.method/from_block.high = x",
        ),
        (
            of_lora(method__rank={"type": "categorical", "choices": ["4", "16"]}),
            "space.way.lora.method/rank = 4: is text where a number is meant; leave out the quotes",
        ),
        (
            of_lora(method__rank={"type": "variants", "variants": {}}),
            "space.way.lora.method/rank = variants: a variant has no variants; list each combination",
        ),
        (
            of_lora(method={"name": "lora", "rank": {"type": "int", "low": 1, "high": 4}}),
            "space.way.lora.method.rank = a distribution: stands inside a record; write it beside the record",
        ),
        (
            of_lora(train__seed={"type": "int", "low": 0, "high": 3}),
            "space.way.lora.train/seed = 3: trials that differ",
        ),
        (
            of_lora(data__all_data=True),
            "space.way = lora: sets data.all_data, and a sweep selects on validation images",
        ),
        (
            {"way": {"type": "variants", "variants": {"train": {"train/learning_rate": RATE}}}},
            "space.way.train = train: is a part of every trial, with such paths; give it another name",
        ),
        (
            {"way": {"type": "variants", "variants": {"a/b": {"train/learning_rate": RATE}}}},
            "space.way.a/b = a/b: names its parameters in MLflow; give it a name of letters",
        ),
        (
            SPACE | {"more": {"type": "variants", "variants": {"lora": {"train/weight_decay": RATE}}}},
            "space.more.lora = lora: has parameters of the same names as space.way.lora; rename one of the two",
        ),
    ],
)
def test_a_bad_variant_is_refused_in_one_line_that_says_where(space: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep(space)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def records(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A record's class, and those of the records in its fields."""
    yield kind
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Record):
            yield from records(field.annotation)


def test_no_setting_is_called_as_what_makes_a_distribution() -> None:
    for kind in (TrialConfig, *known_methods().values()):
        for record in records(kind):
            assert "type" not in record.model_fields, record
