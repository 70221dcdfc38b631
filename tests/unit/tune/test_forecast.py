"""Predicted peaks, against those of real runs of the embedded backbone on digits."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from alast_tune.config import SweepConfig, TrialConfig, apply_params, parse, read_mapping
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.micro_batches import GROWTH, IMAGES
from alast_tune.run import Run, load_trial
from alast_tune.scores import Evaluation
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.resources import MARGIN
from alast_tune.tune.space import to_optuna
from tests.unit.tiny import evaluation

THIRDS = ("early", "middle", "late")
ALAST = Path(__file__).parents[1] / "alast.yaml"


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return Forecast()


def trial(method: dict[str, Any], **train: Any) -> TrialConfig:
    options = {"epochs": 2, "batch_size": 32, "device": "cpu"} | train
    return TrialConfig.model_validate({"data": {"train_images": 64}, "method": method, "train": options})


def peak_bytes(forecast: Forecast, config: TrialConfig, growth: float = 0.0) -> int:
    return forecast.costs(config, growth).peak_bytes


class Unvalidated(Run):
    """Says nothing of accuracy, which takes as long as training and no memory that counts."""

    def evaluate(self, part: str) -> Evaluation:
        return evaluation(0.0)


def measured(config: TrialConfig) -> int:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Unvalidated(config)
    while not run.finished:
        report = run.train_epoch()
    torch.set_num_threads(threads)
    return report.cost.peak_bytes


STEADY: list[dict[str, Any]] = [
    {"name": "full"},
    {"name": "tome", "merge": 4},
    {"name": "alast", "reading": "fast", "trainable_blocks": 12, "alpha": 0, "lora": {}},
]
"""What the methods need is predicted in cost/; here only the model, the images and the budgets may be others."""


@pytest.mark.parametrize("method", STEADY, ids=lambda method: "-".join(map(str, list(method.values())[:2])))
def test_where_nothing_is_drawn_and_no_budget_moves_the_peak_is_met_within_3_percent(
    forecast: Forecast, method: dict[str, Any]
) -> None:
    config = trial(method, epochs=1)
    error = peak_bytes(forecast, config) / measured(config) - 1
    assert abs(error) <= 0.03


CALIBRATED = {"name": "alast", "trainable_blocks": 12, "alpha": 0, "target_budget": 1.0}
"""Looks at the first batch once more, and then keeps all tokens."""


@pytest.mark.parametrize("method", [{"name": "head"}, CALIBRATED | {"floors": dict.fromkeys(THIRDS, 1.0)}])
def test_flops_are_those_of_the_run_without_an_incomplete_last_batch(
    forecast: Forecast, method: dict[str, Any]
) -> None:
    config = apply_params(trial(method), {"data/train_images": 90})
    run = Unvalidated(config)
    while not run.finished:
        report = run.train_epoch()
    assert forecast.costs(config).train_flops == report.cost.train_flops


def test_the_modern_recipe_is_forecast_too(forecast: Forecast) -> None:
    """To the last FLOP; an average of the weights, and pairs of labels, count."""
    recipe = {"recipe": "modern", "train/ema": 0.99, "train/mixup": 0.8}
    config = apply_params(trial({"name": "full"}, epochs=1), recipe)
    costs, plain = forecast.costs(config), forecast.costs(trial({"name": "full"}, epochs=1, optimizer="adamw"))
    run = Unvalidated(config)
    report = run.train_epoch()
    assert costs.train_flops == report.cost.train_flops == plain.train_flops
    assert costs.peak_bytes == pytest.approx(report.cost.peak_bytes, rel=0.01)
    averages = sum(4 * p.numel() for p in run.method.parameters())
    assert costs.peak_bytes - plain.peak_bytes == pytest.approx(averages, rel=0.01)


@pytest.mark.slow
def test_over_the_demos_space_the_grown_peak_is_seldom_exceeded() -> None:
    """On all images, 24 draws: median error 5 %, at worst 45 % too low; with growth 3 %, 11 too low to 65 too high.

    Here two of the first draws: in one budgets grow, in the other they are large from the beginning.
    """
    sweep = parse(SweepConfig, read_mapping(ALAST))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    forecast, draws = Forecast(), [study.ask(to_optuna(sweep.space)).params for _ in range(3)]
    for params in (draws[0], draws[2]):
        config = apply_params(sweep.trial, params | {"data/train_images": 128})
        peak = measured(config)
        assert abs(peak_bytes(forecast, config) / peak - 1) <= 0.15
        grown = peak_bytes(forecast, config, GROWTH) / peak - 1
        assert 1 / (1 + MARGIN) - 1 <= grown <= 0.2  # packing's margin is enough


def test_budgets_grow_by_alpha_up_to_the_largest(forecast: Forecast) -> None:
    def peak(alpha: float, growth: float = GROWTH, **more: Any) -> int:
        return peak_bytes(forecast, trial({"name": "alast", "alpha": alpha, "target_budget": 0.3} | more), growth)

    still = peak(0.02, growth=0)
    assert peak(0) == still < peak(0.02) < peak(0.05) < peak(1.0) == peak(2.0)
    assert peak(1.0, max_budget=0.5) < peak(1.0)
    assert peak(1e-4, delta_reduction="batch_sum") > peak(1e-4)  # of the batch, not of the few images tried
    # What does not begin with a look at images moves no budget at first.
    as_set = {"initial_budget": 0.5, "first_delta": "skip"}
    assert peak(1.0, 0.0, **as_set) == peak(0.0, **as_set) < peak(0.0, 0.0, **as_set | {"initial_budget": 0.9})
    full = trial({"name": "full"})
    assert peak_bytes(forecast, full, GROWTH) == peak_bytes(forecast, full)


def test_one_trials_method_leaves_nothing_to_the_next(forecast: Forecast) -> None:
    full, lora = trial({"name": "full"}), trial({"name": "lora"})
    before = peak_bytes(forecast, full)
    assert peak_bytes(forecast, lora) != before
    assert peak_bytes(forecast, full) == before == peak_bytes(Forecast(), full)


def test_blocks_that_are_still_to_be_found_are_the_ones_that_need_most(forecast: Forecast) -> None:
    last, first = ({"name": "top_k", "blocks": blocks} for blocks in ([9, 10, 11], [0, 1, 2]))
    open_ = peak_bytes(forecast, trial({"name": "top_k"}))
    assert peak_bytes(forecast, trial(last)) < open_ == peak_bytes(forecast, trial(first))
    probe = peak_bytes(forecast, trial({"name": "top_k", "blocks": [0]}))
    assert peak_bytes(forecast, trial({"name": "bsr", "count": 1, "keep": 0.1})) == probe


def test_the_training_loop_counts(forecast: Forecast) -> None:
    whole = peak_bytes(forecast, trial({"name": "full"}))
    assert peak_bytes(forecast, trial({"name": "full"}, accumulate=4)) < whole
    assert peak_bytes(forecast, trial({"name": "full"}, precision="bf16")) < whole
    assert peak_bytes(forecast, trial({"name": "full"}, optimizer="sgd")) != whole
    assert peak_bytes(forecast, trial({"name": "full"}, batch_size=1000)) == peak_bytes(
        forecast,
        trial({"name": "full"}, batch_size=64),  # there are no more images
    )


def test_what_cannot_work_is_said(forecast: Forecast) -> None:
    with pytest.raises(ConfigError, match=r"method\.trainable_blocks = 13: the model has 12 blocks"):
        peak_bytes(forecast, trial({"name": "alast", "trainable_blocks": 13}))


def test_first_budgets_are_those_of_a_real_first_step(forecast: Forecast) -> None:
    """Calibrated ones to the last token; those that learn from deltas take the untouched model's."""
    for method, exact in (
        ({"reading": "fast", "alpha": 0.01, "target_budget": 0.4}, True),
        ({"reading": "authors", "alpha": 0.01}, False),
    ):
        config = trial({"name": "alast", "trainable_blocks": 4} | method)
        model, splits = load_trial(config, verify=False)
        spread = torch.linspace(0, len(splits.validation) - 1, IMAGES).int().tolist()
        images_BCHW, _ = splits.validation.__getitems__(spread)
        real: Any = build_method(config.method, model, config.train)
        real.begin_step(0)
        with torch.inference_mode():
            real.forward(images_BCHW)
            real.end_step()
        real.begin_step(1)
        drawn = config.method.foresee(forecast._look_at(config).look, real.plan, config.train, IMAGES, 0.0).drawn
        off = [abs(one - other) for one, other in zip(drawn[0].tokens_L, real.plan.tokens_L, strict=True)]
        assert max(off) == 0 if exact else max(off) <= 0.1 * drawn[0].tokens_L[0]
