"""``space: auto``: whatever it proposes can be trained, on every kind of model; what was given stays."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alast_tune.choices import auto_space, space_words, with_auto_space
from alast_tune.choices.space import features_of, space_of_method, with_space_of
from alast_tune.config import (
    Distribution,
    LoraConfig,
    MethodConfig,
    ModelConfig,
    SweepConfig,
    TrialConfig,
    Variants,
    ends_of,
    find_method,
    in_force,
    parse,
)
from alast_tune.cost import step_flops
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.models import input_spec, outline
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.space import baseline_params, begins_with, is_point, trial_config
from tests.unit.kinds import small

METHODS = ["full", "lora", "apla", "alast", "alast-lora", "tome", "tome-lora", "reader", "head"]


def embedded(**settings: Any) -> Any:
    return outline(ModelConfig.model_validate({"num_classes": 10} | settings))


def variants(space: dict[str, Distribution]) -> dict[str, Any]:
    found = space["method"]
    assert isinstance(found, Variants)
    return found.variants


def corners(space: dict[str, Distribution]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the ends of a variant's ranges; of the learning rate, which costs do not know, one."""
    methods = space["method"]
    assert isinstance(methods, Variants)
    for variant in methods.variants:
        ranges = methods.ranges(variant)
        own = {f"{variant}/{path}": (ends_of(ranges[path])[0], ends_of(ranges[path])[-1]) for path in ranges}
        rate = f"{variant}/train/learning_rate"
        own[rate] = own[rate][:1]
        for values in itertools.product(*own.values()):
            yield {"method": variant} | dict(zip(own, values, strict=True))


def small_sweep(**settings: Any) -> SweepConfig:
    train = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    trial = {"data": {"train_images": 64}, "train": train}
    return parse(SweepConfig, {"trial": trial, "space": "auto"} | settings)


def test_every_corner_of_the_embedded_models_space_has_costs() -> None:
    sweep = with_auto_space(small_sweep())
    assert list(sweep.space) == ["model/image_size", "method"] and list(variants(sweep.space)) == METHODS
    forecast = Forecast()
    full = forecast.costs(trial_config(sweep, {}, "full"))
    for point in corners(sweep.space):
        costs = forecast.costs(trial_config(sweep, {"model/image_size": 24} | point))
        assert 0 < costs.train_flops < full.train_flops and 0 < costs.peak_bytes < full.peak_bytes, point


def test_a_variant_has_two_to_five_parameters_the_heads_alone_has_one() -> None:
    space = auto_space(embedded(), "embedded")
    counts = {variant: len(space["method"].ranges(variant)) for variant in METHODS}  # type: ignore[union-attr]
    assert counts.pop("head") == 1
    assert all(2 <= count <= 5 for count in counts.values())


@pytest.mark.parametrize(
    ("name", "depth", "lacks"),
    [
        ("vit_tiny_patch16_224", 4, set()),
        ("vit_tiny_patch16_224", 1, {"tome", "tome-lora"}),
        ("deit3_small_patch16_224", 2, set()),
        ("vit_base_patch16_siglip_gap_224", 4, {"tome", "tome-lora"}),
        ("vit_small_patch16_dinov3", 4, {"tome", "tome-lora"}),
        ("vit_base_patch16_xp_224", 3, {"lora", "apla", "alast", "alast-lora", "tome", "tome-lora"}),
        ("eva02_tiny_patch14_224", 3, {"tome", "tome-lora"}),
    ],
)
def test_every_corner_can_be_built_on_other_kinds_of_models(name: str, depth: int, lacks: set[str]) -> None:
    def model() -> Any:
        with torch.device("meta"):
            return small(name, {"depth": depth, "embed_dim": 48, "num_heads": 3})

    space = auto_space(model(), name)
    assert set(METHODS) - set(variants(space)) == lacks
    base = parse(TrialConfig, {"method": {"name": "full"}})
    for point in corners(space):
        settings = space["method"].settings(point["method"], point)  # type: ignore[union-attr]
        values = settings.pop("method") | {path[7:]: v for path, v in settings.items() if path.startswith("method/")}
        config = parse(MethodConfig, values)
        built = model()
        method = build_method(config, built, base.train)
        assert step_flops(built, config, method.plan, input_spec(built).image_size, 2) > 0, point


def test_named_methods_are_the_only_ones() -> None:
    model = embedded()
    assert list(variants(auto_space(model, "embedded", ["lora", "apla"]))) == ["lora", "apla"]
    assert list(variants(auto_space(model, "embedded", ["alast"]))) == ["alast", "alast-lora"]
    assert list(variants(auto_space(model, "embedded", ["alast-lora", "top_k"]))) == ["alast-lora", "top_k"]
    with pytest.raises(ConfigError, match=r"^methods = nope: no such method; known are full, lora, "):
        auto_space(model, "embedded", ["lora", "nope"])
    with torch.device("meta"):
        other = small("eva02_tiny_patch14_224")
    with pytest.raises(ConfigError, match=r"^methods = tome: the model .*; leave it out"):
        auto_space(other, "eva02_tiny_patch14_224", ["tome"])
    with pytest.raises(ConfigError, match=r"^methods = lora: the space says which"):
        with_auto_space(small_sweep(space={"train/token_keep": {"type": "float", "low": 0.5, "high": 1}}), ["lora"])


