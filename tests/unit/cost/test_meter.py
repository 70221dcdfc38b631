"""A run's meter: what it adds up, what it writes down, and that a resumed run goes on from there."""

import csv
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost import STEPS, Ledger, Meter, StepCosts, clock
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
    with meter.step(method, optimizer, images, batch, parts=2):
        for part in images.tensor_split(2):
            method.forward(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.end_step()


def test_a_step_is_predicted_measured_and_written_down_and_its_flops_are_all_ranks() -> None:
    meter, method, optimizer, images = setting(name="top_k", blocks=(1, 4))
    for _ in range(2):
        step(meter, method, optimizer, images, batch=12)  # two more ranks have as many
    costs = StepCosts(method.model, 32)
    cost = costs.step(method.config, method.plan, 4, optimizer, accumulate=2)
    everything = TrialConfig.model_validate({"method": {"name": "full"}}).method
    full = costs.step(everything, StepPlan((17,) * DEPTH, (True,) * DEPTH), 4, optimizer, accumulate=2)
    for number, record in enumerate(meter.ledger.read()):
        assert (record.step, record.images, record.probe) == (number, 12, False)
        assert (record.trainable_L, record.tokens_L) == (method.plan.trainable_L, method.plan.tokens_L)
        assert (record.flops, record.predicted_peak_bytes) == (3 * cost.flops, cost.peak_bytes)
        assert (record.held_bytes, record.full_held_bytes) == (cost.held_bytes, full.held_bytes)
        assert cost.held_bytes < full.held_bytes
    first, second = meter.ledger.read()
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
    costs = StepCosts(method.model, 32)
    one = costs.step(method.config, method.plan, 4, optimizer, accumulate=2).flops
    assert [record.probe for record in meter.ledger.read()] == [True, False]
    assert meter.read().exploration_flops == one + costs.forward_flops(5)
    assert meter.read().train_flops == 2 * one + costs.forward_flops(5)


def test_a_resumed_meter_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: 7.0))
    meter, method, optimizer, images = setting(name="alast", trainable_blocks=2, target_budget=0.4)
    meter.exploring = True
    step(meter, method, optimizer, images, batch=4)
    meter.end_exploration()
    step(meter, method, optimizer, images, batch=4)
    twin = Meter(method.model, TrainConfig(accumulate=2))
    twin.load_state_dict(meter.state_dict())
    meter.ledger.write(tmp_path / STEPS)
    twin.ledger.restore(tmp_path / STEPS)
    assert twin.read() == meter.read()
    assert list(twin.ledger.read()) == list(meter.ledger.read())
    assert twin.state_dict() == meter.state_dict()
    step(twin, method, optimizer, images, batch=4)
    assert [record.step for record in twin.ledger.read()] == [0, 1, 2]


def record(number: int, measured: int = 0) -> StepRecord:
    return StepRecord(number, 8, number == 0, 100, 200, 300, 400, measured, (True, number == 0), (5, 3), (0.1, 1 / 3))


def ledger_of(steps: int) -> Ledger:
    ledger = Ledger()
    for number in range(steps):
        ledger.add(record(number, measured=390 * (number == 1)))
    return ledger


def test_steps_are_lines_and_lines_are_steps(tmp_path: Path) -> None:
    ledger = ledger_of(3)
    ledger.write(tmp_path / "new" / STEPS)
    with (tmp_path / "new" / STEPS).open() as file:
        first, second, _ = csv.DictReader(file)
    assert first == {
        "step": "0", "images": "8", "probe": "1", "flops": "100", "held_bytes": "200", "full_held_bytes": "300",
        "predicted_peak_bytes": "400", "measured_peak_bytes": "", "trains_00": "1", "trains_01": "1",
        "tokens_00": "5", "tokens_01": "3", "budget_00": "0.1", "budget_01": repr(1 / 3),
    }  # fmt: skip
    assert (second["measured_peak_bytes"], second["trains_01"], second["probe"]) == ("390", "0", "0")
    assert list(ledger.read()) == [record(0), record(1, measured=390), record(2)]
    assert list(Ledger().read()) == []


