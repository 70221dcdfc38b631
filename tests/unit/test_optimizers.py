"""What updates the weights and how fast, against timm's and torch's own; what the meter knows of it."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from timm.optim import list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F

from alast_tune.config import FullConfig, TrainConfig, TrialConfig, parse
from alast_tune.config.train import OptimizerName
from alast_tune.cost import StepCosts
from alast_tune.cost.memory import track_live_bytes
from alast_tune.cost.updates import TIMM_SIZES, moment_bytes
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.optimizers import build_optimizer, rate, update
from alast_tune.run import Run
from tests.integration.harness import ROOT
from tests.unit import tiny
from tests.unit.every_method import vit
from tests.unit.kinds import KINDS, small

EIGHT: dict[str, Any] = {"optimizer": "adamw8bit", "weight_decay": 0.1}


@pytest.mark.parametrize("size", [2, 48])
def test_moments_of_8_bits_are_there_and_counted(size: int) -> None:
    """With few images the update is the heaviest, with many the backward."""
    train, model = TrainConfig(**EIGHT), vit({"embed_dim": 128})
    method = build_method(FullConfig(), model, train)
    optimizer = build_optimizer(train, method)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number in range(3):
        images, labels = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
        with track_live_bytes(model, optimizer, images) as measured:
            F.cross_entropy(method.forward(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        predicted = StepCosts(model, 32).step(method.config, method.plan, size, optimizer).peak_bytes
        assert number == 0 or predicted == pytest.approx(measured[0], rel=0.01)
    kept = {t.data_ptr(): t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}
    assert moment_bytes(optimizer) == sum(t.nbytes for t in kept.values())
    numbers = sum(p.numel() for p in method.parameters())
    assert moment_bytes(optimizer) < 0.3 * 8 * numbers  # biases and norms keep theirs whole
    assert not any(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_they_learn_as_adamw_does_and_a_resumed_run_equals_an_uninterrupted_one(
    two_classes: Path, tmp_path: Path
) -> None:
    config = tiny.trial(two_classes, **EIGHT)
    whole, resumed = Run(config), Run(config)
    plain = Run(tiny.trial(two_classes, **EIGHT | {"optimizer": "adamw"}))
    reports = [whole.train_epoch()]
    whole.save(tmp_path)
    resumed.load(tmp_path)
    reports.append(whole.train_epoch())
    assert resumed.train_epoch().train_loss == reports[1].train_loss
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert any(
        t.dtype == torch.uint8
        for state in whole._optimizer.state.values()
        for t in state.values()
        if torch.is_tensor(t)
    )
    assert [report.train_loss for report in reports] == pytest.approx(
        [plain.train_epoch().train_loss for _ in range(2)], rel=0.02
    )


def test_adapters_say_nothing_of_a_kernel_that_is_not_needed() -> None:
    """peft imports bitsandbytes wherever it is installed, which would warn at each process's first adapter."""
    command = [sys.executable, "-c", "import alast_tune, peft.tuners.lora"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr == ""


def test_without_the_package_they_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(ConfigError) as refused:
        build_optimizer(TrainConfig(**EIGHT), build_method(FullConfig(), vit()))
    said = str(refused.value)
    assert said.startswith("train.optimizer = adamw8bit: needs the package bitsandbytes (")
    assert said.endswith("pip install 'alast-tune[8bit]'")


@pytest.mark.parametrize("name", KINDS)
def test_groups_are_timms_at_every_structural_kind(name: str) -> None:
    """But for learned rotary frequencies, which timm gives the classifier's rate."""
    model = small(name)
    method = build_method(FullConfig(), model)
    train = TrainConfig(optimizer="adamw", weight_decay=0.1, learning_rate=1e-3, layer_decay=0.7)
    also = {*model.no_weight_decay(), "reg_token"}
    theirs = param_groups_layer_decay(model, 0.1, also, layer_decay=0.7)
    expected = {
        id(p): (pytest.approx(1e-3 * group["lr_scale"]), group["weight_decay"])
        for group in theirs
        for p in group["params"]
    }
    if (rope := getattr(model, "rope", None)) is not None:
        lowest = pytest.approx(1e-3 * 0.7 ** (len(model.blocks) + 1))
        expected |= {id(p): (lowest, expected[id(p)][1]) for p in rope.parameters()}
    groups = build_optimizer(train, method).param_groups
    assert {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]} == expected
    plain = build_optimizer(train.model_copy(update={"layer_decay": 1.0}), method).param_groups
    rest, decaying = param_groups_weight_decay(model, 0.1, no_weight_decay_list=also)
    assert [{id(p) for p in group["params"]} for group in plain] == [
        {id(p) for p in group["params"]} for group in (decaying, rest)
    ]


def test_the_readers_norms_are_spared_whose_weights_have_two_dimensions() -> None:
    method = build_method(parse(TrialConfig, {"method": {"name": "reader", "read": "attentive"}}).method, vit())
    groups = build_optimizer(TrainConfig(optimizer="adamw", weight_decay=0.1), method).param_groups
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in method.model.named_parameters() if id(p) in decaying}
    assert names == {"reader.query.weight", "reader.value.weight", "reader.classifier.weight"}


