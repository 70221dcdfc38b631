"""Several trials a card, on a cluster with pretended cards of two sizes, under a real Ray Tune."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
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

GIB = 2**30
CARDS = {"small": 16 * GIB, "big": 64 * GIB}
PEAKS = [peak * GIB for peak in (2, 6, 2, 40, 3, 6, 2, 2, 20, 2, 6, 3, 2, 2, 6, 2)]
SECONDS = 3.0


def add_node(cluster: Cluster, card: str) -> None:
    cluster.add_node(num_cpus=8, num_gpus=1, labels={CARD_LABEL: f"{CARDS[card] // GIB}"})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for name in CARDS:
        add_node(cluster, name)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


class Sleeper(tune.Trainable):
    """A trial that only takes its time; its worker is used again."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config = config

    def step(self) -> dict[str, Any]:
        started = time.time()
        time.sleep(SECONDS)
        node = ray.get_runtime_context().get_node_id()
        return {"started": started, "ended": time.time(), "node": node, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True


class Queue(Searcher):
    """Hands trials out as long as there is room."""

    def __init__(self, packing: Packing) -> None:
        super().__init__()
        self._packing = packing
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
        return {"peak": peak, "resources": self._out[trial_id]}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._packing.release(self._out.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None: ...


@dataclass
class Stay:
    """A trial's time on a card."""

    card: str
    peak: int
    share: float
    started: float
    ended: float


def sweep_of(**options: Any) -> SweepConfig:
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    return SweepConfig.model_validate({"space": space} | options)


def run(folder: Path, **options: Any) -> list[Stay]:
    sweep = sweep_of(**options)
    nodes = cluster_nodes(sweep)
    names = {node.id: name for node in nodes for name, size in CARDS.items() if node.card_bytes == size}
    grid = tune.Tuner(
        tune.with_resources(Sleeper, placement),
        tune_config=TuneConfig(search_alg=Queue(Packing(sweep, nodes)), num_samples=len(PEAKS), reuse_actors=True),
        run_config=RunConfig(name="t", storage_path=str(folder), verbose=0),
    ).fit()
    return [
        Stay(
            names[result.metrics["node"]],
            result.config["peak"],
            result.config["resources"]["gpu"],
            result.metrics["started"],
            result.metrics["ended"],
        )
        for result in grid
    ]


def at_a_time(stays: list[Stay]) -> list[list[Stay]]:
    """Those that are on a card together, whenever one more arrives."""
    return [[other for other in stays if other.started <= stay.started < other.ended] for stay in stays]


@pytest.mark.slow
def test_trials_share_cards_and_never_take_more_than_there_is(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", str(len(PEAKS)))  # as a sweep does
    alone, packed = run(tmp_path / "alone", gpus_per_trial=1), run(tmp_path / "packed")
    assert sorted(stay.peak for stay in packed) == sorted(PEAKS)
    for card, size in CARDS.items():
        for together in at_a_time([stay for stay in packed if stay.card == card]):
            assert sum(stay.peak for stay in together) <= size
            assert sum(stay.share for stay in together) <= 1
    assert {stay.card for stay in packed if stay.peak > CARDS["small"]} == {"big"}
    assert {stay.card for stay in packed} == set(CARDS)
    most = {name: max(map(len, at_a_time(stays))) for name, stays in (("alone", alone), ("packed", packed))}
    print(f"\n{len(PEAKS)} trials of {SECONDS:g} s, at a time at most {most}")
    print(f"one a card {seconds(alone):.1f} s, packed {seconds(packed):.1f} s")
    assert most["alone"] == 2 < most["packed"]


@pytest.mark.slow
def test_a_node_that_comes_later_takes_the_place_of_a_lost_one(cluster: Cluster) -> None:
    """As on spot machines: nobody has told the driver of it."""
    sweep = sweep_of()
    packing = Packing(sweep, cluster_nodes(sweep))
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    request = packing.place(40 * GIB)
    before = ray.get(where.options(**task_options(request)).remote(), timeout=60)
    (lost,) = [node for node in cluster.worker_nodes if node.node_id == before]
    cluster.remove_node(lost, allow_graceful=False)
    add_node(cluster, "big")
    after = ray.get(where.options(**task_options(request)).remote(), timeout=60)
    assert after != before and after in {node.node_id for node in cluster.worker_nodes}


def seconds(stays: list[Stay]) -> float:
    """From the first trial's start to the last one's end."""
    return max(stay.ended for stay in stays) - min(stay.started for stay in stays)