def test_lines_reach_their_file_by_the_buffer_and_at_every_checkpoint(tmp_path: Path) -> None:
    ledger = ledger_of(1)
    ledger.keep_in(tmp_path / STEPS)
    size = (tmp_path / STEPS).stat().st_size
    ledger.add(record(1))
    assert (tmp_path / STEPS).stat().st_size == size  # a step makes no system call
    ledger.write(tmp_path / STEPS)
    ledger_of(2).write(whole := tmp_path / "whole.csv")
    assert (tmp_path / STEPS).read_bytes().replace(b",,", b",390,") == whole.read_bytes().replace(b",,", b",390,")
    for number in range(2, 2000):
        ledger.add(record(number))
    assert (tmp_path / STEPS).stat().st_size > 1000 * 40  # a reader sees a long epoch grow
    assert [step.step for step in ledger.read()] == list(range(2000))
    ledger.add(record(2000))
    assert [step.step for step in ledger.read()] == list(range(2001))


def test_without_a_folder_memory_stays_flat(tmp_path: Path) -> None:
    """Of a run that only checkpoints have lines of, what is past the buffer lies on the disk."""
    ledger = Ledger()
    tracemalloc.start()
    for number in range(8000):
        ledger.add(record(number))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ledger.write(tmp_path / STEPS)
    assert (tmp_path / STEPS).stat().st_size > 400_000
    assert held < 200_000


def test_a_resumed_file_is_cut_back_to_what_its_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / STEPS
    before = ledger_of(1)
    before.keep_in(path)
    state = before.state_dict()
    for number in (1, 2):
        before.add(record(number))
    before.write(path)  # a process that is killed may have written more
    with path.open("ab") as file:
        file.write(b"3,8")
    after = Ledger()
    after.load_state_dict(state)
    after.restore(path)
    after.keep_in(path)
    after.add(record(1, measured=390))
    after.add(record(2))
    after.write(path)
    ledger_of(3).write(tmp_path / "whole.csv")
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert after.state_dict() == ledger_of(3).state_dict()
    Ledger().keep_in(path)  # killed in its first epoch, a run begins anew
    assert path.read_bytes() == b""


@pytest.mark.parametrize("damage", ["gone", "short", "other"])
def test_lines_that_are_not_there_are_said_to_be_unknown(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / STEPS
    ledger_of(3).write(path)
    found = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(found[:-1] if damage == "short" else found.replace(b"390", b"391"))
    there = path.read_bytes() if path.exists() else None
    after = Ledger()
    after.load_state_dict(ledger_of(3).state_dict())
    after.restore(path)
    (note,) = caplog.messages
    assert note.startswith(f"note: {path} does not begin with the 3 steps of the checkpoint")
    assert note.endswith("the table begins again with step 3")
    after.keep_in(path)
    after.add(record(after.steps))
    assert [step.step for step in after.read()] == [3]
    assert (after.steps, after.unknown) == (4, 3)
    bak = tmp_path / f"{STEPS}.bak"
    assert (bak.read_bytes() if bak.exists() else None) == there  # whatever it is, it is not deleted
    after.write(path)
    again = Ledger()
    again.load_state_dict(after.state_dict())
    again.restore(path)
    assert ([step.step for step in again.read()], again.unknown) == ([3], 3)


def test_clock_adds_up_over_interruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    first = Clock()
    now[0] = 12.0
    with first.training():
        now[0] = 15.0
    saved = first.read()
    assert saved == {"wall_seconds": 5.0, "train_seconds": 3.0}
    now[0] = 1000.0  # another machine's
    second = Clock(**saved)
    now[0] = 1001.0
    with second.training():
        now[0] = 1003.0
    assert second.read() == {"wall_seconds": 8.0, "train_seconds": 5.0}