def test_the_modern_weight_decay_is_for_optimizers_that_do_not_add_it_to_the_gradient() -> None:
    for name, decay in (("adamw", 0.05), ("sgdw", 0.05), ("sgd", 0.0), ("adam", 0.0)):
        values = {"recipe": "modern", "train": {"optimizer": name}}
        assert parse(TrialConfig, values).train.weight_decay == decay, name
    values = {"recipe": "modern", "train": {"optimizer": "sgd", "weight_decay": 1e-4}}
    assert parse(TrialConfig, values).train.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"name": "lora", "rank": 2}, {"blocks.0.": 0.5**6, "blocks.5.": 0.5, "head.": 1.0}),
        ({"name": "apla", "columns": 4}, {"blocks.0.": 0.5**6, "blocks.5.": 0.5, "head.": 1.0}),
        ({"name": "top_k", "blocks": (4,)}, {"blocks.4.": 0.25, "norm.": 0.5, "head.": 1.0}),
        ({"name": "reader"}, {"reader.": 1.0}),
    ],
    ids=lambda value: str(value.get("name", "")),
)
def test_whatever_trains_has_the_rate_of_its_block(values: dict[str, Any], rates: dict[str, float]) -> None:
    method = build_method(parse(TrialConfig, {"method": values}).method, vit())
    groups = build_optimizer(TrainConfig(learning_rate=1.0, layer_decay=0.5), method).param_groups
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: of[id(p)] for name, p in method.model.named_parameters() if id(p) in of}
    assert len(found) == len(method.parameters())
    for prefix, its in rates.items():
        assert {value for name, value in found.items() if name.startswith(prefix)} == {its}
    assert values["name"] != "top_k" or set(found) == {name for name in found if name.startswith(tuple(rates))}


@pytest.mark.parametrize(("warmup", "steps"), [(2.0, 5), (0.5, 10), (0.0, 7), (1.0, 1)])
def test_the_schedule_is_timms(warmup: float, steps: int) -> None:
    """timm's begins at the rate of its first step, and ours is that of one step further: no step is without effect."""
    train, rising = TrainConfig(epochs=4, warmup_epochs=warmup, schedule="cosine", learning_rate=0.1), warmup * steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    top, total = max(0, int(rising) - 1), 4 * steps
    start = 0.1 / rising if top else 0.0
    theirs = CosineLRScheduler(
        optimizer, total - top, warmup_t=top, warmup_lr_init=start, warmup_prefix=True, t_in_epochs=False
    )
    factor = rate(train, steps)
    for step in range(total):
        theirs.step_update(step)
        assert 0.1 * factor(step) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert factor(top) == 1
    still = rate(train.model_copy(update={"schedule": "constant"}), steps)
    assert [still(step) for step in range(top, total)] == [1] * (total - top)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradients_are_clipped_as_torch_does_unscaled(scale: float) -> None:
    """The scaler of fp16 has multiplied them: by whatever, the norm is that of the true ones."""
    train, model = TrainConfig(clip_grad=0.5, optimizer="sgd", learning_rate=1.0), vit()
    method = build_method(FullConfig(), model)
    optimizer, before = build_optimizer(train, method), [p.detach().clone() for p in method.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    loss = F.cross_entropy(method.forward(torch.randn(4, 3, 32, 32)), torch.randint(0, 10, (4,)))
    scaler.scale(loss).backward()
    true = [p.grad / scale for p in method.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(true)
    assert norm > 0.5
    update(train, optimizer, scaler, method.parameters())
    moved = [b - p.detach() for b, p in zip(before, method.parameters(), strict=True) if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(moved)) == pytest.approx(0.5, rel=1e-4)
    for step, gradient in zip(moved, true, strict=True):
        torch.testing.assert_close(step, gradient * (0.5 / norm), rtol=1e-3, atol=1e-6)


def test_an_optimizer_that_is_not_metered_is_refused_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"train.optimizer = adamww: is none that is metered here; did you mean"):
        parse(TrialConfig, {"train": {"optimizer": "adamww"}})


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("name", TIMM_SIZES)
def test_timms_optimizers_take_what_is_predicted(name: str, decay: float) -> None:
    """Of two images, where the update is the heaviest; moments in place after the first steps."""
    train, model = TrainConfig(optimizer=name, weight_decay=decay, learning_rate=1e-4), vit({"embed_dim": 128})
    method = build_method(FullConfig(), model, train)
    optimizer, before = build_optimizer(train, method), model.head.weight.detach().clone()
    predicted = StepCosts(model, 32).step(method.config, method.plan, 2, optimizer).peak_bytes
    for number in range(3):
        images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,))
        with track_live_bytes(model, optimizer, images) as measured:
            F.cross_entropy(method.forward(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert number < 2 or predicted == pytest.approx(measured[0], rel=0.002)
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    assert moment_bytes(optimizer) == sum(t.nbytes for t in kept)
    assert not torch.equal(model.head.weight, before)


def test_all_names_are_known_to_timm_and_metered() -> None:
    names = get_args(OptimizerName)
    assert set(names) == {"adam", "adamw", "sgd", "adamw8bit", *TIMM_SIZES}
    assert set(names) - {"adamw8bit"} <= set(list_optimizers())
