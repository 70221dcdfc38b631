"""What every fine-tuning method has to pass, for those of this package and for anybody's.

    from alast_tune.testing import check_method

    def test_mine():
        check_method(MineConfig(), MineConfig(rank=2))

Each check takes a method's settings and a function that makes a model, and raises an :class:`AssertionError` that says
what is wrong. Nothing here needs pytest.
"""

from __future__ import annotations

import copy
import io
import json

import torch
from torch import Tensor
from torch.nn import functional as F

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.evaluate import evaluate
from alast_tune.methods import build_method
from alast_tune.models.backbone import predict, token_count
from alast_tune.models.reading import attach_reader, read_of
from alast_tune.testing.steps import (
    CLASSES,
    MakeModel,
    adam,
    batch,
    count_tokens,
    gradients,
    measured_steps,
    same,
    small_model,
    step,
    train,
)

__all__ = ["CHECKS", "CLASSES", "check_method", "small_model"]

PEAK_ERROR = 0.08
"""By how much a step's peak may differ from what is measured, as a share of that."""


def check_method(*settings: MethodConfig, models: tuple[MakeModel, ...] | None = None) -> None:
    """Run all checks.

    Args:
        settings: of the method, different ones; each is checked.
        models: what to check on, classifiers of ``CLASSES``; unset: small ones, plain and with registers.

    Raises:
        AssertionError: the method does what none may do; the first such thing.
    """
    _must(bool(settings), "check_method needs settings of the method", None)
    for config in settings:
        for make in models or (small_model, lambda: small_model(reg_tokens=4, init_values=1e-3)):
            for check in CHECKS:
                check(config, make)


def check_settings(config: MethodConfig, make: MakeModel) -> None:
    """Settings come back from JSON as they were, and are named in words."""
    values = json.loads(config.model_dump_json(exclude_unset=True)) | {"name": config.name}
    _must(type(config).model_validate(values) == config, "what is stored of it is read as something else", config)
    fields = type(config).model_fields
    _must(config.foremost is None or config.foremost in fields, f"has no setting {config.foremost}", config)
    unknown = [path for path, _ in config.words() if path.split("/")[0] not in fields]
    _must(not unknown, f"its words are of {unknown}, which are no settings", config)
    _must(bool(config.full_label().strip()), "its label is empty", config)
    _must(type(config.cost_settings()) is type(config), "cost_settings are another method's", config)


def check_all_tokens(config: MethodConfig, make: MakeModel) -> None:
    """A step on all tokens computes what the model itself does."""
    method = build_method(config, make())
    images, _ = batch()
    method.begin_step(0, [images])
    torch.manual_seed(1)
    logits = method.forward(images)
    if len(set(method.plan.tokens_L)) == 1 and not method.plan.calibrated:
        torch.manual_seed(1)
        close(logits, predict(method.model, images), "all tokens flow, and the logits are not the model's", config)


def check_one_image(config: MethodConfig, make: MakeModel) -> None:
    """A batch may be one image."""
    method = build_method(config, make())
    for number in range(2):
        _must(bool(step(method, number, 1).isfinite()), "the loss of one image is not finite", config)
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients(method.model).values())
        _must(finite, "a gradient of one image is not finite", config)


def check_plan(config: MethodConfig, make: MakeModel) -> None:
    """Each block gets as many tokens as the plan says, in all micro-batches of a step; one forward moves nothing."""
    method = build_method(config, make())
    seen, depth = count_tokens(method), len(method.model.blocks)
    for number in range(3):
        method.begin_step(number)
        method.forward(batch(number)[0]).sum().backward()
        plan, state = method.plan, copy.deepcopy(method.state_dict())
        _must(tuple(seen[-depth:]) == plan.tokens_L, f"blocks got {seen[-depth:]} tokens", (config, plan))
        _must(len(seen) == depth * (1 + plan.calibrated), "blocks ran more often than the plan says", (config, plan))
        seen.clear()
        method.forward(batch(number + 9)[0]).sum().backward()
        _must(tuple(seen) == plan.tokens_L, f"the second micro-batch's blocks got {seen} tokens", (config, plan))
        _must(method.plan == plan and same(method.state_dict(), state), "a micro-batch has moved its state", config)
        seen.clear()
        method.end_step()
        _must(method.plan == plan, "end_step has changed the plan of the step", config)