def test_pretrained_models_want_lower_rates_than_the_embedded_one() -> None:
    spaces = [auto_space(embedded(), name) for name in ("embedded", "deit_small_patch16_224")]
    for variant in METHODS:
        ours, others = (variants(space)[variant]["train/learning_rate"] for space in spaces)
        assert ours.log and others.low < ours.low and others.high < ours.high


def test_few_patches_are_all_kept_and_few_blocks_all_train() -> None:
    found = variants(auto_space(embedded(image_size=16), "embedded"))  # 16 patches
    assert not any("train/token_keep" in settings for settings in found.values())
    assert "method/target_flops" not in found["tome"]
    assert "train/token_keep" in variants(auto_space(embedded(), "embedded"))["full"]
    with torch.device("meta"):
        shallow = small("vit_tiny_patch16_224", {"depth": 3, "embed_dim": 48, "num_heads": 3})
    assert "method/from_block" not in variants(auto_space(shallow, "vit_tiny_patch16_224"))["full"]


def test_what_the_trial_was_given_does_not_vary() -> None:
    trial = {
        "data": {"train_images": 64, "features": "none"},
        "model": {"image_size": 32},
        "train": {"token_keep": 0.5, "learning_rate": 0.002, "device": "cpu"},
    }
    sweep = with_auto_space(small_sweep(trial=trial))
    assert list(sweep.space) == ["method"]
    assert not any("train/token_keep" in settings for settings in variants(sweep.space).values())
    assert sweep.trial.data.features == "none"
    assert (sweep.trial.train.token_keep, sweep.trial.train.learning_rate) == (0.5, 0.002)


def test_a_method_that_the_trial_was_given_is_searched_alone() -> None:
    asked = small_sweep(trial={"data": {"train_images": 64}, "method": {"name": "lora", "rank": 4}})
    sweep = with_auto_space(asked)
    assert sweep.trial.method == asked.trial.method
    assert list(sweep.space) == ["method/from_block", "train/token_keep", "train/learning_rate"]
    with pytest.raises(ConfigError, match=r"^methods = head: trial.method says which"):
        with_auto_space(asked, ["head"])


def test_features_are_cached_where_nothing_is_augmented_and_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert features_of(TrialConfig(), embedded(), 100) == "auto"
    assert features_of(TrialConfig(), embedded(), 10**12) == "none"
    against = [{"data": {"augment": "paper"}}, {"model": {"drop_path": 0.1}}]
    against += [{"train": {name: value}} for name, value in (("mixup", 0.2), ("cutmix", 1.0), ("image_size_first", 16))]
    for given in against:
        assert features_of(parse(TrialConfig, given), embedded(), 100) == "none", given


def test_it_is_made_out_once_and_written_out() -> None:
    asked = small_sweep()
    assert asked.given_values()["space"] == "auto"
    assert parse(SweepConfig, asked.given_values()) == asked == small_sweep(space="auto")
    assert "space" not in SweepConfig().model_fields_set and not SweepConfig().space
    found = with_auto_space(asked)
    assert parse(SweepConfig, found.given_values()) == found == with_auto_space(found)
    assert space_words(found.space)[0] == "9 methods (full, lora, apla, alast, ...)"
    narrow = with_auto_space(asked, ["head"])
    assert space_words(narrow.space)[0] == "1 method (head)"
    resumed = with_space_of(asked, narrow)
    assert resumed.difference(narrow) is None and resumed.space == narrow.space
    whole = with_space_of(asked, found)
    assert whole.difference(found) is None and whole.begin_with == found.begin_with


def test_full_fine_tuning_is_a_point_of_it() -> None:
    sweep = with_auto_space(small_sweep())
    assert begins_with(sweep) == ["full"] and is_point(sweep, "full")
    assert baseline_params(sweep.trial, sweep.space, "full")["model/image_size"] == 32


def test_it_begins_with_what_is_known_to_be_good() -> None:
    sweep = with_auto_space(small_sweep())
    assert [point["method"] for point in sweep.begin_with] == ["apla", "reader", "full", "apla"]
    for point in sweep.begin_with:
        assert point["model/image_size"] == 32 and list(point) == in_force(sweep.space, point)
        trial_config(sweep, point)
    assert [point.get("apla/method/from_block") for point in sweep.begin_with] == [0, None, None, 6]
    few = with_auto_space(small_sweep(), ["head", "reader"])
    assert [point["method"] for point in few.begin_with] == ["reader"]
    given = {"method": "head"}
    assert with_auto_space(small_sweep(begin_with=[given])).begin_with == (given,)
    assert with_auto_space(small_sweep(begin_with=[])).begin_with == ()


def test_a_grid_needs_values() -> None:
    with pytest.raises(ConfigError, match=r"^space = auto: has real parameters, and a grid none; list the values"):
        small_sweep(sampler="grid")


def test_one_method_varies_in_what_it_was_not_given() -> None:
    model = embedded()
    lora = space_of_method(model, "embedded", LoraConfig(rank=4))
    assert list(lora) == ["method/from_block", "train/token_keep", "train/learning_rate"]
    alast = find_method("alast").model_validate({"reading": "paper", "lora": {}})
    assert list(space_of_method(model, "embedded", alast)) == [
        "method/trainable_blocks",
        "method/target_budget",
        "train/learning_rate",
    ]
    tome = find_method("tome").model_validate({"merge": 4})
    assert list(space_of_method(model, "embedded", tome)) == ["train/learning_rate"]
