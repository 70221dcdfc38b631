"""The loop on the embedded backbone and the digits: exact resumption, exact cost, plain models out."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from alast_tune import checkpoint
from alast_tune.config import ModelConfig, TrialConfig
from alast_tune.errors import ConfigError, DivergedError
from alast_tune.evaluate import evaluate
from alast_tune.models import create_model
from alast_tune.results import EpochReport
from alast_tune.train import Run, fit


def trial(method: dict[str, Any] | None = None, **train: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {"train_images": 96},
            "method": method or {"name": "alast", "alpha": 0.5, "trainable_blocks": 4, "target_budget": 0.4},
            "train": {"epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "warmup_epochs": 0.5, "device": "cpu"}
            | train,
        }
    )


def without_time(report: EpochReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics().items() if "seconds" not in name}


@pytest.mark.parametrize(
    ("method", "train"),
    [
        (None, {}),
        ({"name": "alast", "reading": "authors"}, {"schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.1}),
        ({"name": "alast", "reading": "paper", "frozen_backward": "residual"}, {"precision": "bf16"}),
        ({"name": "full"}, {"optimizer": "sgd"}),
        ({"name": "top_k", "count": 2, "probe_steps": 1}, {}),
        ({"name": "bsr", "blocks": [3, 7]}, {}),
        ({"name": "tome", "merge": 4}, {"accumulate": 2}),
        ({"name": "alast", "lora": {"rank": 2}, "trainable_blocks": 4}, {}),
        ({"name": "apla", "columns": 16}, {}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, method: dict[str, Any] | None, train: dict[str, Any]
) -> None:
    config = trial(method, **train)
    whole = Run(config)
    expected = [whole.train_epoch() for _ in range(3)]
    resumed: list[EpochReport] = []
    for _ in range(3):  # a new process each epoch, as far as the run can tell
        run = Run(config)
        if run_exists(tmp_path):
            run.load(tmp_path)
        resumed.append(run.train_epoch())
        run.save(tmp_path)
    assert [without_time(r) for r in resumed] == [without_time(r) for r in expected]
    for one, other in zip(whole.model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert resumed[-1].cost.wall_seconds > resumed[0].cost.wall_seconds


def run_exists(folder: Path) -> bool:
    return (folder / checkpoint.FILE).exists()


def test_reported_flops_equal_those_counted_over_the_whole_training() -> None:
    run = Run(trial(epochs=1))
    run._splits = type(run._splits)(  # validation is not training: none here, so that only training is counted
        train=run._splits.train, validation=[], test=None, classes=run._splits.classes
    )
    run.evaluate = lambda split: (0.0, 0.0)  # type: ignore[method-assign]
    with FlopCounterMode(display=False) as counter:
        report = run.train_epoch()
    assert report.cost.train_flops == counter.get_total_flops()


def test_fit_yields_an_epoch_at_a_time_resumes_and_leaves_a_plain_timm_model(tmp_path: Path) -> None:
    config = trial(epochs=2)
    first = next(iter(fit(config, tmp_path)))
    assert first.epoch == 1
    (second,) = fit(config, tmp_path)
    assert second.epoch == 2
    assert list(fit(config, tmp_path)) == []
    model = create_model(ModelConfig(num_classes=10, checkpoint=tmp_path / "last.safetensors"))
    run = Run(config)
    run.load(tmp_path)
    for one, other in zip(model.state_dict().values(), run.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_best_epoch_s_weights_are_kept_even_by_a_process_that_is_killed_before_it_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = {1: 0.3, 2: 0.7, 3: 0.7, 4: 0.5}
    monkeypatch.setattr(Run, "evaluate", lambda run, split: (accuracies[run.epoch + 1], 1.0))
    config = trial(epochs=4)
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
        weights = load_file(tmp_path / name)
        assert all(torch.equal(weights[key], tensor) for key, tensor in states[epoch].items())
    assert checkpoint.load(tmp_path)["best"]["epoch"] == 2  # the first of equals


def test_on_all_data_the_best_epoch_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {1: 0.9, 2: 0.5}
    monkeypatch.setattr(Run, "evaluate", lambda run, split: (accuracies[run.epoch + 1], 1.0))
    config = trial(epochs=2)
    # 1437 images to train on, were the batches not so large
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"all_data": True}),
            "train": config.train.model_copy(update={"batch_size": 700}),
        }
    )
    reports = list(fit(config, tmp_path))
    assert checkpoint.load(tmp_path)["best"]["epoch"] == 2
    assert (tmp_path / checkpoint.BEST).read_bytes() == (tmp_path / checkpoint.LAST).read_bytes()
    assert sum(reports[0].trained) == 2 * 4  # steps of the epoch, K blocks each


def test_report_says_what_blocks_did() -> None:
    report = Run(trial()).train_epoch()
    assert sum(report.trained) == 4 * 3  # K blocks at each of three steps
    assert report.tokens[0] == 65
    assert list(report.tokens) == sorted(report.tokens, reverse=True)
    assert len(report.budgets) == 12
    assert 0 < report.cost.train_seconds <= report.cost.wall_seconds
    assert report.cost.peak_bytes >= report.cost.steady_peak_bytes > 0


def test_it_learns() -> None:
    config = TrialConfig.model_validate(
        {"train": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "device": "cpu", "warmup_epochs": 0.2}}
    )
    (report,) = fit(config)
    assert report.accuracy > 0.6


def test_micro_batches_add_up_to_the_batch() -> None:
    """The same plan and, but for rounding, the same losses; less memory."""
    method = {"name": "alast", "reading": "paper", "alpha": 0.0, "trainable_blocks": 4}
    whole, parts = (Run(trial(method, accumulate=accumulate, epochs=1)) for accumulate in (1, 4))
    one, four = whole.train_epoch(), parts.train_epoch()
    assert four.trained == one.trained
    assert four.tokens == one.tokens
    assert four.train_loss == pytest.approx(one.train_loss, rel=1e-3)
    assert four.cost.train_flops == one.cost.train_flops
    assert four.cost.peak_bytes < 0.7 * one.cost.peak_bytes


def test_exploration_finds_the_blocks_puts_the_weights_back_and_counts_its_cost() -> None:
    config = trial({"name": "top_k", "count": 2, "probe_steps": 1}, epochs=1)
    run, twin = Run(config), Run(config)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        blocks = run._explore()
    assert len(blocks) == 2
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    assert run.meter.read().train_flops == run.meter.read().exploration_flops == counter.get_total_flops()
    report = twin.train_epoch()
    assert tuple(block for block, steps in enumerate(report.trained) if steps) == blocks
    assert report.trained[blocks[0]] == 3
    assert twin.meter.ledger.trained() == report.trained
    assert [record.probe for record in twin.meter.ledger.records] == [True] * 12 + [False] * 3
    assert 0 < report.cost.exploration_flops < report.cost.train_flops
    assert Run(trial({"name": "full"}, epochs=1)).train_epoch().cost.exploration_flops == 0


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "alast"}, {"name": "alast", "reading": "paper"}])
def test_a_run_that_leaves_the_numbers_fails_with_a_clear_word(method: dict[str, Any]) -> None:
    run = Run(trial(method))
    with torch.no_grad():
        run.model.blocks[0].attn.qkv.weight.fill_(float("inf"))  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match=r"training has diverged; lower train.learning_rate"):
        run.train_epoch()


def test_every_step_is_told_in_a_table(tmp_path: Path) -> None:
    config = trial(epochs=2)
    reports = list(fit(config, tmp_path))
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert sum(int(row["flops"]) for row in rows) == reports[-1].cost.train_flops
    for block in range(12):
        trained = sum(int(row[f"trains_{block:02d}"]) for row in rows)
        assert trained == reports[0].trained[block] + reports[1].trained[block]
    measured = [row for row in rows if row["measured_peak_bytes"]]
    assert measured
    for row in measured[1:]:  # at the first step the optimizer has no moments yet
        assert int(row["measured_peak_bytes"]) == pytest.approx(int(row["predicted_peak_bytes"]), rel=0.05)
    assert all(int(row["held_bytes"]) < int(row["full_held_bytes"]) for row in rows)
    assert [float(rows[-1][f"budget_{block:02d}"]) for block in range(12)] == list(reports[-1].budgets)


def test_adapters_come_out_merged(tmp_path: Path) -> None:
    config = trial({"name": "lora", "rank": 2}, epochs=1)
    (report,) = fit(config, tmp_path)
    model = create_model(ModelConfig(num_classes=10, checkpoint=tmp_path / "model.safetensors"))
    run = Run(config)
    run.load(tmp_path)
    assert evaluate(model, run._loader(0), run.device) == pytest.approx(
        evaluate(run.model, run._loader(0), run.device), rel=1e-4
    )
    assert report.accuracy > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("default")  # of the compiler's own
@pytest.mark.parametrize("name", ["alast", "tome"])
def test_compiled_blocks_learn_the_same_and_are_not_compiled_again(name: str) -> None:
    settings = {"alast": {"alpha": 0.5, "trainable_blocks": 6}, "tome": {"merge": 3}}[name]
    plain, compiled = (Run(trial({"name": name} | settings, compile=how, epochs=4)) for how in (False, True))
    plain_losses = [plain.train_epoch().train_loss for _ in range(3)]
    losses = [compiled.train_epoch().train_loss for _ in range(2)]
    torch._dynamo.config.error_on_recompile = True
    try:
        losses.append(compiled.train_epoch().train_loss)
    finally:
        torch._dynamo.config.error_on_recompile = False
        torch._dynamo.reset()
    assert losses == pytest.approx(plain_losses, rel=1e-2)


@pytest.mark.gpu
def test_fast_reading_never_makes_the_host_wait_inside_forward_or_backward() -> None:
    run = Run(trial({"name": "alast", "trainable_blocks": 4}, device="cuda"))
    for step, (images, labels) in enumerate(run._loader(0)):
        images, labels = images.cuda(), labels.cuda()
        run.method.begin_step(step)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step calibrates
        try:
            F.cross_entropy(run.method.forward(images), labels).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.method.end_step()
    assert step >= 1, "no step was watched"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "alast"}, {"name": "lora"}])
def test_on_a_gpu_the_prediction_is_near_the_allocator(method: dict[str, Any], precision: str) -> None:
    run = Run(trial(method, device="cuda", precision=precision, epochs=1))
    run.train_epoch()
    last = run.meter.ledger.records[-1]
    assert last.predicted_peak_bytes == pytest.approx(last.measured_peak_bytes, rel=0.08)


@pytest.mark.gpu
def test_on_a_gpu_the_allocator_measures_and_mixed_precision_learns() -> None:
    report = Run(trial(precision="bf16", device="cuda", epochs=1)).train_epoch()
    assert report.cost.peak_bytes >= report.cost.steady_peak_bytes > 0


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.trainable_blocks = 13: the model has 12 blocks"):
        Run(trial({"name": "alast", "trainable_blocks": 13}))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"train.device = cuda: no CUDA device"):
            Run(trial(device="cuda"))
    run = Run(trial())
    with pytest.raises(ConfigError, match=r"has no state.pt"):
        run.load(tmp_path / "nowhere")
    run.save(tmp_path)
    with pytest.raises(ConfigError, match=r"belongs to a run with other settings"):
        Run(trial(epochs=9)).load(tmp_path)
    (tmp_path / checkpoint.FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"cannot be read \(.*\); delete it"):
        run.load(tmp_path)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """Whoever may write to a sweep's storage must not thereby own the workers that read it."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": Bomb()}, tmp_path / checkpoint.FILE)
    with pytest.raises(ConfigError, match=r"cannot be read \(UnpicklingError\); delete it"):
        Run(trial()).load(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / checkpoint.FILE, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have
