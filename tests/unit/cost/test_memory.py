"""Peak bytes: the prediction against MemTracker, and which steps are probed."""

import gc
import weakref
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import TrainConfig, TrialConfig
from alast_tune.cost.memory import MemoryMeter, rounded_peak, track_live_bytes
from alast_tune.cost.prediction import step_peak_bytes
from alast_tune.methods import Method, build_method


def setting(method_values: dict[str, Any], seed: int = 0) -> tuple[VisionTransformer, Any, Method, torch.optim.Adam]:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=48, depth=6, num_heads=3, num_classes=10)
    config = TrialConfig.model_validate({"method": method_values}).method
    method = build_method(config, model, TrainConfig(seed=seed))
    return model, config, method, torch.optim.Adam(method.parameters(), 1e-3)


def train(method: Method, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    method.forward(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_tracker_counts_a_known_peak() -> None:
    """A weight, an input and two saved products of known size."""
    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(1024, 256)
    with track_live_bytes(model, optimizer, x) as measured:
        y = model(x)
        z = y * 2
        del y, z
    assert measured[0] == 4 * (256 * 256 + 3 * 1024 * 256)


def test_only_a_heavier_plan_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    from alast_tune.cost import memory

    probes = []
    original = memory.track_live_bytes
    monkeypatch.setattr(memory, "track_live_bytes", lambda *args: probes.append(1) or original(*args))
    model, config, method, optimizer = setting({"name": "full"})
    meter = MemoryMeter(model)

    def step(batch: int) -> None:
        method.begin_step(0)
        images = torch.randn(batch, 3, 32, 32)
        with meter.step(lambda: step_peak_bytes(model, config, method.plan, 32, batch, optimizer), optimizer, images):
            train(method, optimizer, images)

    for _ in range(6):
        step(8)
    assert len(probes) == 2  # the first, and the first with the optimizer's moments in place
    step(16)
    assert len(probes) == 3


def test_peak_is_the_heaviest_step_and_steady_peak_the_median() -> None:
    model, config, method, optimizer = setting({"name": "full"})
    meter = MemoryMeter(model)

    def step(batch: int) -> None:
        method.begin_step(0)
        images = torch.randn(batch, 3, 32, 32)
        with meter.step(lambda: step_peak_bytes(model, config, method.plan, 32, batch, optimizer), optimizer, images):
            train(method, optimizer, images)

    assert meter.peak_bytes == meter.steady_peak_bytes == 0
    for batch in (8, 8, 32, 8, 8, 8, 8):
        step(batch)
    with track_live_bytes(model, optimizer, images := torch.randn(32, 3, 32, 32)) as heavy:
        train(method, optimizer, images)
    with track_live_bytes(model, optimizer, images := torch.randn(8, 3, 32, 32)) as light:
        train(method, optimizer, images)
    assert meter.peak_bytes == pytest.approx(heavy[0], rel=0.01)
    assert meter.steady_peak_bytes == pytest.approx(light[0], rel=0.1)
    twin = MemoryMeter(model)
    twin.load_state_dict(meter.state_dict())
    assert (twin.peak_bytes, twin.steady_peak_bytes) == (meter.peak_bytes, meter.steady_peak_bytes)


def test_of_many_different_peaks_few_are_kept_apart() -> None:
    """However many steps there are: within a thousandth, a thousand kinds between a peak and four times as much."""
    peaks = range(1 << 30, 1 << 32, 99_991)
    assert all(abs(rounded_peak(peak) - peak) * 1000 <= peak for peak in peaks)
    assert len({rounded_peak(peak) for peak in peaks}) == 2 * 512 + 1
    assert [rounded_peak(peak) for peak in (0, 1, 1023)] == [0, 1, 1023]


def test_a_model_that_was_tracked_is_freed() -> None:
    """A worker that takes the next trial must not keep the one before."""
    model, _, method, optimizer = setting({"name": "full"})
    images = torch.randn(2, 3, 32, 32)
    with track_live_bytes(model, optimizer, images):
        train(method, optimizer, images)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, method, optimizer
    gc.collect()
    assert [parameter() for parameter in parameters if parameter() is not None] == []
