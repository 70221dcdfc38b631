"""Several trials a card, on a cluster with pretended cards of two sizes, under a real Ray Tune."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.tune import RunConfig, TuneConfig
from ray.tune.search import Searcher

from alast_tune.config import SweepConfig
from alast_tune.tune.resources import CARD_LABEL, Packing, Request, cluster_nodes, placement, task_options
from tests.integration.harness import PATIENCE, added

GIB = 2**30
CARDS = {"small": 16 * GIB, "big": 64 * GIB}
TOGETHER = [2 * GIB, 6 * GIB, 40 * GIB]
"""Predicted peaks of trials that have room at a time: the first two on the small card."""
PEAKS = [*TOGETHER, 30 * GIB]
"""The last one has no room beside the third, and is too large for the small card."""


@pytest.fixture(scope="module")
def cards(ray_here: Cluster) -> Iterator[dict[str, Any]]:
    """The shared Ray with two nodes more, each with a pretended card."""
    with (
        added(ray_here, num_cpus=2, num_gpus=1, labels={CARD_LABEL: "16"}) as small,
        added(ray_here, num_cpus=2, num_gpus=1, labels={CARD_LABEL: "64"}) as big,
    ):
        yield {"small": small, "big": big}


class Sleeper(tune.Trainable):
    """A trial that stays until those that can be there with it have come."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config

    def step(self) -> dict[str, Any]:
        started, folder, peak = time.time(), Path(self._config["folder"]), self._config["peak"]
        (folder / str(peak)).touch()
        while peak in TOGETHER and not all((folder / str(other)).exists() for other in TOGETHER):
            assert time.time() - started < PATIENCE
            time.sleep(0.05)
        node = ray.get_runtime_context().get_node_id()
        return {"started": started, "ended": time.time(), "node": node, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True


class Queue(Searcher):
    """Hands trials out as long as there is room."""

    def __init__(self, packing: Packing, folder: Path) -> None:
        super().__init__()
        self._packing = packing
        self._folder = str(folder)
        self._peaks = list(PEAKS)
        self._out: dict[str, Request] = {}

    def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
        return not config

    def suggest(self, trial_id: str) -> Any:
        if not self._peaks:
            return Searcher.FINISHED
        if not self._packing.room:
            return None
        peak = self._peaks.pop(0)
        self._out[trial_id] = self._packing.place(peak)
        return {"peak": peak, "folder": self._folder, "resources": self._out[trial_id]}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._packing.release(self._out.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None: ...


def sweep_of(**options: Any) -> SweepConfig:
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    return SweepConfig.model_validate({"space": space} | options)


@pytest.mark.slow
def test_trials_share_cards_and_wait_for_one_that_is_taken(
    cards: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much of a card a trial takes is in tests/unit/tune/test_resources.py; here Ray keeps to it."""
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", str(len(PEAKS)))  # as a sweep does
    sweep = sweep_of()
    grid = tune.Tuner(
        tune.with_resources(Sleeper, placement),
        tune_config=TuneConfig(
            search_alg=Queue(Packing(sweep, cluster_nodes(sweep)), tmp_path),
            num_samples=len(PEAKS),
            reuse_actors=True,
        ),
        run_config=RunConfig(name="t", storage_path=str(tmp_path / "tune"), verbose=0),
    ).fit()
    assert grid.num_errors == 0
    found = {result.config["peak"] // GIB: result for result in grid}
    small, big = (cards[name].node_id for name in CARDS)
    assert {peak: result.metrics["node"] for peak, result in found.items()} == {2: small, 6: small, 40: big, 30: big}
    assert found[2].config["resources"]["gpu"] + found[6].config["resources"]["gpu"] <= 1
    assert found[30].metrics["started"] >= found[40].metrics["ended"]


@pytest.mark.slow
def test_a_node_that_comes_later_takes_the_place_of_a_lost_one(ray_here: Cluster) -> None:
    """As on spot machines: nobody has told the driver of it."""
    sweep = sweep_of()
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    card = {"num_cpus": 1, "num_gpus": 1, "labels": {CARD_LABEL: "80"}}
    with added(ray_here, **card) as lost:
        request = Packing(sweep, cluster_nodes(sweep)).place(70 * GIB)
        assert ray.get(where.options(**task_options(request)).remote(), timeout=PATIENCE) == lost.node_id
    with added(ray_here, **card) as later:
        assert ray.get(where.options(**task_options(request)).remote(), timeout=PATIENCE) == later.node_id