def check_token_keep(config: MethodConfig, make: MakeModel) -> None:
    """As many tokens enter as a step is told to let in; the plan says so, and the meter goes by it."""
    method = build_method(config, make())
    seen, depth, prefix = count_tokens(method), len(method.model.blocks), int(method.model.num_prefix_tokens)
    tokens = token_count(method.model)
    images, labels = batch()
    for number, share in enumerate((0.5, 0.01)):
        method.begin_step(number, [images], share)
        for _ in range(2):
            F.cross_entropy(method.forward(images), labels).backward()
            got = tuple(seen[-depth:])
        method.end_step()
        plan, entering = method.plan, prefix + max(1, round(share * (tokens - prefix)))
        _must(got == plan.tokens_L, f"blocks got {got} tokens", (config, plan))
        _must((plan.tokens_L[0], plan.image_tokens) == (entering, tokens), f"not {entering} enter", (config, plan))
    method.begin_step(2, [images], 1.0)
    method.forward(images)
    _must(method.plan.image_tokens is None, "all tokens enter, and some are said to go", (config, method.plan))
    for measured in measured_steps(make(), config, 24, token_keep=0.5):
        said = f"half the tokens: {measured.predicted.flops} FLOPs are predicted, {measured.flops} are counted"
        _must(measured.predicted.flops == measured.flops, said, config)
        if measured.peak_bytes:
            _must(
                measured.peak_error <= PEAK_ERROR, f"half the tokens: the peak is {measured.peak_error:.1%} off", config
            )


def check_micro_batches(config: MethodConfig, make: MakeModel) -> None:
    """Gradients of micro-batches come to those of the whole batch, unless the method refuses them."""
    try:
        whole, parted = (build_method(config, make(), TrainConfig(seed=3, accumulate=2)) for _ in range(2))
    except ConfigError:
        return
    images, labels = batch(size=5)
    for method, sizes in ((whole, [5]), (parted, [3, 2])):
        parts = images.split(sizes)
        method.begin_step(0, parts)
        for part, truth in zip(parts, labels.split(sizes), strict=True):
            (F.cross_entropy(method.forward(part), truth, reduction="sum") / len(labels)).backward()
        method.end_step()
    ours, theirs = gradients(parted.model), gradients(whole.model)
    _must(ours.keys() == theirs.keys(), "micro-batches train other parameters than the whole batch", config)
    for where, gradient in ours.items():
        close(gradient, theirs[where], f"micro-batches come to another gradient of {where}", config, 1e-4)


def check_frozen(config: MethodConfig, make: MakeModel) -> None:
    """Exactly what trains gets a gradient; nothing else moves, nor its moments."""
    method = build_method(config, make())
    model, optimizer, may = method.model, adam(method), {id(p) for p in method.parameters()}
    _must(len(may) == len(method.parameters()), "a parameter is listed twice", config)
    for number in range(5):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        moments = copy.deepcopy({id(p): state for p, state in optimizer.state.items()})
        step(method, number)  # gradients of the step before are still there
        optimizer.step()
        plan = method.plan.trainable_L
        still = [block for block, trains in zip(model.blocks, plan, strict=True) if not trains]
        frozen = {id(p) for block in still for p in block.parameters()}
        for where, parameter in model.named_parameters():
            trains, here = id(parameter) in may - frozen, (config, f"step {number}", where)
            _must((parameter.grad is not None) == trains, "has a gradient and is frozen, or has none", here)
            _must(parameter.requires_grad == trains, "requires_grad does not say whether it trains", here)
            _must(torch.equal(parameter, before[where]) != trains, "has moved and is frozen, or has not", here)
            moved = not same(optimizer.state.get(parameter, {}), moments.get(id(parameter), {}))
            _must(moved == trains, "its moments have moved and it is frozen, or they have not", here)


def check_evaluation(config: MethodConfig, make: MakeModel) -> None:
    """Evaluation moves no state, of the method or of the model."""
    method, undisturbed = (build_method(config, make(), TrainConfig(seed=1)) for _ in range(2))
    optimizer, other = adam(method), adam(undisturbed)
    train(method, optimizer, range(2))
    train(undisturbed, other, range(2))
    model, plan = method.model, method.plan
    before = copy.deepcopy((method.state_dict(), model.state_dict()))
    trainable = [p.requires_grad for p in model.parameters()]
    for training in (False, True):
        model.train(training)
        evaluate(model, [batch(9), batch(10, size=5)], torch.device("cpu"))
        unmoved = all(module.training == training for module in model.modules())
        _must(unmoved, "evaluation has changed whether a module trains", config)
    _must(same(before, (method.state_dict(), model.state_dict())), "evaluation has moved its state", config)
    _must(method.plan == plan, "evaluation has changed the plan", config)
    _must([p.requires_grad for p in model.parameters()] == trainable, "evaluation has changed who trains", config)
    trained = train(method, optimizer, range(2, 4)) == train(undisturbed, other, range(2, 4))
    _must(trained, "training goes another way after an evaluation", config)


