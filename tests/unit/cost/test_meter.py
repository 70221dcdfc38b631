"""A run's meter: what it adds up, what it writes down, and that a resumed run goes on from there."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost import Ledger, Meter, clock, forward_flops, step_cost
from alast_tune.cost.clock import Clock
from alast_tune.cost.ledger import StepRecord
from alast_tune.methods import Method, build_method
from alast_tune.methods.base import StepPlan
from tests.unit.every_method import DEPTH, vit


def setting(batch: int = 4, **values: Any) -> tuple[Meter, Method, torch.optim.Optimizer, torch.Tensor]:
    train = TrainConfig(accumulate=2)
    method = build_method(TrialConfig.model_validate({"method": values}).method, vit(), train)
    optimizer = torch.optim.Adam(method.parameters(), fused=True)
    return Meter(method.model, train), method, optimizer, torch.randn(batch, 3, 32, 32)


def step(meter: Meter, method: Method, optimizer: torch.optim.Optimizer, images: torch.Tensor, batch: int) -> None:
    method.begin_step(0)
    with meter.step(method, optimizer, images, batch):
        for part in images.tensor_split(2):
            method.forward(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()


def test_a_step_is_predicted_measured_and_written_down_and_its_flops_are_all_ranks() -> None:
    meter, method, optimizer, images = setting(name="top_k", blocks=(1, 4))
    for _ in range(2):
        step(meter, method, optimizer, images, batch=12)  # two more ranks have as many
    cost = step_cost(method.model, method.config, method.plan, 32, 4, optimizer, accumulate=2)
    everything = TrialConfig.model_validate({"method": {"name": "full"}}).method
    full = step_cost(method.model, everything, StepPlan((17,) * DEPTH, (True,) * DEPTH), 32, 4, optimizer, accumulate=2)
    for number, record in enumerate(meter.ledger.records):
        assert (record.step, record.images, record.probe, record.plan) == (number, 12, False, method.plan)
        assert (record.flops, record.predicted_peak_bytes) == (3 * cost.flops, cost.peak_bytes)
        assert (record.held_bytes, record.full_held_bytes) == (cost.held_bytes, full.held_bytes)
        assert cost.held_bytes < full.held_bytes
    first, second = meter.ledger.records
    # The second is probed for the moments, which the first only makes.
    assert second.measured_peak_bytes == pytest.approx(cost.peak_bytes, rel=0.01)
    read = meter.read()
    assert read.train_flops == 6 * cost.flops
    assert read.peak_bytes == max(first.measured_peak_bytes, second.measured_peak_bytes)
    assert 0 < read.steady_peak_bytes <= read.peak_bytes
    assert read.exploration_flops == 0


def test_exploration_has_its_price_and_forwards_count() -> None:
    meter, method, optimizer, images = setting(name="head")
    meter.exploring = True
    step(meter, method, optimizer, images, batch=4)
    meter.add_forward(32, images=5)
    meter.end_exploration()
    step(meter, method, optimizer, images, batch=4)
    one = step_cost(method.model, method.config, method.plan, 32, 4, optimizer, accumulate=2).flops
    assert [record.probe for record in meter.ledger.records] == [True, False]
    assert meter.read().exploration_flops == one + forward_flops(method.model, 32, 5)
    assert meter.read().train_flops == 2 * one + forward_flops(method.model, 32, 5)
    assert meter.ledger.trained_steps() == (0,) * DEPTH


def test_a_resumed_meter_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: 7.0))
    meter, method, optimizer, images = setting(name="alast", trainable_blocks=2, target_budget=0.4)
    meter.exploring = True
    step(meter, method, optimizer, images, batch=4)
    meter.end_exploration()
    step(meter, method, optimizer, images, batch=4)
    twin = Meter(method.model, TrainConfig(accumulate=2))
    twin.load_state_dict(meter.state_dict())
    assert twin.read() == meter.read()
    assert twin.ledger.records == meter.ledger.records
    assert twin.state_dict() == meter.state_dict()
    step(twin, method, optimizer, images, batch=4)
    assert [record.step for record in twin.ledger.records] == [0, 1, 2]


def record(number: int, trains: tuple[bool, ...], probe: bool = False, measured: int = 0) -> StepRecord:
    return StepRecord(number, 8, probe, 100, 200, 300, 400, measured, StepPlan((5, 3), trains), (0.5, 1.0))


def test_ledger_counts_and_writes_its_steps_and_probes_do_not_count_as_training(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.write(tmp_path / "steps.csv")
    assert list(tmp_path.iterdir()) == []  # nothing without a step
    ledger.add(record(0, (True, True), probe=True))
    ledger.add(record(1, (True, False), measured=390))
    ledger.add(record(2, (True, False)))
    assert ledger.trained_steps() == (2, 0)
    assert ledger.records[1].plan is ledger.records[2].plan  # equal plans are kept once
    ledger.write(tmp_path / "steps.csv")
    with (tmp_path / "steps.csv").open() as file:
        first, second, _ = csv.DictReader(file)
    assert first == {
        "step": "0", "images": "8", "probe": "1", "flops": "100", "held_bytes": "200", "full_held_bytes": "300",
        "predicted_peak_bytes": "400", "measured_peak_bytes": "", "trains_00": "1", "trains_01": "1",
        "tokens_00": "5", "tokens_01": "3", "budget_00": "0.5", "budget_01": "1.0",
    }  # fmt: skip
    assert (second["measured_peak_bytes"], second["trains_01"], second["probe"]) == ("390", "0", "0")
    twin = Ledger()
    twin.load_state_dict(ledger.state_dict())
    assert twin.records == ledger.records


def test_clock_adds_up_over_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first = Clock()
    now[0] = 12.0
    with first.training():
        now[0] = 15.0
    assert (first.wall_seconds, first.train_seconds) == (5.0, 3.0)
    saved = first.state_dict()
    now[0] = 1000.0  # another machine's
    second = Clock()
    second.load_state_dict(saved)
    now[0] = 1001.0
    with second.training():
        now[0] = 1003.0
    assert (second.wall_seconds, second.train_seconds) == (8.0, 5.0)
