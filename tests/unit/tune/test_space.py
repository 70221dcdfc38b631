"""Paths stay, distributions become Optuna's."""

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from alast_tune.config import Choice, FloatRange, IntRange, SweepConfig
from alast_tune.tune.space import baseline_params, begins_with, full_config, is_point, to_optuna, trial_config
from tests.unit.tune import conditional


def test_each_kind() -> None:
    space = {
        "method/alpha": FloatRange(low=1e-4, high=1.0, log=True),
        "method/trainable_blocks": IntRange(low=1, high=12),
        "method/frozen_backward": Choice(choices=("exact", "residual")),
    }
    assert to_optuna(space) == {
        "method/alpha": FloatDistribution(1e-4, 1.0, log=True),
        "method/trainable_blocks": IntDistribution(1, 12),
        "method/frozen_backward": CategoricalDistribution(("exact", "residual")),
    }


BLOCKS = {"type": "int", "low": 1, "high": 12}
RATE = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
WAYS = {"type": "variants", "variants": {"head": {"method": {"name": "head"}}, "few": {"method": {"name": "lora"}}}}
ADAPTIVE = {"type": "variants", "variants": {"a": {"method": {"name": "alast"}}, "b": {"method": {"name": "lora"}}}}
ONLY_ADAPTIVE = {"type": "variants", "variants": {"a": {"method": {"name": "alast"}}, "b": {"method/alpha": 0.1}}}
OPEN = {f"method/floors/{part}": {"type": "float", "low": 0.1, "high": 1.0} for part in ("early", "middle", "late")}
CACHED = {"type": "categorical", "choices": ["cache"]}


@pytest.mark.parametrize(
    ("method", "space", "first", "points"),
    [
        (
            {"name": "alast", "reading": "fast"},
            {"method/trainable_blocks": BLOCKS, **OPEN},
            ["full", "paper"],
            ["full"],
        ),
        ({"name": "alast", "reading": "paper"}, {"train/learning_rate": RATE}, ["full", "paper"], ["paper"]),
        ({"name": "alast", "reading": "fast"}, {"method/trainable_blocks": BLOCKS}, ["full", "paper"], []),
        ({"name": "full"}, {"train/learning_rate": RATE}, ["full"], ["full"]),
        ({"name": "lora"}, {"train/learning_rate": RATE}, ["full"], []),
        ({"name": "full"}, {"train/token_keep": RATE}, ["full"], []),
        ({"name": "full"}, {"data/features": CACHED}, ["full"], []),
        ({"name": "head"}, {"way": WAYS}, ["full"], []),
        ({"name": "head"}, {"way": ADAPTIVE}, ["full"], []),  # other methods too
        ({"name": "alast"}, {"way": ONLY_ADAPTIVE}, ["full", "paper"], []),
    ],
)
def test_baselines_run_where_they_can_be_compared_with_and_teach_only_as_points_of_the_space(
    method: dict[str, Any], space: dict[str, Any], first: list[str], points: list[str]
) -> None:
    sweep = SweepConfig.model_validate({"trial": {"method": method}, "space": space})
    assert begins_with(sweep) == first
    assert [baseline for baseline in ("full", "paper") if is_point(sweep, baseline)] == points


def test_baselines_train_on_images_where_others_train_on_features() -> None:
    trial = {"data": {"features": "cache", "augment": "paper", "views": 4}, "method": {"name": "full"}}
    sweep = SweepConfig.model_validate({"trial": trial, "space": {"method/from_block": BLOCKS}})
    data = full_config(sweep).data
    assert (data.features, data.views, data.augment) == ("none", 1, "paper")
    part = trial_config(sweep, baseline_params(sweep.trial, sweep.space, "full")).data
    assert (part.features, part.views, part.augment) == ("cache", 4, "paper")


def test_baselines_train_on_all_tokens_of_whole_images() -> None:
    trial = {"train": {"image_size_first": 16, "token_keep_last": 0.9, "epochs": 5}}
    sweep = SweepConfig.model_validate({"trial": trial, "space": {"train/token_keep": RATE}})
    params = baseline_params(sweep.trial, sweep.space, "full")
    whole, part = (trial_config(sweep, params, baseline).train for baseline in ("full", None))
    assert (whole.token_keep, whole.token_keep_last, whole.image_size_first) == (1.0, None, None)
    assert (part.token_keep < 1, part.token_keep_last, part.image_size_first) == (True, 0.9, 16)
    assert whole.epochs == 5


@pytest.mark.parametrize(
    ("sizes", "given", "side"),
    [
        ({"type": "categorical", "choices": [24, 32]}, {}, 32),
        ({"type": "categorical", "choices": [24, 32]}, {"image_size": 24}, 24),
        ({"type": "categorical", "choices": [16, 32]}, {"image_size": 28}, 32),
        ({"type": "int", "low": 24, "high": 40}, {}, 40),
    ],
)
def test_a_baseline_has_the_trials_images_or_else_the_largest(
    sizes: dict[str, Any], given: dict[str, int], side: int
) -> None:
    trial = {"model": given, "method": {"name": "full"}}
    sweep = SweepConfig.model_validate({"trial": trial, "space": {"model/image_size": sizes}})
    assert baseline_params(sweep.trial, sweep.space, "full") == {"model/image_size": side}


def test_a_baseline_stands_at_the_variant_of_its_method() -> None:
    config = conditional.sweep()
    assert list(to_optuna(config.space))[:4] == [
        "train/batch_size",
        "way",
        "lora/method/rank",
        "lora/train/learning_rate",
    ]
    assert begins_with(config) == ["full"]  # no variant is ALaST, which the base trial's method would be
    at = {"train/batch_size": 32, "way": "full", "full/train/learning_rate": 1e-4, "full/train/optimizer": "adam"}
    assert baseline_params(config.trial, config.space, "full") == at
    assert is_point(config, "full") and not is_point(config, "paper")
    assert trial_config(config, at) == trial_config(config, at, "full")


def test_a_baseline_takes_nothing_of_the_variants_of_other_methods() -> None:
    lora = conditional.SPACE | {"way": WAYS | {"variants": {"lora": conditional.METHODS["lora"]}}}
    config = conditional.sweep(space=lora)
    params = baseline_params(config.trial, config.space, "full")
    assert params == {"train/batch_size": 32, "way": "lora", "lora/method/rank": 16, "lora/train/learning_rate": 1e-3}
    full = trial_config(config, params, "full")
    assert (full.method.name, full.train.learning_rate, full.train.batch_size) == ("full", 1e-4, 32)
    assert not is_point(config, "full")


@pytest.mark.parametrize(("high", "point"), [(12, True), (3, True)])
def test_adaptive_fine_tuning_of_everything_is_full_fine_tuning_as_a_variant_too(high: int, point: bool) -> None:
    variant = {"method": {"name": "alast"}, "method/trainable_blocks": BLOCKS | {"high": high}, **OPEN}
    config = conditional.sweep(space={"way": WAYS | {"variants": {"head": {"method": {"name": "head"}}, "a": variant}}})
    params = baseline_params(config.trial, config.space, "full")
    assert (params["way"], params["a/method/trainable_blocks"]) == ("a", high)
    assert begins_with(config) == ["full"] and is_point(config, "full") == point
