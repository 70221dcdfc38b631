"""Epochs on fewer tokens and smaller images: what each gets, what it costs, and that a run can be resumed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from alast_tune.config import TrainConfig, TrialConfig, parse
from alast_tune.cost import StepCosts
from alast_tune.errors import ConfigError
from alast_tune.methods.base import StepPlan
from alast_tune.models import create_model
from alast_tune.models.backbone import predict
from alast_tune.phases import Phase, phases_of
from alast_tune.run import Run
from alast_tune.testing.steps import measured_steps, small_model
from alast_tune.tune.forecast import Forecast
from tests.unit.every_method import vit
from tests.unit.kinds import KINDS, small
from tests.unit.tiny import ALAST, DEPTH, STEPS

TinyTrial = Callable[..., TrialConfig]
RISING = {"epochs": 3, "token_keep": 0.5, "token_keep_last": 1.0, "image_size_first": 32}
"""On 64 pixels in patches of 16: of 2, 3 and 4 patches a side."""


def test_shares_and_sizes_change_evenly_and_end_at_the_last_ones() -> None:
    train = TrainConfig(epochs=5, token_keep=0.4, token_keep_last=1.0, image_size_first=9)
    phases = phases_of(train, small_model())
    assert [phase.image_size for phase in phases] == [8, 16, 24, 24, None]
    assert [phase.token_keep for phase in phases] == pytest.approx([0.4, 0.55, 0.7, 0.85, 1.0])
    assert phases_of(TrainConfig(epochs=2, token_keep=0.3), small_model()) == (Phase(token_keep=0.3),) * 2
    assert phases_of(TrainConfig(epochs=1), small_model()) == (Phase(),)
    falling = phases_of(TrainConfig(epochs=3, token_keep_last=0.6), small_model())
    assert [phase.token_keep for phase in falling] == [1.0, 0.8, 0.6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size_first": 32}, "train.image_size_first = 32: images grow from it to the model's own size, 32;"),
        ({"image_size_first": 7}, "train.image_size_first = 7: is less than a patch; give 8 pixels at least"),
        ({"image_size_first": 16, "epochs": 1}, "train.image_size_first = 16: one epoch is the first and the last"),
        ({"image_size_first": 16, "features": "cache"}, "train.image_size_first = 16: features are kept of images of"),
        ({"token_keep_last": 1, "epochs": 1}, "train.token_keep_last = 1.0: one epoch is the first and the last"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    features = values.get("features", "none")
    train = {name: value for name, value in values.items() if name != "features"}
    with pytest.raises(ConfigError) as refusal:
        phases_of(parse(TrialConfig, {"train": train, "data": {"features": features}}).train, small_model())
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_model_whose_positions_are_of_one_size_is_refused() -> None:
    model = small("eva02_tiny_patch14_224")
    model.rope = nn.Identity()  # timm has one of that kind, in no model that is accepted here
    with pytest.raises(ConfigError, match=r"image_size_first = 28: the model has positions by .* leave it out"):
        phases_of(TrainConfig(image_size_first=28), model)


@pytest.mark.parametrize("name", KINDS)
def test_other_sizes_are_timms_dynamic_image_size(name: str) -> None:
    """Logits and gradients at a smaller size; and at the model's own the same as before, bit for bit."""
    model = small(name).train()
    dynamic = small(name, KINDS[name] | {"dynamic_img_size": True}).train()
    dynamic.load_state_dict(model.state_dict())
    patch = int(model.patch_embed.patch_size[0])
    own, images = (torch.randn(2, 3, patches * patch, patches * patch) for patches in (4, 3))
    with torch.inference_mode():
        before = predict(model, own)
        predict(model, images)  # what it leaves behind can be trained with
    for logits in (logits_of := [predict(model, images), dynamic(images)]):
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    torch.testing.assert_close(*logits_of, atol=2e-5, rtol=2e-4)
    theirs = dict(dynamic.named_parameters())
    for where, parameter in model.named_parameters():
        expected = theirs[where].grad
        if expected is not None and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=2e-3, msg=where)
    assert model.pos_embed is None or not model.pos_embed.requires_grad or model.pos_embed.grad is not None
    with torch.no_grad():
        assert torch.equal(predict(model, own), before)
        torch.testing.assert_close(model(own), before, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("values", [{"name": "full"}, ALAST | {"trainable_blocks": 1}], ids=lambda one: one["name"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_every_structural_kind_costs_what_is_predicted(name: str, values: dict[str, Any]) -> None:
    model, config = small(name), TrialConfig.model_validate({"method": values}).method
    if config.why_not(model):
        return
    side = 3 * int(model.patch_embed.patch_size[0])
    first, second = measured_steps(model, config, 24, image_size=side, token_keep=0.7)
    assert (first.predicted.flops, second.predicted.flops) == (first.flops, second.flops)
    assert second.peak_error <= 0.01


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ({"name": "full"}, {}),
        (ALAST, {"accumulate": 2}),
        ({"name": "top_k", "count": 2, "probe_steps": 1}, {"precision": "bf16"}),
    ],
    ids=["full", "budgets", "exploration"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, tiny_trial: TinyTrial, method: dict[str, Any], train: dict[str, Any]
) -> None:
    config = tiny_trial(method, **RISING, **train)
    whole = Run(config)
    for _ in range(3):
        expected = whole.train_epoch()
    before = Run(config)
    for _ in range(2):
        before.train_epoch()
        before.save(tmp_path)
        after = Run(config)
        after.load(tmp_path)
        before = after
    report = after.train_epoch()
    state, other = whole.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    seconds = {"wall_seconds": 0.0, "train_seconds": 0.0}
    assert replace(report, cost=replace(report.cost, **seconds)) == replace(
        expected, cost=replace(expected.cost, **seconds)
    )


def test_the_tokens_that_were_used_are_written_down_and_full_is_the_whole_image(tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial({"name": "full"}, **RISING))
    reports = [run.train_epoch() for _ in range(3)]
    entering = [3, 8, 17]  # half of 4 patches, 0.75 of 9 and all 16, each with the class token
    assert [report.tokens for report in reports] == [(float(count),) * DEPTH for count in entering]
    records = list(run.meter.ledger.read())
    assert [record.tokens_L[0] for record in records] == [count for count in entering for _ in range(STEPS)]
    assert len({record.full_held_bytes for record in records}) == 1
    assert records[-1].held_bytes == records[-1].full_held_bytes > records[0].held_bytes
    assert run.meter.read().train_flops == sum(record.flops for record in records)


def test_evaluation_and_what_comes_out_are_of_whole_images(tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial({"name": "full"}, **RISING))
    report = run.train_epoch()
    images, labels = run._splits.validation.__getitems__(list(range(16)))
    assert images.shape[-1] == 64
    plain = create_model(run.config.model.model_copy(update={"num_classes": 2}))
    plain.load_state_dict(run.method.export().state_dict())
    with torch.no_grad():
        right = (plain.eval()(images).argmax(dim=1) == labels).float().mean().item()
    assert report.accuracy == right


@pytest.mark.parametrize(
    "method", [{"name": "full"}, {"name": "tome", "merge": 2}, ALAST | {"alpha": 0}], ids=lambda one: one["name"]
)
def test_a_forecast_sums_over_the_phases_and_has_the_heaviest_ones_peak(
    tiny_trial: TinyTrial, method: dict[str, Any]
) -> None:
    config = tiny_trial(method, **RISING)
    forecast = Forecast()
    costs = forecast.costs(config)
    run = Run(config)
    while not run.finished:
        report = run.train_epoch()
    assert costs.peak_bytes == pytest.approx(report.cost.peak_bytes, rel=0.03)
    exact = method["name"] != "alast"  # whose blocks are drawn, in twelve steps alone
    assert costs.train_flops == pytest.approx(report.cost.train_flops, rel=1e-9 if exact else 0.15)
    whole = forecast.costs(tiny_trial(method, epochs=3))
    assert costs.train_flops < 0.8 * whole.train_flops
    assert costs.peak_bytes == whole.peak_bytes  # the last epoch is on everything
    small = forecast.costs(tiny_trial(method, epochs=3, token_keep=0.5))
    assert small.peak_bytes < whole.peak_bytes


def test_the_probes_of_exploration_are_of_the_first_phase(tiny_trial: TinyTrial) -> None:
    """A single late block in the heaviest phase would need more than the probe of the first."""
    forecast = Forecast()
    explored = forecast.costs(tiny_trial({"name": "bsr", "count": 1, "keep": 0.01}, **RISING))
    named = forecast.costs(tiny_trial({"name": "bsr", "blocks": [0], "keep": 0.01}, **RISING))
    assert explored == named
    run = Run(tiny_trial({"name": "top_k", "count": 1, "probe_steps": 1}, **RISING))
    run.train_epoch()
    assert {record.tokens_L[0] for record in run.meter.ledger.read() if record.probe} == {3}


def test_images_are_shrunk_and_the_step_counts_what_they_are_then() -> None:
    images = torch.randn(2, 3, 32, 32)
    phase = Phase(image_size=16)
    assert phase.resize(images).shape == (2, 3, 16, 16)
    assert Phase().resize(images) is images
    torch.testing.assert_close(phase.resize(torch.full((1, 3, 32, 32), 0.3)), torch.full((1, 3, 16, 16), 0.3))
    model = vit()
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(predict(model, phase.resize(images)), torch.tensor([0, 1])).backward()
    plan = StepPlan((5,) * DEPTH, (True,) * DEPTH)
    config = TrialConfig.model_validate({"method": {"name": "full"}}).method
    assert 2 * StepCosts(model, 16).image_flops(config, plan) == counter.get_total_flops()


def test_phases_that_are_alike_are_one() -> None:
    phases = phases_of(TrainConfig(epochs=4, image_size_first=24), small_model())
    assert Counter(phases) == {Phase(24): 2, Phase(): 2}


@pytest.mark.parametrize("method", [{"name": "full"}, ALAST | {"alpha": 0}], ids=lambda one: one["name"])
def test_a_limit_of_memory_splits_the_batches_of_heavy_epochs_alone(
    tiny_trial: TinyTrial, method: dict[str, Any]
) -> None:
    forecast = Forecast()
    first, whole, parted = (
        forecast.costs(tiny_trial(method, **train)).peak_bytes
        for train in (RISING | {"token_keep_last": 0.5}, RISING, RISING | {"accumulate": 2})
    )
    assert first < parted < whole
    limit = (parted + whole) // 2
    config = tiny_trial(method, **RISING, accumulate="auto", max_memory=limit)
    run = Run(config)
    parts = [run._parts_of(run.method, run._optimizer, phase) for phase in run._phases]
    assert (parts[0], parts[-1]) == (1, 2)
    while not run.finished:
        report = run.train_epoch()
    assert report.cost.peak_bytes <= limit
    assert forecast.costs(config).peak_bytes == pytest.approx(report.cost.peak_bytes, rel=0.03)
