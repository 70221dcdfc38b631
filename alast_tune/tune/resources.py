"""What a trial asks of the cluster: the share of a card that its predicted peak needs; without cards, main memory.

Nodes whose cards are of one size form a pool. A trial goes to the pool of the smallest cards with room for it, so that
large ones stay free for what fits nowhere else. Ray sees to the rest: it starts nothing before the share, the memory
and the CPUs are free. Cards are measured, once a sweep; the label ``gpu-memory-gib`` of a node overrules that
(``ray start --labels gpu-memory-gib=24``), and lets a node that comes later take the place of one that is gone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

import ray
import torch
from ray.autoscaler.sdk import request_resources
from ray.tune import PlacementGroupFactory

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.plots import human_bytes
from alast_tune.tune.cluster import Stop

MARGIN = 0.25
"""What a trial gets on top of its predicted peak, as a share of it: budgets may grow, and allocators waste some."""

CONTEXT_BYTES = 768 << 20
"""Of a card, for each process: CUDA's context, kernels and libraries, which torch's allocator does not count."""

PROCESS_BYTES = 768 << 20
"""Of main memory, for each process: what a worker with torch and timm has for itself (0.6 GiB, measured)."""

FAIR_SHARE = 0.75
"""Of the main memory that goes with its CPUs: what each trial asks for at least; not all, since Ray counts what is free
as a node starts, and nodes of one kind that join later often have a little less than the first."""

GROWTH_SECONDS = 1800.0
"""How long the first node of a cluster that grows may take: machines have to be found, started and set up."""

PARTS = 8
"""A card is handed out in eighths: requests are few, so that Tune has workers at hand which it can use again."""

CARD_LABEL = "gpu-memory-gib"
"""Label of a node: memory of each of its cards, GiB."""

NODE_LABEL = "ray.io/node-id"
"""Label of a node that Ray sets."""


_Kind = Literal["cpu", "gpu", "memory"]
_KINDS: tuple[_Kind, ...] = get_args(_Kind)


class Request(TypedDict):
    """What one trial takes; plain values, which travel in the trial's configuration."""

    cpu: float
    gpu: float
    """Share of a card, or so many."""
    memory: int
    """Main memory, bytes; 0 on cards, where it is not counted."""
    labels: dict[str, str]
    """What Ray shall find on a node that it may run on; empty: on any."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    id: str
    cpu: float
    gpu: float = 0.0
    memory: float = 0.0
    """Main memory that Ray hands out, bytes."""
    card_bytes: float = math.inf
    """Memory of its smallest card; infinite if nobody knows."""
    card_label: str | None = None
    """Its label for that, if it has one."""


@dataclass
class _Pool:
    """Nodes that are as good as one another."""

    labels: dict[str, str]
    """What tells them from others; empty if there are none."""
    most: float
    """Bytes that one trial can get: of a card, or of a node."""
    total: dict[_Kind, float]
    """CPUs, GPUs and bytes of main memory."""
    taken: dict[_Kind, float] = field(default_factory=lambda: dict.fromkeys(_KINDS, 0.0))

    def load_with(self, request: Request) -> float:
        """Share of the scarcest resource that is taken once the request is; above 1, it has to wait."""
        return max((self.taken[kind] + request[kind]) / self.total[kind] for kind in _KINDS if request[kind])


class Packing:
    """Says where each trial goes and what it takes there, and counts what is taken.

    Args:
        sweep: ``cpus_per_trial``, ``gpus_per_trial`` (wins over any prediction), and whether trials want a card.
        nodes: of the cluster.

    Raises:
        ConfigError: no node has what every trial takes.
    """

    def __init__(self, sweep: SweepConfig, nodes: Sequence[Node]) -> None:
        self._cpus = sweep.cpus_per_trial
        self._gpus = sweep.gpus_per_trial  # None: the share that the peak needs
        if self._gpus is None and not (_by_share(sweep) and any(node.gpu for node in nodes)):
            self._gpus = 0.0
        self._overhead = PROCESS_BYTES if self._gpus == 0 else CONTEXT_BYTES
        nodes = _with_enough("cpus_per_trial", self._cpus, "cpu", nodes)
        if self._gpus is None:
            nodes = [node for node in nodes if node.gpu]
            sizes = sorted({node.card_bytes for node in nodes})
            self._pools = [_pool([node for node in nodes if node.card_bytes == size], size) for size in sizes]
        elif self._gpus > 0:
            self._pools = [_pool(_with_enough("gpus_per_trial", self._gpus, "gpu", nodes), math.inf)]
        else:
            self._pools = [_pool(nodes, max(node.memory for node in nodes))]
            self._fair_bytes = int(FAIR_SHARE * min(node.memory * self._cpus / node.cpu for node in nodes))
        if len(self._pools) == 1:
            self._pools[0].labels = {}

    @property
    def room(self) -> bool:
        """Whether there is room for one more trial, if it is a small one."""
        return any(pool.load_with(self._request(pool, 0)) <= 1 for pool in self._pools)

    def fits(self, peak_bytes: int) -> bool:
        """Whether a trial of this predicted peak could start now."""
        return any(
            peak_bytes + self._overhead <= pool.most and pool.load_with(self._request(pool, peak_bytes)) <= 1
            for pool in self._pools
        )

    def place(self, peak_bytes: int) -> Request:
        """Take what a trial needs: of the smallest cards with room for it, else of those with the least load.

        Args:
            peak_bytes: as predicted.

        Raises:
            ConfigError: it fits nowhere, not even alone.
        """
        largest = self._pools[-1]
        if peak_bytes + self._overhead > largest.most:
            raise ConfigError(
                "peak_bytes",
                human_bytes(peak_bytes),
                f"predicted, and {human_bytes(self._overhead)} for the process; the largest "
                f"{'node' if self._gpus == 0 else 'card'} has {human_bytes(largest.most)}; "
                "lower train.batch_size, or raise train.accumulate",
            )
        # Alone on the largest card, it may do without the margin.
        pools = [pool for pool in self._pools if self._wanted(peak_bytes) <= pool.most] or [largest]
        offers = [(pool, self._request(pool, peak_bytes)) for pool in pools]
        roomy = [(pool, request) for pool, request in offers if pool.load_with(request) <= 1]
        pool, request = roomy[0] if roomy else min(offers, key=lambda offer: offer[0].load_with(offer[1]))
        for kind in _KINDS:
            pool.taken[kind] += request[kind]
        return request

    def release(self, request: Request) -> None:
        """Give back what a trial had."""
        pool = next(pool for pool in self._pools if pool.labels == request["labels"])
        for kind in _KINDS:
            pool.taken[kind] -= request[kind]

    def _wanted(self, peak_bytes: int) -> float:
        return peak_bytes * (1 + MARGIN) + self._overhead

    def _request(self, pool: _Pool, peak_bytes: int) -> Request:
        gpu, memory, wanted = self._gpus, 0, min(self._wanted(peak_bytes), pool.most)
        if gpu is None:
            gpu = 1.0 if pool.most == math.inf else math.ceil(PARTS * wanted / pool.most) / PARTS
        elif gpu == 0:
            # Most of what goes with its CPUs: few others could use it, and workers that ask alike are used again.
            memory = min(max(self._fair_bytes, _rounded_up(int(wanted))), int(pool.most))
        return {"cpu": float(self._cpus), "gpu": gpu, "memory": memory, "labels": pool.labels}


def _by_share(sweep: SweepConfig) -> bool:
    return sweep.gpus_per_trial is None and sweep.trial.train.device != "cpu"


def _with_enough(setting: str, least: float, kind: str, nodes: Sequence[Node]) -> list[Node]:
    able = [node for node in nodes if getattr(node, kind) >= least]
    if not able:
        most = max(getattr(node, kind) for node in nodes)
        raise ConfigError(setting, least, f"the largest node has {most:g} {kind.upper()}s")
    return able


def _pool(nodes: Sequence[Node], most: float) -> _Pool:
    total = {kind: sum(getattr(node, kind) for node in nodes) for kind in _KINDS}
    known = sorted({node.card_label for node in nodes if node.card_label})
    ids = [node.id for node in nodes]
    labels = {CARD_LABEL: known} if all(node.card_label for node in nodes) else {NODE_LABEL: ids}
    return _Pool({name: f"in({','.join(values)})" for name, values in labels.items()}, most, total)


def _rounded_up(size: int) -> int:
    """To three binary digits: at most a quarter more, and few different sizes."""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


def cluster_nodes(sweep: SweepConfig) -> list[Node]:
    """List the cluster's nodes; a task on each measures its cards, where the sweep needs to know and no label says."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    measure = ray.remote(num_cpus=0, max_calls=1)(_smallest_card)  # max_calls: its process, and its context, go
    sizes = {
        node["NodeID"]: measure.options(label_selector={NODE_LABEL: node["NodeID"]}).remote()
        for node in alive
        if _by_share(sweep) and node["Resources"].get("GPU") and CARD_LABEL not in node["Labels"]
    }
    return [
        Node(
            node["NodeID"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["Resources"].get("memory", 0.0),
            ray.get(sizes[node["NodeID"]])
            if node["NodeID"] in sizes
            else float(node["Labels"].get(CARD_LABEL, math.inf)) * 2**30,
            node["Labels"].get(CARD_LABEL),
        )
        for node in alive
    ]


def packing_of(sweep: SweepConfig, stop: Stop, say: Callable[[str], None]) -> Packing:
    """Plan for the cluster's nodes; a sweep that says how many trials it wants at a time waits for the first one.

    Ray's autoscaler adds nodes for what is asked of it, and a driver cannot know which it could add.

    Raises:
        ConfigError: no node has what every trial takes.
    """
    late = time.monotonic() + GROWTH_SECONDS
    asked = False
    try:
        while True:
            try:
                return Packing(sweep, cluster_nodes(sweep))
            except ConfigError as error:
                if sweep.concurrent is None or time.monotonic() > late:
                    raise
                if not asked:
                    say(f"{error}; waiting for one that has more, {GROWTH_SECONDS / 60:.0f} minutes at most")
                    cards = sweep.gpus_per_trial or float(sweep.trial.train.device == "cuda")
                    bundle = {"CPU": float(sweep.cpus_per_trial)} | ({"GPU": cards} if cards else {})
                    request_resources(bundles=[bundle])
                    asked = True
            stop.check()
            time.sleep(1)
    finally:
        if asked:
            request_resources(bundles=[])  # from here on trials ask


def _smallest_card() -> float:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # a task that asks for no card is shown none
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return min((float(card.total_memory) for card in cards), default=math.inf)


def placement(config: dict[str, Any]) -> PlacementGroupFactory:
    """Turn the request in a trial's configuration (``resources``) into Tune's form."""
    request: Request = config["resources"]
    bundle = {"CPU": request["cpu"], "GPU": request["gpu"], "memory": request["memory"]}
    return PlacementGroupFactory([bundle], bundle_label_selector=[request["labels"]])


def task_options(request: Request) -> dict[str, Any]:
    """Turn a request into the options of a Ray task."""
    return {
        "num_cpus": request["cpu"],
        "num_gpus": request["gpu"],
        "memory": request["memory"],
        "label_selector": request["labels"],
    }


def limit_memory(share: float) -> None:
    """Keep torch, in this process, to its share of the card, so that it cannot take a neighbour's; no card: nothing."""
    if torch.cuda.is_available() and 0 < share < 1:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT_BYTES / total))
