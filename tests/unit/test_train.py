"""The loop: exact resumption, exact cost, the best epoch's weights, plain models out."""

import csv
import gc
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file
from timm.optim import param_groups_weight_decay
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from alast_tune import checkpoint, models
from alast_tune import run as running
from alast_tune.blocks import report_blocks
from alast_tune.config import FullConfig, ModelConfig, TrainConfig, TrialConfig, apply_params
from alast_tune.cost import STEPS as STEPS_CSV
from alast_tune.cost import Ledger, StepCosts, memory
from alast_tune.data import prepare
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.evaluate import evaluate
from alast_tune.exploration import explore
from alast_tune.methods import build_method
from alast_tune.models import create_model
from alast_tune.models.backbone import predict
from alast_tune.optimizers import build_optimizer
from alast_tune.parallel import LateTotals
from alast_tune.results import EpochReport
from alast_tune.run import Run, load_trial
from alast_tune.scores import Evaluation
from alast_tune.train import fit, last_report
from tests.unit.every_method import vit
from tests.unit.tiny import ALAST, DEPTH, STEPS, TOKENS, evaluation, seen

TinyTrial = Callable[..., TrialConfig]


RECIPE: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.75, "schedule": "cosine"}
RECIPE |= {"clip_grad": 1.0, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "ema": 0.9}


def without_time(report: EpochReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics().items() if "seconds" not in name}


def assert_same(state: dict[str, Any], other: dict[str, Any]) -> None:
    assert state.keys() == other.keys()
    assert [name for name, tensor in state.items() if not torch.equal(tensor, other[name])] == []


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ({"name": "alast", "reading": "authors", "trainable_blocks": 3}, {"schedule": "cosine", "optimizer": "adamw"}),
        ({"name": "full"}, {"precision": "fp16", "clip_grad": 1.0}),
        ({"name": "tome", "merge": 4}, {"accumulate": 2, "precision": "bf16"}),
        ({"name": "top_k", "count": 2, "probe_steps": 1}, {"optimizer": "sgd", "ema": 0.9}),
        ({"name": "alast", "trainable_blocks": 3}, RECIPE),
    ],
    ids=["budgets and draws", "loss scale", "micro-batches", "exploration", "recipe"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path,
    tiny_trial: TinyTrial,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, Any],
    train: dict[str, Any],
) -> None:
    # Doubled at every step, the scale soon makes gradients overflow, and steps be skipped.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, growth_interval=1))
    config = tiny_trial(method, **train)
    if train is RECIPE:
        config = apply_params(config, {"model/drop_path": 0.3})
    whole = Run(config)
    expected = [whole.train_epoch() for _ in range(2)]
    before = Run(config)
    resumed = [before.train_epoch()]
    before.save(tmp_path)
    after = Run(config)  # a new process, as far as the run can tell
    after.load(tmp_path)
    assert (after.epoch, after.report, after.best) == (1, before.report, before.best)
    resumed.append(after.train_epoch())
    assert [without_time(r) for r in resumed] == [without_time(r) for r in expected]
    assert_same(after.model.state_dict(), whole.model.state_dict())
    assert all(map(torch.equal, after._average.tensors, whole._average.tensors))
    assert after._scaler.state_dict() == whole._scaler.state_dict()
    assert after._scheduler.state_dict() == whole._scheduler.state_dict()
    assert [replace(r, measured_peak_bytes=0) for r in after.meter.ledger.read()] == [
        replace(r, measured_peak_bytes=0) for r in whole.meter.ledger.read()
    ]
    assert resumed[1].cost.wall_seconds > resumed[0].cost.wall_seconds
    assert after.finished and whole.finished and not before.finished


@pytest.fixture
def rare(two_classes: Path, tmp_path: Path) -> Path:
    """The pictures of two classes, of the light one 4 instead of 16 to train on: 20 in all."""
    root = shutil.copytree(two_classes, tmp_path / "rare")
    for file in sorted((root / "train" / "light").iterdir())[4:]:
        file.unlink()
    return root


