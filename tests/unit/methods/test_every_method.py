"""What holds for every method: its extremes, its state, and what it leaves alone."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrainConfig, TrialConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.methods import Alast, Method, build_method
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import embed, predict
from alast_tune.testing import CHECKS, check_costs, check_half_precision, check_plan
from alast_tune.testing.steps import MakeModel, adam, batch, gradients, step
from tests.unit.every_method import DEPTH, METHODS, MODELS, cases, vit

READINGS = ("paper", "authors", "fast")
FLOORS = {"early": 1.0, "middle": 1.0, "late": 1.0}
DROPOUT = {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.2}
SHAPES = MODELS | {
    "dropout": DROPOUT,
    "norm before the blocks": {"pre_norm": True},
    "no bias": {"qkv_bias": False, "proj_bias": False},
    "no positions": {"pos_embed": "none"},
}


def draws(name: str, most: int = 4) -> list[MethodConfig]:
    """Some settings of a method, in which many of its options meet; more of those that have many."""
    count = {"full": 1, "head": 1, "alast": 4, "lora+alast": 3}.get(name, 2)
    return [case.config for case in cases(name)[: min(count, most)]]


def setting(**values: Any) -> MethodConfig:
    return TrialConfig.model_validate({"method": values}).method


def alast(model: Any, **options: Any) -> Alast:
    method = build_method(setting(name="alast", **options), model)
    assert isinstance(method, Alast)
    return method


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not check_costs])  # see test_prediction.py
@pytest.mark.parametrize("name", METHODS)
def test_it_passes_what_every_method_has_to(name: str, check: Callable[[MethodConfig, MakeModel], None]) -> None:
    for config in draws(name):
        check(config, vit)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_shape_of_model_works(name: str, options: dict[str, Any]) -> None:
    for config in draws(name, 2):
        check_plan(config, lambda: vit(options))
        if not options.keys() & DROPOUT.keys():
            check_half_precision(config, lambda: vit(options))


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_nothing_was_added_to_is_exported_as_it_is(name: str) -> None:
    for config in draws(name):
        method = build_method(config, vit())
        step(method)
        changed = "lora" in name or getattr(config, "columns", None) is not None
        assert (method.export() is method.model) != changed, config
        flow = method._flow  # type: ignore[attr-defined]
        tap = getattr(getattr(flow, "_scores", flow), "_tap", None)
        assert tap is None or not tap._heard, config


OFF: dict[str, Any] = {"floors": FLOORS, "trainable_blocks": DEPTH, "train_embeddings": True, "alpha": 9.0}
SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "top_k": {"name": "top_k", "blocks": (1, 4)},
    "bsr": {"name": "bsr", "blocks": (0, 5), "keep": 1.0},
    "tome": {"name": "tome", "merge": 0},
    "lora": {"name": "lora"},
    "lora+tome": {"name": "tome", "merge": 0, "lora": {}},
    "apla": {"name": "apla"},
    **{reading: {"name": "alast", "reading": reading} | OFF for reading in READINGS},
    "no block": {"name": "alast", "reading": "paper"} | OFF | {"trainable_blocks": 0},
    "no block, no embeddings": {"name": "alast"} | OFF | {"trainable_blocks": 0, "train_embeddings": False},
    "lora+alast": {"name": "alast", "lora": {}} | OFF | {"trainable_blocks": 2},
}
ONLY = {
    "head": r"head\.",
    "top_k": r"(blocks\.[14]|norm|head)\.",
    "bsr": r"(blocks\.[05]|norm|head)\.",
    "lora": r"head\.|.*lora_",
    "lora+tome": r"head\.|.*lora_",
    "apla": r"(blocks\.\d\.attn\.proj|head)\.",
    "no block": r"(?!blocks\.)",
    "no block, no embeddings": r"(norm|head)\.",
    "lora+alast": r"(?!blocks\.|norm\.)|.*lora_",
}
"""What trains, where that is not everything."""


@pytest.mark.parametrize("options", [*MODELS.values(), DROPOUT], ids=[*MODELS, "dropout"])
@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_switched_off_it_is_the_model_s_forward_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    """Logits are, and what trains gets the gradient that it gets there, also once budgets would have moved."""
    method, twin = build_method(setting(**SWITCHED_OFF[name]), vit(options)), vit(options)
    for number in range(3):
        images, labels = batch(number)
        torch.manual_seed(number)
        method.begin_step(number)
        logits = method.forward(images)
        F.cross_entropy(logits, labels).backward()
        method.end_step()
        torch.manual_seed(number)
        if method.plan.calibrated:  # has drawn dropout once before
            summary_updates(twin, embed(twin, images))
        expected = predict(twin, images)
        F.cross_entropy(expected, labels).backward()
        if "lora" in name:  # peft adds what is nothing, but draws nothing for it
            torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(logits, expected)
        mine, theirs = gradients(method.model), gradients(twin)
        everything = [where for where, _ in method.model.named_parameters() if re.match(ONLY.get(name, ""), where)]
        assert list(mine) == everything or (name == "lora+alast" and set(mine) < set(everything))  # of the blocks drawn
        for where, gradient in mine.items():
            if "lora" not in name:
                assert torch.equal(gradient, theirs[where]), where
            elif where in theirs:
                torch.testing.assert_close(gradient, theirs[where], atol=1e-6, rtol=1e-4, msg=where)
        method.model.zero_grad(set_to_none=True)
        twin.zero_grad(set_to_none=True)
    assert method.plan.tokens_L == (method.plan.tokens_L[0],) * DEPTH
    assert getattr(method, "budgets", (1.0,) * DEPTH) == (1.0,) * DEPTH


@pytest.mark.parametrize("name", METHODS)
def test_blocks_that_run_again_come_to_the_same_losses_and_gradients_bit_for_bit(name: str) -> None:
    """With dropout, over steps in which budgets learn and blocks are drawn."""
    ran: list[int] = []
    for config in draws(name):
        methods = [build_method(config, vit(DROPOUT), TrainConfig(checkpoint_blocks=again)) for again in (False, True)]
        for method in methods:
            method.model.blocks[-1].norm1.register_forward_hook(lambda *_: ran.append(1))
        for number in range(3):
            losses, counts = [], []
            for method in methods:
                torch.manual_seed(number)
                ran.clear()
                losses.append(step(method, number))
                counts.append(len(ran))
            assert torch.equal(*losses) and methods[0].plan == methods[1].plan, config
            plain, again = (gradients(method.model) for method in methods)
            assert plain.keys() == again.keys()
            assert all(torch.equal(gradient, again[where]) for where, gradient in plain.items()), config
            trains = any(where.startswith("blocks.") for where in plain)
            through = trains and getattr(config, "frozen_backward", "exact") == "exact"
            assert not through or counts[1] == counts[0] + 1, config
            assert trains or counts[1] == counts[0], config  # nothing to run again for


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize(
    "values",
    [
        *(
            {"name": "alast", "reading": reading, "initial_budget": 0.01, "keep_multiple": 1, "alpha": 0.0}
            | {"floors": dict.fromkeys(FLOORS, 0.01), "trainable_blocks": DEPTH}
            for reading in READINGS
        ),
        {"name": "bsr", "keep": 0.01, "blocks": (2, 5), "drop_after": (0, 3)},
        {"name": "tome", "merge": 99},
    ],
    ids=lambda values: values.get("reading", values["name"]),
)
def test_one_patch_token_is_enough(values: dict[str, Any], prefix: int) -> None:
    method = build_method(setting(**values), model := vit({"reg_tokens": prefix - 1}))
    optimizer = adam(method)
    for number in range(2):
        assert step(method, number).isfinite()
        assert method.plan.tokens_L[-1] == prefix + 1
        found = gradients(model)
        assert found.keys() >= {name for name, _ in model.named_parameters() if name.startswith(("blocks.5.", "head."))}
        assert all(gradient.isfinite().all() for gradient in found.values())
        optimizer.step()


@pytest.mark.parametrize("reading", ["paper", "authors", "fast"])
def test_a_method_that_took_over_anothers_state_goes_its_own_way(reading: str) -> None:
    options: dict[str, Any] = {"reading": reading, "alpha": 0.5, "initial_budget": 0.7, "trainable_blocks": 3}
    one, twin = alast(vit(), **options), alast(vit(), **options)
    for number in range(2):
        step(one, number)
    twin.load_state_dict(one.state_dict())
    budgets, deltas = twin.budgets, twin.deltas
    for number in range(2, 4):
        step(one, number)
    assert one.budgets != budgets
    assert (twin.budgets, twin.deltas) == (budgets, deltas)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("reading", READINGS)
def test_alast_says_that_training_has_diverged(reading: str, when: int, broken: float) -> None:
    method = alast(vit(), reading=reading, trainable_blocks=3)
    for number in range(when):
        step(method, number)
    method.begin_step(when)
    images = batch()[0]
    images[1, 0, 3, 4] = broken
    with pytest.raises(DivergedError, match=r"training has diverged; lower train\.learning_rate$"):  # noqa: PT012
        method.forward(images)
        method.end_step()
        method.begin_step(when + 1)  # where nothing is read inside the forward, it comes here


@pytest.mark.parametrize("reading", READINGS)
def test_deltas_of_micro_batches_are_those_of_the_whole_batch(reading: str) -> None:
    """Where budgets move between steps; where they do within one, micro-batches are refused."""
    options = {"reading": reading, "initial_budget": 0.5, "alpha": 0.1, "trainable_blocks": 3}
    options |= {"budget_timing": "next_step"}
    whole, parted = alast(vit(), **options), alast(vit(), **options)
    for number in range(3):
        images, _ = batch(number, size=5)
        whole.begin_step(number)
        whole.forward(images)
        whole.end_step()
        parted.begin_step(number)
        for part in images.split([2, 2, 1]):
            parted.forward(part)
        parted.end_step()
        assert parted.deltas == pytest.approx(whole.deltas, rel=1e-5)
        assert parted.budgets == pytest.approx(whole.budgets, rel=1e-5)


def test_calibration_looks_at_all_micro_batches() -> None:
    options: dict[str, Any] = {"reading": "fast", "trainable_blocks": 3, "target_budget": 0.4, "keep_multiple": 1}
    whole, parted = alast(vit(), **options), alast(vit(), **options)
    images = torch.cat([batch()[0], 9 * batch(1)[0]])  # the first micro-batch is not like the others
    whole.begin_step(0, [images])
    whole.forward(images)
    parted.begin_step(0, images.split(3))
    for part in images.split(3):
        parted.forward(part)
    assert parted.budgets == pytest.approx(whole.budgets, rel=1e-5)
    assert parted.plan == whole.plan
    alone = alast(vit(), **options)
    alone.begin_step(0, [images[:3]])
    alone.forward(images[:3])
    assert alone.budgets != pytest.approx(whole.budgets, rel=1e-2)


@pytest.mark.parametrize("reading", READINGS)
def test_where_budgets_learn_within_a_forward_micro_batches_are_refused(reading: str) -> None:
    train = TrainConfig(accumulate=4)

    def build(**more: Any) -> Method:
        return build_method(setting(name="alast", reading=reading, trainable_blocks=3, **more), vit(), train)

    if reading == "fast":
        build()
        return
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == (
        "train.accumulate = 4: same-step budgets learn from the whole batch; leave it out, "
        "or set method.budget_timing: next_step"
    )
    build(alpha=0.0)  # never moves one
    build(budget_timing="next_step")