def check_export(config: MethodConfig, make: MakeModel) -> None:
    """What comes out is a plain timm model, or one whose classifier is a reader, of the logits that evaluation saw."""
    method = build_method(config, make())
    train(method, adam(method), range(2))
    plain, exported = make(), method.export()
    if reader := read_of(exported.state_dict()):
        attach_reader(plain, *reader)
    plain.load_state_dict(exported.state_dict(), strict=True)
    with torch.no_grad():
        logits, expected = method.model.eval()(batch()[0]), plain.eval()(batch()[0])
    close(logits, expected, "the exported model has other logits", config, 1e-4)
    as_it_is = exported is not method.model or torch.equal(logits, expected)
    _must(as_it_is, "evaluation does not see the model that is exported, all its tokens", config)


def check_resume(config: MethodConfig, make: MakeModel) -> None:
    """A resumed run equals an uninterrupted one bit for bit."""
    whole = build_method(config, make(), TrainConfig(seed=5))
    optimizer = adam(whole)
    train(whole, optimizer, range(3))
    file = io.BytesIO()
    torch.save((whole.model.state_dict(), optimizer.state_dict(), whole.state_dict()), file)
    file.seek(0)
    model, moments, state = torch.load(file, weights_only=True)
    resumed = build_method(config, make(), TrainConfig(seed=5))
    resumed.model.load_state_dict(model)
    again = adam(resumed)
    again.load_state_dict(moments)
    resumed.load_state_dict(state)
    for number in range(3, 6):
        losses = [train(one, its, range(number, number + 1)) for one, its in ((whole, optimizer), (resumed, again))]
        _must(losses[0] == losses[1], f"resumed, step {number} has another loss", config)
        _must(whole.plan == resumed.plan, f"resumed, step {number} has another plan", config)
    _must(same(whole.model.state_dict(), resumed.model.state_dict()), "a resumed run has other weights", config)
    _must(same(whole.state_dict(), resumed.state_dict()), "a resumed run has another state", config)


def check_half_precision(config: MethodConfig, make: MakeModel) -> None:
    """In bfloat16 the same parameters have gradients, and each block's point to where they should."""
    method, exact = build_method(config, make()), build_method(config, make())
    for number in range(2):
        images, labels = batch(number)
        method.begin_step(number)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(method.forward(images), labels)
        loss.backward()
        method.end_step()
        _must(abs(float(loss.detach()) / float(step(exact, number)) - 1) <= 0.01, "bfloat16 has another loss", config)
        mine, theirs = gradients(method.model), gradients(exact.model)
        _must(mine.keys() == theirs.keys(), "bfloat16 trains other parameters", config)
        for part in {_part(where) for where in mine}:
            one, other = (
                torch.cat([gradient.flatten() for where, gradient in each.items() if _part(where) == part])
                for each in (mine, theirs)
            )
            along = float(F.cosine_similarity(one, other, dim=0)) > 0.95
            near = along and abs(float(one.norm() / other.norm()) - 1) < 0.1
            _must(near or not other.any(), f"gradients in bfloat16 of {part or 'the rest'} point elsewhere", config)
        method.model.zero_grad(set_to_none=True)
        exact.model.zero_grad(set_to_none=True)


def check_costs(config: MethodConfig, make: MakeModel) -> None:
    """The meter predicts a step's FLOPs exactly, and its peak within 8%."""
    for precision in ("fp32", "bf16"):
        for measured in measured_steps(make(), config, 24, precision):
            said = f"{precision}: {measured.predicted.flops} FLOPs are predicted, {measured.flops} are counted"
            _must(measured.predicted.flops == measured.flops, said, config)
            if measured.peak_bytes:
                said = f"{precision}: the predicted peak is {measured.peak_error:.1%} off"
                _must(measured.peak_error <= PEAK_ERROR, said, config)


CHECKS = (
    check_settings, check_all_tokens, check_one_image, check_plan, check_token_keep, check_micro_batches, check_frozen,
    check_evaluation, check_export, check_resume, check_half_precision, check_costs,
)  # fmt: skip
"""All checks, each of which can be run alone."""


def close(one: Tensor, other: Tensor, wrong: str, where: object, tolerance: float = 1e-5) -> None:
    """Refuse tensors that differ by more than rounding does."""
    _must(torch.allclose(one, other, rtol=tolerance, atol=tolerance), wrong, where)


def _part(where: str) -> str:
    """Name the block of a parameter; empty: it is of none."""
    return ".".join(where.split(".")[:2]) if where.startswith("blocks.") else ""


def _must(true: bool, wrong: str, where: object) -> None:
    if not true:
        raise AssertionError(f"{wrong}: {where}")
