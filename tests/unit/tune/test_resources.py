"""What a trial asks for, where it goes, and what is refused."""

import math
import random
from typing import Any

import pytest
import torch

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.resources import (
    CONTEXT_BYTES,
    MARGIN,
    PROCESS_BYTES,
    Node,
    Packing,
    Request,
    limit_memory,
    placement,
    task_options,
)

GIB = 2**30


def sweep(device: str = "auto", **options: Any) -> SweepConfig:
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    return SweepConfig.model_validate({"space": space, "trial": {"train": {"device": device}}} | options)


def on(*nodes: str) -> dict[str, str]:
    return {"ray.io/node-id": f"in({','.join(nodes)})"}


def card_node(name: str, gib: float, cards: int = 1, cpu: int = 16) -> Node:
    return Node(name, cpu=cpu, gpu=cards, memory=64 * GIB, card_bytes=gib * GIB)


def test_the_share_is_the_peak_with_margin_and_context_in_eighths() -> None:
    packing = Packing(sweep(), [card_node("a", 16)])
    for peak, share in ((0, 1 / 8), (1 * GIB - 1, 1 / 8), (1 * GIB + 1, 2 / 8), (6 * GIB, 5 / 8), (12 * GIB, 8 / 8)):
        assert packing.place(peak) == {"cpu": 1.0, "gpu": share, "memory": 0, "labels": {}}
        assert (share - 1 / 8) * 16 * GIB < peak * (1 + MARGIN) + CONTEXT_BYTES <= share * 16 * GIB


def test_alone_on_the_largest_card_a_trial_needs_no_margin_and_one_larger_still_is_refused() -> None:
    packing = Packing(sweep(), [card_node("small", 16), card_node("large", 24)])
    assert packing.place(23 * GIB) == {"cpu": 1.0, "gpu": 1.0, "memory": 0, "labels": on("large")}
    with pytest.raises(ConfigError) as error:
        packing.place(24 * GIB)
    assert str(error.value) == (
        "peak_bytes = 24.0 GiB: predicted, and 768 MiB for the process; the largest card has 24.0 GiB; "
        "lower train.batch_size, or raise train.accumulate"
    )


def test_each_goes_to_the_smallest_card_with_room_else_to_the_least_loaded() -> None:
    packing = Packing(sweep(), [card_node("big", 80), card_node("small", 16)])
    first, *others = [packing.place(6 * GIB) for _ in range(6)]
    assert (first["labels"], first["gpu"]) == (on("small"), 5 / 8)
    assert all((other["labels"], other["gpu"]) == (on("big"), 1 / 8) for other in others)
    assert packing.place(60 * GIB)["labels"] == on("big")  # it fits nowhere else, and waits
    waiting = packing.place(6 * GIB)
    assert waiting["labels"] == on("small")  # neither has room: 10/8 would be taken there, here 14/8
    packing.release(first)
    packing.release(waiting)
    assert packing.place(6 * GIB)["labels"] == on("small")


def test_nodes_whose_cards_are_labelled_are_found_by_that() -> None:
    """So that one that comes later may take the place of one that is gone."""
    labelled = [Node(name, 8, 1, card_bytes=24 * GIB, card_label=label) for name, label in (("a", "24"), ("b", "24.0"))]
    packing = Packing(sweep(), [*labelled, card_node("c", 80)])
    assert packing.place(GIB)["labels"] == {"gpu-memory-gib": "in(24,24.0)"}
    assert packing.place(60 * GIB)["labels"] == on("c")
    with_one_unlabelled = Packing(sweep(), [*labelled, card_node("d", 24), card_node("c", 80)])
    assert with_one_unlabelled.place(GIB)["labels"] == on("a", "b", "d")


def test_there_is_room_until_the_cards_or_the_cpus_are_taken() -> None:
    packing = Packing(sweep(), [card_node("a", 16, cards=2)])
    requests = []
    while packing.room:
        requests.append(packing.place(2 * GIB))  # a quarter
    assert len(requests) == 8
    packing.release(requests.pop())
    assert packing.room
    few = Packing(sweep(cpus_per_trial=4), [card_node("a", 80, cpu=9)])
    few.place(GIB)
    assert few.room
    few.place(GIB)
    assert not few.room


