"""What holds for every method: its extremes, its state, and what it leaves alone."""

import copy
import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrainConfig, TrialConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.evaluate import evaluate
from alast_tune.methods import Alast, Method, build_method
from alast_tune.methods.summary import summary_updates
from alast_tune.models.backbone import embed, predict
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


def batch(number: int = 0, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def backward(method: Method, number: int = 0, size: int = 3) -> Tensor:
    """A step but for the update; gradients stay."""
    images, labels = batch(number, size)
    method.begin_step(number)
    loss = F.cross_entropy(method.forward(images), labels)
    loss.backward()
    method.end_step()
    return loss.detach()


def adam(method: Method) -> torch.optim.Adam:
    return torch.optim.Adam(method.parameters(), 1e-2, weight_decay=0.1)


def train(method: Method, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        losses.append(float(backward(method, number)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(one: Any, other: Any) -> bool:
    """Equal; tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


OFF: dict[str, Any] = {"floors": FLOORS, "trainable_blocks": DEPTH, "train_embeddings": True, "alpha": 9.0}
SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "head": {"name": "head"},
    "top_k": {"name": "top_k", "blocks": (1, 4)},
    "bsr": {"name": "bsr", "blocks": (0, 5), "keep": 1.0},
    "tome": {"name": "tome", "merge": 0},
    "lora": {"name": "lora"},
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
        assert backward(method, number).isfinite()
        assert method.plan.tokens_L[-1] == prefix + 1
        found = gradients(model)
        assert found.keys() >= {name for name, _ in model.named_parameters() if name.startswith(("blocks.5.", "head."))}
        assert all(gradient.isfinite().all() for gradient in found.values())
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_may_be_one_image(name: str) -> None:
    for config in draws(name):
        method = build_method(config, model := vit())
        for number in range(2):
            assert backward(method, number, size=1).isfinite(), config
            assert all(gradient.isfinite().all() for gradient in gradients(model).values()), config


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_shape_of_model_works_and_gets_the_tokens_of_the_plan(name: str, options: dict[str, Any]) -> None:
    for config in draws(name, 2):
        method = build_method(config, model := vit(options))
        seen: list[int] = []
        for block in model.blocks:
            block.norm1.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape[1]))
        optimizer = adam(method)
        for number in range(3):
            (loss,) = train(method, optimizer, range(number, number + 1))
            assert loss < float("inf"), config
            assert method.plan.tokens_L == tuple(seen[-DEPTH:]), config
            assert len(seen) == DEPTH * (1 + method.plan.calibrated), config
            seen.clear()


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_moves_nothing(name: str) -> None:
    for config in draws(name):
        method, undisturbed = (build_method(config, vit(), TrainConfig(seed=1)) for _ in range(2))
        optimizer, other = adam(method), adam(undisturbed)
        train(method, optimizer, range(2))
        train(undisturbed, other, range(2))
        model, plan = method.model, method.plan
        before = copy.deepcopy((method.state_dict(), model.state_dict()))
        trainable = [p.requires_grad for p in model.parameters()]
        for training in (False, True):
            model.train(training)
            evaluate(model, [batch(9), batch(10, size=5)], torch.device("cpu"))
            assert all(module.training == training for module in model.modules()), config
        assert same(before[0], method.state_dict()) and same(before[1], model.state_dict()), config
        assert method.plan == plan and [p.requires_grad for p in model.parameters()] == trainable, config
        assert train(method, optimizer, range(2, 4)) == train(undisturbed, other, range(2, 4)), config


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_is_that_of_the_plain_model_that_comes_out(name: str) -> None:
    for config in draws(name):
        method = build_method(config, vit())
        train(method, adam(method), range(2))
        plain, exported = vit(), method.export()
        plain.load_state_dict(exported.state_dict(), strict=True)
        changed = "lora" in name or getattr(config, "columns", None) is not None
        assert (exported is method.model) != changed, config
        with torch.no_grad():
            logits, expected = method.model.eval()(batch()[0]), plain.eval()(batch()[0])
        assert torch.equal(logits, expected) or changed, config  # every token, since the model is timm's
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        flow = method._flow  # type: ignore[attr-defined]
        tap = getattr(getattr(flow, "_scores", flow), "_tap", None)
        assert tap is None or not tap._heard, config


@pytest.mark.parametrize("name", METHODS)
def test_exactly_what_trains_gets_a_gradient_and_nothing_else_moves_nor_its_moments(name: str) -> None:
    for config in draws(name):
        method = build_method(config, model := vit())
        optimizer, may = adam(method), {id(p) for p in method.parameters()}
        assert len(may) == len(method.parameters())
        for number in range(5):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            moments = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
            backward(method, number)  # gradients of the step before are still there
            optimizer.step()
            frozen = {
                id(p)
                for block, trains in zip(model.blocks, method.plan.trainable_L, strict=True)
                for p in block.parameters()
                if not trains
            }
            for where, parameter in model.named_parameters():
                trains = id(parameter) in may - frozen
                here = (config, number, where)
                assert (parameter.grad is not None) == parameter.requires_grad == trains, here
                assert torch.equal(parameter, before[where]) != trains, here
                state = optimizer.state.get(parameter, {})
                assert same(state, moments.get(id(parameter), {})) != trains, here


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str) -> None:
    for config in draws(name):
        whole = build_method(config, vit(), TrainConfig(seed=5))
        optimizer = adam(whole)
        train(whole, optimizer, range(3))
        file = io.BytesIO()
        torch.save((whole.model.state_dict(), optimizer.state_dict(), whole.state_dict()), file)
        file.seek(0)
        model, moments, state = torch.load(file, weights_only=True)
        resumed = build_method(config, vit(), TrainConfig(seed=5))
        resumed.model.load_state_dict(model)
        again = adam(resumed)
        again.load_state_dict(moments)
        resumed.load_state_dict(state)
        for number in range(3, 6):
            numbers = range(number, number + 1)
            assert train(whole, optimizer, numbers) == train(resumed, again, numbers), config
            assert whole.plan == resumed.plan, config
        assert same(whole.model.state_dict(), resumed.model.state_dict()), config
        assert same(whole.state_dict(), resumed.state_dict()), config


@pytest.mark.parametrize("reading", ["paper", "authors", "fast"])
def test_a_method_that_took_over_anothers_state_goes_its_own_way(reading: str) -> None:
    options: dict[str, Any] = {"reading": reading, "alpha": 0.5, "initial_budget": 0.7, "trainable_blocks": 3}
    one, twin = alast(vit(), **options), alast(vit(), **options)
    for number in range(2):
        backward(one, number)
    twin.load_state_dict(one.state_dict())
    budgets, deltas = twin.budgets, twin.deltas
    for number in range(2, 4):
        backward(one, number)
    assert one.budgets != budgets
    assert (twin.budgets, twin.deltas) == (budgets, deltas)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("reading", READINGS)
def test_alast_says_that_training_has_diverged(reading: str, when: int, broken: float) -> None:
    method = alast(vit(), reading=reading, trainable_blocks=3)
    for number in range(when):
        backward(method, number)
    method.begin_step(when)
    images = batch()[0]
    images[1, 0, 3, 4] = broken
    with pytest.raises(DivergedError, match=r"training has diverged; lower train\.learning_rate$"):  # noqa: PT012
        method.forward(images)
        method.end_step()  # where nothing is read inside the forward, it comes here


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_near_single_precision(name: str, options: dict[str, Any]) -> None:
    """The same parameters have gradients, and those of each block, and of all else, point to where they should."""
    for config in draws(name, 2):
        method, exact = build_method(config, vit(options)), build_method(config, vit(options))
        for number in range(2):
            images, labels = batch(number)
            method.begin_step(number)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(method.forward(images), labels)
            loss.backward()
            method.end_step()
            assert float(loss.detach()) == pytest.approx(float(backward(exact, number)), rel=0.01), config
            mine, theirs = gradients(method.model), gradients(exact.model)
            assert mine.keys() == theirs.keys()
            for part in {re.match(r"blocks\.\d|", where)[0] for where in mine}:  # type: ignore[index]
                one, other = (
                    torch.cat([gradient.flatten() for where, gradient in each.items() if where.startswith(part)])
                    for each in (mine, theirs)
                )
                assert float(F.cosine_similarity(one, other, dim=0)) > 0.95 or not other.any(), (config, number, part)
                assert float(one.norm()) == pytest.approx(float(other.norm()), rel=0.1), (config, number, part)
            method.model.zero_grad(set_to_none=True)
            exact.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", METHODS)
def test_all_micro_batches_of_a_step_follow_one_plan(name: str) -> None:
    for config in draws(name):
        method = build_method(config, model := vit())
        seen: list[int] = []
        for block in model.blocks:
            block.norm1.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape[1]))
        for number in range(3):
            method.begin_step(number)
            method.forward(batch(number)[0]).sum().backward()
            plan, state = method.plan, copy.deepcopy(method.state_dict())
            seen.clear()
            method.forward(batch(number + 9)[0]).sum().backward()
            assert tuple(seen) == plan.tokens_L, config
            assert method.plan == plan and same(method.state_dict(), state), config
            method.end_step()
            assert method.plan == plan, config


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
