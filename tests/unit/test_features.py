"""Features kept in a file: the same training as on images, a fraction of the work, all of it counted."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alast_tune.config import TrialConfig, parse
from alast_tune.cost import STEPS
from alast_tune.errors import ConfigError
from alast_tune.features import _hash_weights
from alast_tune.results import EpochReport
from alast_tune.run import Run
from alast_tune.train import fit
from alast_tune.tune.forecast import Forecast
from tests.unit.kinds import KINDS, small
from tests.unit.tiny import DEPTH

TinyTrial = Callable[..., TrialConfig]

METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "the classifier": ({"name": "head"}, DEPTH),
    "the final norm": ({"name": "full", "from_block": DEPTH}, DEPTH),
    "whole blocks": ({"name": "full", "from_block": 3}, 3),
    "blocks that are named": ({"name": "top_k", "blocks": [5]}, 5),
    "adapters": ({"name": "lora", "from_block": 4}, 4),
    "a reader": ({"name": "reader"}, DEPTH),
    "projections": ({"name": "apla", "from_block": 2}, 2),
    "fewer tokens": ({"name": "bsr", "blocks": [4, 5]}, 4),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cached(config: TrialConfig, **data: Any) -> TrialConfig:
    values = config.given_values()
    return parse(TrialConfig, values | {"data": values["data"] | {"features": "cache"} | data})


def results(report: EpochReport) -> list[float]:
    return [report.train_loss, report.validation_loss, report.accuracy]


@pytest.mark.parametrize(("method", "start"), METHODS.values(), ids=METHODS)
def test_training_on_features_equals_training_on_images(
    tiny_trial: TinyTrial, tmp_path: Path, method: dict[str, Any], start: int
) -> None:
    config = tiny_trial(method)
    plain = list(fit(config))
    kept = list(fit(cached(config), tmp_path / "run"))
    for one, other in zip(plain, kept, strict=True):
        assert results(other) == pytest.approx(results(one), rel=1e-5)
    assert kept[-1].tokens[:start] == (0,) * start
    if start < DEPTH:
        assert kept[-1].tokens[start:] == plain[-1].tokens[start:]
    assert kept[-1].cost.train_flops < plain[-1].cost.train_flops


ON_IMAGES: dict[str, dict[str, Any]] = {
    "everything trains": {"name": "full"},
    "blocks decide at every step": {"name": "alast", "trainable_blocks": 2, "from_block": 3},
    "tokens are merged below": {"name": "tome", "merge": 2, "from_block": 3},
}


@pytest.mark.parametrize(
    ("method", "start"),
    [*METHODS.values(), *((method, 0) for method in ON_IMAGES.values())],
    ids=[*METHODS, *ON_IMAGES],
)
def test_auto_begins_with_features_wherever_that_is_possible(
    tiny_trial: TinyTrial, method: dict[str, Any], start: int
) -> None:
    config = cached(tiny_trial(method, epochs=1), features="auto")
    run = Run(config)
    assert (run.method.plan.start, run._begins_at) == (start, start)
    assert Forecast().costs(config).train_flops > 0
    assert math.isfinite(run.train_epoch().train_loss)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("method", [method for method, _ in METHODS.values()], ids=METHODS)
def test_flops_and_peak_are_those_of_the_run_and_known_before(
    tiny_trial: TinyTrial, tmp_path: Path, method: dict[str, Any], share: float
) -> None:
    if method["name"] == "reader":
        share = 1.0  # it takes no others
    config = cached(tiny_trial(method, epochs=1, token_keep=share))
    foreseen = Forecast().costs(config)
    report = next(iter(fit(config, tmp_path / "run")))
    assert foreseen.train_flops == report.cost.train_flops
    # On few tokens the pass over the images may take most, before there are the moments that it is foreseen with.
    assert foreseen.peak_bytes == pytest.approx(report.cost.peak_bytes, rel=0.01 if share == 1 else 0.1)
    rows = list(csv.DictReader((tmp_path / "run" / STEPS).read_text().splitlines()))
    measured = [row for row in rows if row["measured_peak_bytes"]]
    assert int(measured[-1]["predicted_peak_bytes"]) == pytest.approx(
        int(measured[-1]["measured_peak_bytes"]), rel=0.01
    )


def test_a_pass_over_the_images_is_counted_as_torch_counts_it(tiny_trial: TinyTrial) -> None:
    run = Run(cached(tiny_trial({"name": "full", "from_block": 3})))
    with FlopCounterMode(display=False) as counter:
        run._keep_features()
    samples = 2  # an image of each split, by which the shapes are found
    assert counter.get_total_flops() == run.meter.read().train_flops * (32 + 16 + samples) // 32


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_trial: TinyTrial, tmp_path: Path) -> None:
    config = cached(tiny_trial({"name": "full", "from_block": 3}, epochs=3))
    whole = list(fit(config, tmp_path / "whole"))
    begun = fit(config, tmp_path / "parted")
    next(begun)
    del begun
    resumed = list(fit(config, tmp_path / "parted"))
    assert [results(report) for report in resumed] == [results(report) for report in whole[1:]]
    assert resumed[-1].cost.train_flops == whole[-1].cost.train_flops


def test_runs_that_begin_alike_share_a_file_and_others_do_not(tiny_trial: TinyTrial, tmp_path: Path) -> None:
    def files() -> int:
        return len(list((tmp_path / "cache").rglob("*.f32")))

    def train(method: dict[str, Any], **settings: Any) -> None:
        Run(cached(tiny_trial(method, epochs=1, **settings))).train_epoch()

    train({"name": "lora", "from_block": 4})
    assert files() == 2  # to train and to validate on
    train({"name": "full", "from_block": 4}, learning_rate=1e-4)
    assert files() == 2
    train({"name": "full", "from_block": 3})
    assert files() == 4
    train({"name": "full", "from_block": 4}, precision="bf16")
    assert files() == 6
    train({"name": "full", "from_block": 4}, seed=1)  # draws other weights
    assert files() == 8


def test_the_same_weights_in_another_architecture_make_other_features() -> None:
    names = ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224")  # OpenAI's weights are of the second
    plain, quick = (small(name, KINDS[names[1]]) for name in names)
    quick.load_state_dict(plain.state_dict())
    assert _hash_weights(plain, 1) == _hash_weights(small(names[0], KINDS[names[1]]), 1) != _hash_weights(quick, 1)


def test_views_are_augmentations_that_take_turns(tiny_trial: TinyTrial) -> None:
    run = Run(cached(tiny_trial({"name": "head"}, epochs=5), augment="paper", views=2))
    run._keep_features()
    assert run._features is not None
    first, second = (view[0][0] for view in run._features.views)
    assert not torch.equal(first, second)
    steps = 32 * 2 * run.meter.costs(64).trunk_flops(run.method.config, run.method.plan)
    assert run.meter.read().train_flops == steps
    orders = [run._loader(epoch).dataset for epoch in range(4)]
    assert orders[0] is orders[2] is run._features.views[0]
    assert orders[1] is orders[3] is run._features.views[1]


@pytest.mark.parametrize(
    ("method", "data", "message"),
    [
        ({"name": "full"}, {}, "data.features = cache: full trains from the first block on; set method.from_block"),
        ({"name": "alast", "trainable_blocks": 3}, {}, "data.features = cache: alast decides anew at every step"),
        ({"name": "tome", "merge": 2, "from_block": 3}, {}, "data.features = cache: tome lets more than tokens"),
        ({"name": "head"}, {"augment": "paper"}, "data.augment = paper: .*set data.views"),
        ({"name": "head"}, {"views": 2}, "data.views = 2: there is nothing to have views of without data.augment"),
    ],
    ids=["nothing below", "tokens vary", "sizes flow", "one augmentation", "no augmentation"],
)
def test_what_cannot_be_kept_is_refused(
    tiny_trial: TinyTrial, method: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Run(cached(tiny_trial(method), **data)).train_epoch()


def test_a_folder_that_cannot_be_written_is_named(
    tiny_trial: TinyTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ConfigError, match=r"data.features = cache: 0.0 GiB of features cannot be kept .*XDG_CACHE_HOME"
    ):
        Run(cached(tiny_trial({"name": "head"}), cache="none")).train_epoch()
