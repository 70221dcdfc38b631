"""Micro-batches that follow from a limit of memory: the fewest that keep it, in the forecast and in the run alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ByteSize

from alast_tune.config import SweepConfig, TrainConfig, TrialConfig, parse
from alast_tune.cost import StepCosts
from alast_tune.errors import ConfigError, MemoryLimitError
from alast_tune.methods import build_method
from alast_tune.micro_batches import micro_batches
from alast_tune.optimizers import build_optimizer
from alast_tune.run import Run
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.space import trial_config
from tests.unit import tiny
from tests.unit.every_method import vit

BATCH = 11


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize(
    "values", [{"name": "full"}, {"name": "lora"}, {"name": "head"}, {"name": "alast", "trainable_blocks": 2}],
    ids=lambda values: values["name"],
)  # fmt: skip
def test_as_few_as_keep_the_limit(values: dict[str, Any], checkpoint_blocks: bool) -> None:
    options: dict[str, Any] = {"accumulate": "auto", "checkpoint_blocks": checkpoint_blocks}
    config = TrialConfig.model_validate({"method": values, "train": options}).method
    method = build_method(config, vit(), TrainConfig(**options))
    optimizer, costs = build_optimizer(TrainConfig(), method), StepCosts(method.model, 32)
    plans = [method.plan]

    def found(limit: int) -> int:
        train = TrainConfig(**options, max_memory=ByteSize(limit))
        return micro_batches(train, costs, config, plans, BATCH, optimizer)

    peaks = [costs.step(config, method.plan, BATCH, optimizer, "fp32", n).peak_bytes for n in range(1, BATCH + 1)]
    for limit in {peak + more for peak in peaks for more in (-1, 0, 1)}:
        keeping = [number for number, peak in enumerate(peaks, start=1) if peak <= limit]
        if keeping:
            assert found(limit) == keeping[0]
            continue
        with pytest.raises(MemoryLimitError, match=r"^train.max_memory = .*: even one image at a time is ") as refused:
            found(limit)
        assert refused.value.peak_bytes == peaks[-1] > limit


def limited(pictures: Path, method: dict[str, Any], **train: Any) -> TrialConfig:
    """A limit with room for about half of the batch."""
    whole = tiny.trial(pictures, method, **train)
    some, least = (Forecast().costs(tiny.trial(pictures, method, accumulate=n, **train)) for n in (3, 8))
    assert least.peak_bytes < some.peak_bytes < Forecast().costs(whole).peak_bytes
    return tiny.trial(pictures, method, accumulate="auto", max_memory=some.peak_bytes, **train)


@pytest.mark.parametrize("method", [{"name": "full"}, tiny.ALAST], ids=lambda method: method["name"])
def test_a_run_splits_as_its_forecast_says_and_its_steps_keep_the_limit(
    two_classes: Path, method: dict[str, Any]
) -> None:
    config = limited(two_classes, method)
    run = Run(config)
    report, parts = run.train_epoch(), 8 // run.micro_batch(run.method, run._optimizer)
    assert config.train.max_memory is not None
    most = max(record.predicted_peak_bytes for record in run.meter.ledger.read())
    assert most <= config.train.max_memory * (1.02 if method["name"] == "alast" else 1)  # whose images are foreseen
    by_hand = tiny.trial(two_classes, method, accumulate=-(-8 // run.micro_batch(run.method, run._optimizer)))
    assert parts > 1 and Run(by_hand).train_epoch().train_loss == report.train_loss
    assert Forecast().costs(config) == Forecast().costs(by_hand)


def test_a_resumed_run_goes_on_with_the_parts_that_it_began_with(two_classes: Path, tmp_path: Path) -> None:
    config = limited(two_classes, tiny.ALAST)
    run, resumed = Run(config), Run(config)
    run.train_epoch()
    run.save(tmp_path)
    for key in run._splitting._parts:
        resumed._splitting._parts[key] = 8  # as if another machine had come to this
    resumed.load(tmp_path)
    assert resumed.train_epoch().train_loss == run.train_epoch().train_loss
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"accumulate": "auto"}, "train.accumulate = auto: there is no limit that it could keep; set train.max_memory"),
        ({"max_memory": "1MiB"}, "train.max_memory = 1.0MiB: the images of train.accumulate = 1 are predicted to take"),
        ({"accumulate": "auto", "max_memory": "1MB"}, "train.max_memory = 976.6KiB: even one image at a time is"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_trains(
    two_classes: Path, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        Run(tiny.trial(two_classes, {"name": "full"}, **train))
    assert str(refused.value).startswith(message)


def test_in_a_sweep_its_own_limit_is_kept(two_classes: Path) -> None:
    trial = tiny.trial(two_classes, {"name": "lora"}, accumulate="auto").given_values()
    space = {"method/rank": {"type": "int", "low": 1, "high": 4}}
    with pytest.raises(ConfigError, match=r"train.accumulate = auto: there is no limit .* give --max-memory"):
        parse(SweepConfig, {"trial": trial, "space": space})
    sweep = parse(SweepConfig, {"trial": trial, "space": space, "max_memory": "3MiB"})
    for baseline in (None, "full"):
        assert trial_config(sweep, {"method/rank": 2}, baseline).train.max_memory == 3 << 20
    own = parse(SweepConfig, {"trial": trial | {"train": {"accumulate": "auto", "max_memory": 5}}, "space": space})
    assert trial_config(own, {"method/rank": 2}).train.max_memory == 5
    varied = {"train/accumulate": {"type": "categorical", "choices": [1, "auto"]}}
    plain = trial | {"train": {}}
    with pytest.raises(ConfigError, match=r"space.train/accumulate = auto: "):
        parse(SweepConfig, {"trial": plain, "space": varied})
    sweep = parse(SweepConfig, {"trial": plain, "space": varied, "max_memory": "3MiB"})
    limits = [trial_config(sweep, {"train/accumulate": value}).train.max_memory for value in (1, "auto")]
    assert limits == [None, 3 << 20]