def test_rare_classes_weigh_as_much_in_the_loss_whatever_the_micro_batches(rare: Path, tiny_trial: TinyTrial) -> None:
    config = tiny_trial({"name": "full"}, epochs=1, batch_size=10, optimizer="sgd")
    data = config.data.model_copy(update={"root": rare, "class_weights": "balanced"})
    weights = torch.tensor([20 / (2 * 16), 20 / (2 * 4)])
    reports, states = [], []
    for accumulate in (1, 3):
        train = config.train.model_copy(update={"accumulate": accumulate})
        run = Run(config.model_copy(update={"data": data, "train": train}))
        if accumulate == 1:
            images, labels = seen(run)[0]
            with torch.no_grad():
                first = F.cross_entropy(run.model.train()(images), labels, weight=weights)
            twin = Run(run.config)
            torch.testing.assert_close(twin._step(twin.method, twin._optimizer, images, labels), first)
        reports.append(run.train_epoch())
        states.append(run.model.state_dict())
        last = list(run.meter.ledger.read())[-1]
        assert last.measured_peak_bytes == pytest.approx(last.predicted_peak_bytes, rel=0.01)
    assert reports[0].train_loss == pytest.approx(reports[1].train_loss, rel=1e-5)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    plain = Run(config.model_copy(update={"data": data.model_copy(update={"class_weights": "none"})}))
    assert plain.train_epoch().train_loss != pytest.approx(reports[0].train_loss, rel=1e-3)