def test_cards_of_unknown_size_are_not_shared() -> None:
    packing = Packing(sweep(), [Node("a", cpu=8, gpu=2)])
    assert packing.place(GIB)["gpu"] == 1.0


def test_gpus_per_trial_wins() -> None:
    packing = Packing(sweep(gpus_per_trial=0.5), [card_node("a", 16), card_node("b", 80), Node("c", cpu=64)])
    requests = []
    while packing.room:
        requests.append(packing.place(50 * GIB))
    assert requests == 4 * [{"cpu": 1.0, "gpu": 0.5, "memory": 0, "labels": {}}]


@pytest.mark.parametrize("chosen", [{"device": "cpu"}, {"gpus_per_trial": 0}])
def test_without_cards_main_memory_is_asked_for(chosen: dict[str, Any]) -> None:
    packing = Packing(sweep(**chosen, cpus_per_trial=2), [card_node("a", 16, cpu=8), Node("b", 8, memory=16 * GIB)])
    request = packing.place(GIB)
    # A quarter of b, as of its CPUs, and of that three quarters: a node like b that joins later may have a little less.
    assert request == {"cpu": 2.0, "gpu": 0.0, "memory": 3 * GIB, "labels": {}}
    assert packing.place(5 * GIB)["memory"] == 7 * GIB
    assert packing.place(63 * GIB)["memory"] == 64 * GIB
    with pytest.raises(ConfigError, match=r"768 MiB for the process; the largest node has 64\.0 GiB"):
        packing.place(64 * GIB)
    packing.place(10 * GIB)
    assert not packing.room  # memory is taken, though there are CPUs


def test_memory_is_rounded_to_few_sizes() -> None:
    packing = Packing(sweep("cpu"), [Node("a", cpu=1e6, memory=1e15)])
    draw = random.Random(0)
    sizes = set()
    for peak in (draw.randrange(8 * GIB) for _ in range(1000)):
        wanted = peak * (1 + MARGIN) + PROCESS_BYTES
        sizes.add(memory := packing.place(peak)["memory"])
        assert wanted - 1 <= memory <= 1.25 * wanted
    assert len(sizes) <= 4 * math.log2(11 / 0.75) + 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cpus_per_trial": 9}, "cpus_per_trial = 9: the largest node has 8 CPUs"),
        ({"gpus_per_trial": 4}, "gpus_per_trial = 4.0: the largest node has 2 GPUs"),
    ],
)
def test_more_than_a_node_has_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        Packing(sweep(**options), [card_node("a", 16, cards=2, cpu=8), Node("b", cpu=4)])
    assert str(error.value) == line


def test_a_request_in_the_forms_of_tune_and_of_tasks() -> None:
    anywhere = Request(cpu=2.0, gpu=0.0, memory=GIB, labels={})
    there = Request(cpu=1.0, gpu=0.25, memory=0, labels=on("a", "b"))
    assert placement({"resources": anywhere}).required_resources == {"CPU": 2, "memory": GIB}
    assert placement({"resources": there}).required_resources == {"CPU": 1, "GPU": 0.25}
    assert placement({"resources": there}) == placement({"resources": dict(there)})
    assert placement({"resources": there}) != placement(
        {"resources": there | {"labels": on("a")}}
    )  # no worker for another
    assert task_options(there) == {
        "num_cpus": 1.0,
        "num_gpus": 0.25,
        "memory": 0,
        "label_selector": on("a", "b"),
    }


def test_a_process_is_kept_to_its_share_less_what_the_allocator_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    card = type("Card", (), {"total_memory": 16 * GIB})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    for share in (1.0, 0.0, 2.0):
        limit_memory(share)
    assert limits == []
    limit_memory(0.5)
    assert limits == [0.5 - 0.75 / 16]