def test_a_resumed_run_draws_rare_classes_as_an_uninterrupted_one(
    rare: Path, tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    config = tiny_trial({"name": "full"}, score="macro_f1")
    shown = {"root": rare, "sampling": "balanced", "class_weights": "balanced", "augment": "paper"}
    config = config.model_copy(update={"data": config.data.model_copy(update=shown)})
    whole = Run(config)
    expected = [whole.train_epoch() for _ in range(2)]
    before = Run(config)
    resumed = [before.train_epoch()]
    before.save(tmp_path / "checkpoint")
    after = Run(config)
    after.load(tmp_path / "checkpoint")
    resumed.append(after.train_epoch())
    assert [without_time(r) for r in resumed] == [without_time(r) for r in expected]
    assert_same(after.model.state_dict(), whole.model.state_dict())
    orders = [[labels.tolist() for _, labels in whole._loader(epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert all(6 <= sum(map(sum, order)) <= 10 for order in orders)  # of 16 that two whole batches take, about half
    assert expected[0].quality == expected[0].macro_f1


def test_the_best_epoch_is_that_of_the_score(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {1: [[90, 0], [10, 0]], 2: [[72, 18], [5, 5]], 3: [[81, 9], [10, 0]]}  # accuracy 0.9, 0.77, 0.81
    monkeypatch.setattr(Run, "evaluate", lambda run, split: Evaluation(np.array(answers[run.epoch + 1]), 1.0))
    for score, best in (("accuracy", 1), ("balanced_accuracy", 2), ("macro_f1", 2)):
        run = Run(tiny_trial({"name": "head"}, epochs=3, score=score))
        while not run.finished:
            run.train_epoch()
        assert run.best is not None and run.best.epoch == best, score


def test_an_epoch_is_what_a_plain_loop_does(tiny_trial: TinyTrial) -> None:
    """Order of the images, learning rates, updates, losses and accuracy, all written out."""
    config = tiny_trial({"name": "full"}, epochs=2, schedule="cosine", warmup_epochs=0.5, weight_decay=0.1, seed=3)
    run, twin = Run(config), Run(config)
    model, losses = twin.model.train(), []
    spared = [p for name, p in model.named_parameters() if name.endswith(("bias", "token", "embed")) or "norm" in name]
    decaying = [p for p in model.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decaying, "weight_decay": 0.1}, {"params": spared}]
    optimizer = torch.optim.Adam(groups, 1e-3, fused=True)
    for epoch in range(2):
        report = run.train_epoch()
        for step, (images, labels) in enumerate(seen(twin, epoch)):
            done = STEPS * epoch + step
            # Half an epoch has two steps, of which the second has the full rate.
            factor = 0.5 * (1 + math.cos(math.pi * (done - 1) / (2 * STEPS - 1))) if done else 0.5
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * factor
            loss = F.cross_entropy(predict(model, images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], tensor, msg=name)
    assert (step, report.epoch) == (STEPS - 1, 2)
    assert report.train_loss == pytest.approx(sum(losses[STEPS:]) / STEPS)
    model.eval()
    for split in ("validation", "test"):
        images, labels = getattr(twin._splits, split).__getitems__(list(range(16 if split == "validation" else 8)))
        with torch.no_grad():
            logits = model(images)
        right = (logits.argmax(1) == labels).float().mean().item()
        found = run.evaluate(split)
        assert (found.accuracy, found.loss) == pytest.approx((right, F.cross_entropy(logits, labels).item()), rel=1e-4)
    found = run.evaluate("validation")
    assert (found.accuracy, found.loss) == (report.accuracy, report.validation_loss)
    assert (found.balanced_accuracy, found.macro_f1) == (report.balanced_accuracy, report.macro_f1)


def test_a_seed_decides_order_and_draws_of_each_epoch(tiny_trial: TinyTrial) -> None:
    """Of the epoch alone, whatever was drawn before it; no two epochs and no two seeds have the same."""

    def labels(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in Run(tiny_trial(seed=seed))._loader(epoch)]).tolist()

    orders = [labels(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    torch.rand(3)
    assert labels(1, 1) == orders[3]


def test_reported_flops_equal_those_counted_over_the_whole_training(tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial())
    run.evaluate = lambda split: evaluation(0.0)  # type: ignore[method-assign]  # validation is not training
    with FlopCounterMode(display=False) as counter:
        report = run.train_epoch()
    assert report.cost.train_flops == counter.get_total_flops() > 0


def test_fit_yields_an_epoch_at_a_time_resumes_and_leaves_a_plain_timm_model(
    tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    config, steps = tiny_trial(), []
    assert last_report(tmp_path) is None
    first = next(iter(fit(config, tmp_path, steps.append)))
    assert first.epoch == 1 and steps == [1, 2, 3, 4]
    assert last_report(tmp_path) == first
    (second,) = fit(config, tmp_path)
    assert second.epoch == 2
    assert list(fit(config, tmp_path)) == []
    own = {"checkpoint": tmp_path / "last.safetensors", "num_classes": 2, "keep_classifier": True}
    exported = config.model.model_copy(update=own)
    run = Run(config)
    run.load(tmp_path)
    assert_same(create_model(exported).state_dict(), run.model.state_dict())


@pytest.mark.parametrize(
    ("names", "said"), [(["dark", "day"], "class 1 is day "), ({"0": "light", "1": "dark"}, "class 0 is light ")]
)
def test_a_classifier_of_other_classes_is_not_kept(
    tmp_path: Path, tiny_trial: TinyTrial, names: object, said: str
) -> None:
    config = tiny_trial()
    model, splits = load_trial(config)
    checkpoint.save_weights(model, tmp_path / checkpoint.BEST)
    checkpoint.save_model_card(config.model, splits.spec, splits.classes, tmp_path)
    kept = {"checkpoint": tmp_path, "keep_classifier": True}
    kept_config = config.model_copy(update={"model": config.model.model_copy(update=kept)})
    assert_same(load_trial(kept_config)[0].state_dict(), model.state_dict())
    card = json.loads((tmp_path / checkpoint.MODEL_CARD).read_text())
    (tmp_path / checkpoint.MODEL_CARD).write_text(json.dumps(card | {"label_names": names}))
    with pytest.raises(ConfigError, match=rf"^model.keep_classifier = True: {said}by the weights' config.json and "):
        load_trial(kept_config)


def test_without_a_folder_fit_leaves_nothing(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [report.epoch for report in fit(tiny_trial({"name": "head"}))] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_s_weights_are_kept_even_by_a_process_that_is_killed_before_it_keeps_them(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {1: 0.3, 2: 0.7, 3: 0.7, 4: 0.5}
    monkeypatch.setattr(Run, "evaluate", lambda run, split: evaluation(accuracies[run.epoch + 1]))
    config = tiny_trial(epochs=4)
    states = {}
    epochs = fit(config, tmp_path)
    for report in epochs:
        states[report.epoch] = checkpoint.load(tmp_path)["model"]
        if report.epoch == 2:
            (tmp_path / checkpoint.BEST).unlink()  # as if it had not come to that
            break
    epochs.close()  # type: ignore[attr-defined]
    for report in fit(config, tmp_path):
        states[report.epoch] = checkpoint.load(tmp_path)["model"]
    for name, epoch in ((checkpoint.BEST, 2), (checkpoint.LAST, 4)):
        assert_same(load_file(tmp_path / name), states[epoch])
    assert checkpoint.load(tmp_path)["best"]["epoch"] == 2  # the first of equals


def test_on_all_data_the_best_epoch_is_the_last(
    tmp_path: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {1: 0.9, 2: 0.5}
    monkeypatch.setattr(Run, "evaluate", lambda run, split: evaluation(accuracies[run.epoch + 1]))
    config = tiny_trial()
    config = config.model_copy(update={"data": config.data.model_copy(update={"all_data": True})})
    reports = list(fit(config, tmp_path))
    assert checkpoint.load(tmp_path)["best"]["epoch"] == 2
    assert (tmp_path / checkpoint.BEST).read_bytes() == (tmp_path / checkpoint.LAST).read_bytes()
    assert sum(reports[0].trained) == (32 + 16) // 8 * 3  # steps of the epoch, K blocks each


def test_an_old_checkpoint_that_names_no_best_epoch_has_its_last_one_for_it(
    tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    config = tiny_trial({"name": "head"})
    run = Run(config)
    run.save(tmp_path)  # before the first epoch
    run.load(tmp_path)
    assert (run.epoch, run.report, run.best) == (0, None, None)
    report = run.train_epoch()
    run.save(tmp_path)
    state = checkpoint.load(tmp_path)
    del state["best"]
    checkpoint.save(state, tmp_path)
    again = Run(config)
    again.load(tmp_path)
    assert again.best == report


def test_report_says_what_blocks_did(tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial())
    for _ in range(2):
        report = run.train_epoch()
        records = list(run.meter.ledger.read())[-STEPS:]
        assert report.trained == tuple(sum(record.trainable_L[block] for record in records) for block in range(DEPTH))
        assert report.tokens == tuple(
            sum(record.tokens_L[block] for record in records) / STEPS for block in range(DEPTH)
        )
        assert report.budgets == run.method.budgets == records[-1].budgets_L  # type: ignore[attr-defined]
        assert sum(report.trained) == 3 * STEPS  # K blocks at each step
    assert [record.step for record in run.meter.ledger.read()] == list(range(2 * STEPS))
    assert report.tokens[0] == TOKENS > report.tokens[-1]
    assert list(report.tokens) == sorted(report.tokens, reverse=True)
    assert 0 < report.cost.train_seconds <= report.cost.wall_seconds
    assert report.cost.peak_bytes >= report.cost.steady_peak_bytes > 0


def test_the_host_reads_a_step_s_deltas_when_it_decides_the_next_one(
    tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line is written then too, with the budgets after the step: nobody waits before the device has its update."""
    happened, budgets = [], []
    run = Run(tiny_trial({**ALAST, "reading": "fast"}))
    read, add = LateTotals.read, Ledger.add
    monkeypatch.setattr(LateTotals, "read", lambda late: (happened.append("read"), read(late))[1])
    run._optimizer.register_step_post_hook(lambda *_: happened.append("update"))
    monkeypatch.setattr(Ledger, "add", lambda ledger, record: (happened.append("line"), add(ledger, record))[1])
    run.train_epoch()
    assert happened == ["update", "read"] + ["update", "line", "read"] * (STEPS - 1) + ["line"]
    run.train_epoch(lambda step: budgets.append(run.method.budgets))  # type: ignore[attr-defined]
    assert [record.budgets_L for record in run.meter.ledger.read()][STEPS:] == budgets
    assert len(set(budgets)) == STEPS


def test_micro_batches_add_up_to_the_batch(tiny_trial: TinyTrial) -> None:
    """The same plan and, but for rounding, the same updates; less memory."""
    method = {"name": "alast", "reading": "paper", "alpha": 0.0, "trainable_blocks": 3}
    # Seven images are divided into 2, 2, 2 and 1.
    whole, parts = (
        Run(config.model_copy(update={"model": config.model.model_copy(update={"image_size": 128})}))
        for config in (tiny_trial(method, batch_size=7, accumulate=parts) for parts in (1, 4))
    )
    one, four = whole.train_epoch(), parts.train_epoch()
    assert (four.trained, four.tokens) == (one.trained, one.tokens)
    assert four.train_loss == pytest.approx(one.train_loss, rel=1e-4)
    assert four.cost.train_flops == one.cost.train_flops
    assert four.cost.peak_bytes < 0.7 * one.cost.peak_bytes
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=0, atol=5e-4, msg=name)


def test_more_micro_batches_than_images_are_one_an_image(tiny_trial: TinyTrial) -> None:
    many, two = (Run(tiny_trial({"name": "full"}, batch_size=2, accumulate=parts)) for parts in (9, 2))
    assert many.train_epoch().train_loss == two.train_epoch().train_loss


def test_exploration_finds_the_blocks_puts_the_weights_back_and_counts_its_cost(tiny_trial: TinyTrial) -> None:
    config = tiny_trial({"name": "top_k", "count": 2, "probe_steps": 1}, epochs=1)
    run, twin = Run(config), Run(config)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        blocks = explore(run)
    assert len(blocks) == 2
    assert_same(run.model.state_dict(), weights)
    assert run.meter.read().train_flops == run.meter.read().exploration_flops == counter.get_total_flops()
    report = twin.train_epoch()
    assert tuple(block for block, steps in enumerate(report.trained) if steps) == blocks
    assert report.trained[blocks[0]] == STEPS
    assert [record.probe for record in twin.meter.ledger.read()] == [True] * DEPTH + [False] * STEPS
    assert report.cost.exploration_flops == counter.get_total_flops() < report.cost.train_flops
    assert Run(tiny_trial({"name": "full"})).train_epoch().cost.exploration_flops == 0


def test_exploration_scores_each_block_by_batches_that_it_has_not_seen(tiny_trial: TinyTrial) -> None:
    """Written out: two steps of each block alone, all at one rate, then the mean loss of the other two batches."""
    train = {"optimizer": "sgd", "learning_rate": 0.1, "layer_decay": 0.5}
    config = tiny_trial({"name": "top_k", "count": 3, "probe_steps": 2}, **train)
    run = Run(config)
    losses = []
    for block in range(DEPTH):
        twin = Run(config)
        model = twin.model.train()
        batches = seen(twin)
        training = [*model.blocks[block].parameters(), *model.norm.parameters(), *model.head.parameters()]
        optimizer = torch.optim.SGD(training, 0.1, momentum=0.9)
        for images, labels in batches[:2]:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            losses.append(sum(F.cross_entropy(model(images), labels).item() for images, labels in batches[2:]) / 2)
    assert explore(run) == tuple(sorted(sorted(range(DEPTH), key=losses.__getitem__)[:3]))


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "alast"}, {"name": "alast", "reading": "paper"}])
def test_a_run_that_leaves_the_numbers_fails_with_a_clear_word(tiny_trial: TinyTrial, method: dict[str, Any]) -> None:
    run = Run(tiny_trial(method | ({"trainable_blocks": 3} if method["name"] == "alast" else {})))
    with torch.no_grad():
        run.model.blocks[0].attn.qkv.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match=r"training has diverged; lower train.learning_rate"):
        run.train_epoch()
    assert run.epoch == 0


def test_a_loss_that_is_not_finite_is_noticed_within_some_steps_not_at_the_epochs_end(
    tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CHECK_EVERY", 5)
    run, done = Run(tiny_trial({"name": "head"}, batch_size=1)), []

    def poison(step: int) -> None:
        done.append(step)
        if step == 7:
            with torch.no_grad():
                run.model.head.weight.fill_(float("nan"))  # type: ignore[operator, union-attr]

    with pytest.raises(DivergedError, match=r"the loss of epoch 1 is nan: training has diverged"):
        run.train_epoch(poison)
    assert done[-1] == 10 < run.steps_per_epoch


def test_weight_decay_is_for_matrices_alone() -> None:
    """As timm has it, and registers besides."""
    method = build_method(FullConfig(), vit({"reg_tokens": 4, "init_values": 1e-3, "qk_norm": True}))
    model = method.model
    for kind in ("adam", "adamw", "sgd"):
        config = TrainConfig(optimizer=kind, weight_decay=0.1)
        decaying, spared = ({id(p) for p in group["params"]} for group in build_optimizer(config, method).param_groups)
        also = {*model.no_weight_decay(), "reg_token"}
        rest, theirs = param_groups_weight_decay(model, 0.1, no_weight_decay_list=also)
        assert spared == {id(p) for p in rest["params"]} and decaying == {id(p) for p in theirs["params"]}
    with torch.no_grad():
        before = {name: p.clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    build_optimizer(TrainConfig(optimizer="adamw", weight_decay=0.1), method).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.endswith("weight") and "norm" not in name}


@pytest.mark.parametrize("missing", ["group", "evaluation"])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    tmp_path: Path, tiny_trial: TinyTrial, missing: str
) -> None:
    config = tiny_trial({"name": "head"})
    run = Run(config)
    run.train_epoch()
    run.save(tmp_path)
    state = checkpoint.load(tmp_path)
    if missing == "group":
        state["optimizer"]["param_groups"].pop()
    else:
        del state["meter"]["memory"]["evaluation"]
    checkpoint.save(state, tmp_path)
    with pytest.raises(ConfigError) as caught:
        Run(config).load(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"checkpoint = {tmp_path}: was not written by this version (")
    assert text.endswith("; train anew, in another folder") and "\n" not in text


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ({"name": "head"}, 8),
        ({"name": "head"}, 1),
        ({"name": "tome", "merge": 8}, 2),
        ({"name": "full"}, 4),
        (ALAST, 8),
        ({"name": "lora", "rank": 2}, 8),
    ],
    ids=str,
)
def test_evaluation_is_in_the_peak_and_takes_no_more_than_training(
    tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], parts: int
) -> None:
    """Measured: that of an evaluation with everything that is there then."""
    config = tiny_trial(method, accumulate=parts, batch_size=16, epochs=1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"image_size": 128})})
    run = Run(config)
    report, measured, sizes = run.train_epoch(), [], []

    def measure(model: Any, batches: Any, *rest: Any) -> Evaluation:
        images, labels = next(iter(batches))
        images = prepare(images, run.device)
        with memory.track_live_bytes(model, run._optimizer, images) as peak:
            result = evaluate(model, [(images, labels)], *rest)
        measured.append(peak[0])
        sizes.append(len(images))
        assert len(images) <= 16 // parts
        return result

    monkeypatch.setattr(running, "evaluate", measure)
    run.evaluate("validation")
    assert measured[0] <= report.cost.peak_bytes * 1.005
    assert run.meter.read().peak_bytes == report.cost.peak_bytes
    size, forecast = StepCosts(run.model, 128).evaluation_batch(sizes[0], 2 * measured[0], run._optimizer)
    assert size == sizes[0]
    assert measured[0] == pytest.approx(forecast, rel=0.03)


def test_every_step_is_told_in_a_table(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    reports = list(fit(tiny_trial(ALAST | {"trainable_blocks": DEPTH}), tmp_path))
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(2 * STEPS))
    assert sum(int(row["flops"]) for row in rows) == reports[-1].cost.train_flops
    for block in range(DEPTH):
        trained = sum(int(row[f"trains_{block:02d}"]) for row in rows)
        assert trained == reports[0].trained[block] + reports[1].trained[block]
    measured = [row for row in rows if row["measured_peak_bytes"]]
    assert len(measured) > 1  # the first step, and one with the optimizer's moments, which it has not
    for row in measured[1:]:
        assert int(row["measured_peak_bytes"]) == pytest.approx(int(row["predicted_peak_bytes"]), rel=0.01)
    assert all(int(row["held_bytes"]) < int(row["full_held_bytes"]) for row in rows)
    assert [float(rows[-1][f"budget_{block:02d}"]) for block in range(DEPTH)] == list(reports[-1].budgets)


def test_the_table_of_a_run_that_was_killed_equals_an_uninterrupted_one_s(
    tmp_path: Path, tiny_trial: TinyTrial
) -> None:
    config, whole, table = tiny_trial(epochs=3), tmp_path / "whole", tmp_path / STEPS_CSV
    list(fit(config, whole))

    def killed(step: int) -> None:
        if step == 3 and last_report(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(fit(config, tmp_path, killed))
    gc.collect()
    lines = table.read_bytes().splitlines()
    assert len(lines) == 1 + STEPS + 2  # more than the checkpoint knows of; the last step's waited
    list(fit(config, tmp_path))
    assert table.read_bytes() == (whole / STEPS_CSV).read_bytes()


def test_a_checkpoint_holds_the_length_of_the_table_and_not_the_table(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial(epochs=4))
    sizes, lines = [], []
    for epoch in range(3):
        run.train_epoch()
        run.save(folder := tmp_path / str(epoch))
        lines.append(len((folder / STEPS_CSV).read_bytes().splitlines()))
        ledger = checkpoint.load(folder)["meter"]["ledger"]
        assert ledger["bytes"] == (folder / STEPS_CSV).stat().st_size
        assert ledger["steps"] == STEPS * (epoch + 1)
        sizes.append(sum(tensor_free_size(part) for part in checkpoint.load(folder).values()))
    assert lines == [1 + STEPS, 1 + 2 * STEPS, 1 + 3 * STEPS]  # wherever a trial goes on, its history is there
    peaks = len(checkpoint.load(folder)["meter"]["memory"]["peaks"])
    assert sizes[2] - sizes[1] == 2 * (peaks - len(checkpoint.load(tmp_path / "1")["meter"]["memory"]["peaks"]))


def tensor_free_size(value: Any) -> int:
    """Count the plain values in a checkpoint, whatever they are nested in."""
    if isinstance(value, dict):
        return sum(1 + tensor_free_size(part) for part in value.values())
    return sum(map(tensor_free_size, value)) if isinstance(value, list | tuple) else 1


def test_lost_lines_are_no_end_of_a_run_but_nothing_is_drawn_of_them(
    tmp_path: Path, tiny_trial: TinyTrial, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_trial()
    next(iter(fit(config, tmp_path)))
    (tmp_path / STEPS_CSV).unlink()
    (report,) = fit(config, tmp_path)
    assert report.epoch == 2 and "what these steps did is lost" in caplog.text
    with (tmp_path / STEPS_CSV).open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(STEPS, 2 * STEPS))
    with pytest.raises(ConfigError, match=r"its steps.csv lacks the first 4 steps"):
        report_blocks(config, tmp_path)


def test_a_checkpoint_of_before_is_refused_in_one_line(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    run = Run(tiny_trial({"name": "head"}))
    run.save(tmp_path)
    state = checkpoint.load(tmp_path)
    state["meter"]["ledger"] = [(0, 8, False, 1, 1, 1, 1, 0, ((17,) * DEPTH, (False,) * DEPTH, False), ())]
    checkpoint.save(state, tmp_path)
    with pytest.raises(ConfigError, match=r"was not written by this version \(.*\); train anew, in another folder"):
        run.load(tmp_path)


def test_adapters_come_out_merged(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    config = tiny_trial({"name": "lora", "rank": 2}, epochs=1)
    list(fit(config, tmp_path))
    run = Run(config)
    run.load(tmp_path)
    own = {"checkpoint": tmp_path / "model.safetensors", "num_classes": 2, "keep_classifier": True}
    exported = config.model.model_copy(update=own)
    merged = create_model(exported)
    for name in (checkpoint.BEST, checkpoint.LAST):
        assert_same(load_file(tmp_path / name), merged.state_dict())
    images, _ = seen(run)[0]
    alone = peft.PeftModel.from_pretrained(load_trial(config)[0], tmp_path / checkpoint.ADAPTER).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(images), run.model.eval()(images))
        torch.testing.assert_close(alone(images), merged(images), atol=1e-5, rtol=0)


@pytest.fixture
def two_blocks(tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch) -> TinyTrial:
    """Make tiny trials of a model that is quick to compile."""
    shape = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(models, "EMBEDDED_SHAPE", shape)

    def make(method: dict[str, Any], **train: Any) -> TrialConfig:
        config = tiny_trial(method, epochs=4, **train)
        return config.model_copy(update={"model": ModelConfig(pretrained=False, image_size=64)})

    return make


COMPILED = pytest.mark.parametrize(
    ("method", "train"),
    [
        ({"name": "alast", "alpha": 0.5, "trainable_blocks": 1}, {}),
        ({"name": "alast", "alpha": 0.5, "trainable_blocks": 1, "drop_tokens": "before_mlp", "keep_multiple": 1}, {}),
        ({"name": "tome", "merge": 3}, {}),
        ({"name": "full"}, {"token_keep": 0.5, "token_keep_last": 1.0, "image_size_first": 32}),
    ],
    ids=lambda value: value.get("drop_tokens", value.get("name", "")),
)


def losses_of_compiled_blocks(config: TrialConfig) -> list[float]:
    """Train three epochs, in the last of which nothing may be compiled any more."""
    torch._dynamo.utils.counters.clear()
    run = Run(config)
    losses = [run.train_epoch().train_loss for _ in range(2)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    torch._dynamo.config.error_on_recompile = True
    try:
        return [*losses, run.train_epoch().train_loss]
    finally:
        torch._dynamo.config.error_on_recompile = False
        torch._dynamo.reset()


@pytest.mark.filterwarnings("default")  # of the compiler's own
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@COMPILED
def test_captured_blocks_learn_the_same_and_are_not_captured_again(
    two_blocks: TinyTrial,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, Any],
    train: dict[str, Any],
    checkpoint_blocks: bool,
) -> None:
    """All that torch.compile does but the making of machine code."""
    plain = Run(two_blocks(method, **train))
    expected = [plain.train_epoch().train_loss for _ in range(3)]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = two_blocks(method, compile=True, checkpoint_blocks=checkpoint_blocks, **train)
    assert losses_of_compiled_blocks(config) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("default")  # of the compiler's own
def test_compiled_blocks_learn_the_same(two_blocks: TinyTrial) -> None:
    plain = Run(two_blocks(ALAST | {"trainable_blocks": 1}))
    expected = [plain.train_epoch().train_loss for _ in range(3)]
    config = two_blocks(ALAST | {"trainable_blocks": 1}, compile=True)
    assert losses_of_compiled_blocks(config) == pytest.approx(expected, rel=1e-3)


def on_a_gpu(method: dict[str, Any], **train: Any) -> Run:
    """Make a run that is large enough for the allocator's rounding not to count."""
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "device": "cuda"} | train
    return Run(TrialConfig.model_validate({"data": {"train_images": 96}, "method": method, "train": training}))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_of_the_fast_reading_makes_the_host_wait_for_the_whole_of_it() -> None:
    """From the images to the update, the meter's part too; for the deltas it waits by an event, before the next one."""
    run = on_a_gpu({"name": "alast", "trainable_blocks": 4})
    for step, (images, labels) in enumerate(run._loader(0)):  # in pinned memory
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step calibrates
        try:
            run._step(run.method, run._optimizer, images, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert step >= 1, "no step was watched"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "alast"}, {"name": "lora"}])
def test_on_a_gpu_the_prediction_is_near_the_allocator(method: dict[str, Any], precision: str) -> None:
    run = on_a_gpu(method, precision=precision)
    report = run.train_epoch()
    records = list(run.meter.ledger.read())
    measured = [record.measured_peak_bytes for record in records]
    assert records[-1].predicted_peak_bytes == pytest.approx(measured[-1], rel=0.08)
    assert report.cost.peak_bytes == max(measured)
    assert report.cost.steady_peak_bytes == pytest.approx(sorted(measured)[1], rel=1e-3)


def test_refusals(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    with pytest.raises(ConfigError, match=r"method.trainable_blocks = 7: the model has 6 blocks"):
        Run(tiny_trial({"name": "alast", "trainable_blocks": 7}))
    with pytest.raises(ConfigError, match=r"method.count = 7: the model has 6 blocks"):
        Run(tiny_trial({"name": "top_k", "count": 7})).train_epoch()
    if not torch.cuda.is_available():
        assert Run(tiny_trial(device="auto")).device.type == "cpu"
        with pytest.raises(ConfigError, match=r"train.device = cuda: no CUDA device"):
            Run(tiny_trial(device="cuda"))
    run = Run(tiny_trial())
    with pytest.raises(ConfigError, match=r"has no state.pt"):
        run.load(tmp_path / "nowhere")
    run.save(tmp_path)
    with pytest.raises(ConfigError, match=r"belongs to a run with other settings"):
        Run(tiny_trial(epochs=9)).load(tmp_path)
    (tmp_path / checkpoint.FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\); delete it"):
        run.load(tmp_path)


def test_a_data_set_without_test_images(tmp_path: Path, two_classes: Path, tiny_trial: TinyTrial) -> None:
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(two_classes / part)
    config = tiny_trial({"name": "head"})
    run = Run(config.model_copy(update={"data": config.data.model_copy(update={"root": tmp_path})}))
    assert not run.has_test and Run(config).has_test
    with pytest.raises(ConfigError, match=r"data.dataset = folder: has no test images"):
        run.evaluate("test")


def test_a_checkpoint_is_its_run_s_from_wherever_the_pictures_are_named(
    tmp_path: Path, two_classes: Path, tiny_trial: TinyTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_trial({"name": "head"})
    Run(config).save(tmp_path)
    monkeypatch.chdir(two_classes.parent)
    data = config.data.model_copy(update={"root": Path(two_classes.name)})
    Run(config.model_copy(update={"data": data})).load(tmp_path)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, tiny_trial: TinyTrial) -> None:
    """Whoever may write to a sweep's storage must not thereby own the workers that read it."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Bomb()}, tmp_path / checkpoint.FILE)
    with pytest.raises(ConfigError, match=r"cannot be read \(UnpicklingError\); delete it"):
        Run(tiny_trial()).load(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / checkpoint.FILE, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_checkpoint_of_a_finished_run_has_nothing_that_another_epoch_would_need(
    tiny_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    run = Run(tiny_trial(epochs=2))
    run.train_epoch()
    run.save(tmp_path)
    assert checkpoint.load(tmp_path).keys() >= {"optimizer", "scheduler", "model"}
    run.train_epoch()
    run.save(tmp_path)
    assert not checkpoint.load(tmp_path).keys() & {"optimizer", "scheduler", "scaler"}
    again = Run(tiny_trial(epochs=2))
    again.load(tmp_path)
    assert again.finished and again.report == run.report
