"""A run's name says which method it is and what its sweep varies, in forty characters."""

from typing import Any

import pytest

from alast_tune.config import TrialConfig
from alast_tune.tracking.names import LONGEST, run_name
from tests.unit.every_method import METHODS


def named(method: dict[str, Any], params: dict[str, Any] | None = None, **settings: Any) -> str:
    return run_name(13, TrialConfig.model_validate({"method": method, **settings}), params or {})


CASES: list[tuple[dict[str, Any], str]] = [
    ({"name": "full"}, "0013 full"),
    ({"name": "head"}, "0013 head"),
    ({"name": "top_k", "count": 4}, "0013 top_k 4 blocks"),
    ({"name": "top_k", "blocks": [0, 5, 11]}, "0013 top_k blocks 0,5,11"),
    ({"name": "bsr", "keep": 0.7}, "0013 bsr 3 blocks keep .7"),
    ({"name": "tome", "merge": 8}, "0013 tome r8"),
    ({"name": "tome", "merge": [8, 0, 4]}, "0013 tome r8,0,4"),
    ({"name": "tome", "target_flops": 0.65}, "0013 tome flops .65"),
    ({"name": "tome", "merge_once_in": 6}, "0013 tome once in 6 .5"),
    ({"name": "tome", "merge_once_in": 0, "merge_share": 0.25, "lora": {}}, "0013 tome once in 0 .25 lora r8"),
    ({"name": "lora", "rank": 16}, "0013 lora r16"),
    ({"name": "apla"}, "0013 apla"),
    ({"name": "apla", "columns": 64}, "0013 apla 64 columns"),
    ({"name": "apla", "blocks": [9, 10, 11]}, "0013 apla blocks 9,10,11"),
    ({"name": "reader"}, "0013 reader linear"),
    ({"name": "alast"}, "0013 alast K9 keep .6"),
    ({"name": "alast", "reading": "paper", "trainable_blocks": 3}, "0013 alast paper K3"),
    ({"name": "alast", "lora": {"rank": 4}}, "0013 alast K9 keep .6 lora r4"),
]


@pytest.mark.parametrize(("method", "name"), CASES)
def test_every_method_has_its_words(method: dict[str, Any], name: str) -> None:
    assert named(method) == name


def test_no_method_is_without_a_case() -> None:
    assert {method["name"] for method, _ in CASES} == {name.removeprefix("lora+") for name in METHODS}


def test_what_the_sweep_varies_follows_as_far_as_there_is_room() -> None:
    method = {"name": "alast", "target_budget": 0.4567, "floors": {"early": 0.25}, "frozen_backward": "residual"}
    varied = {"method/target_budget": 0.4567, "train/learning_rate": 3e-4}
    train = {"learning_rate": 3e-4, "batch_size": 32}
    assert named(method, varied, train=train) == "0013 alast K9 keep .46 lr 3e-4"
    floors = {"method/floors/early": 0.25, "method/floors/late": 0.1}
    assert named(method, floors) == "0013 alast K9 keep .46 floors .25/.1/.1"
    more = varied | floors | {"method/frozen_backward": "residual", "train/batch_size": 32}
    name = named(method, more, train=train)
    assert name == "0013 alast K9 keep .46 floors .25/.1/.1" and len(name) <= LONGEST  # else half a setting at its end
    assert named(method, {"train/batch_size": 32, "method/frozen_backward": "residual"}, train=train) == (
        "0013 alast K9 keep .46 batch 32 residual"
    )


def test_variants_go_by_their_names_and_switches_by_theirs() -> None:
    assert named({"name": "head"}, {"method": "head", "data": "night"}) == "0013 head night"
    assert named({"name": "head"}, {"data/features": "none"}) == "0013 head features none"
    assert named({"name": "alast"}, {"method/train_embeddings": False}) == "0013 alast K9 keep .6 no embeddings"
    assert len(named({"name": "top_k", "blocks": list(range(40))})) <= LONGEST


@pytest.mark.parametrize(("baseline", "words"), [("full", "full"), ("paper", "alast paper")])
def test_baselines_go_by_theirs(baseline: str, words: str) -> None:
    assert run_name(1, TrialConfig(), {"train/learning_rate": 1e-3}, baseline) == f"0001 {words}"


def test_a_conditional_parameter_is_said_as_what_it_sets() -> None:
    params = {"way": "lora", "lora/method/rank": 4, "lora/train/learning_rate": 3e-4}
    method, train = {"name": "lora", "rank": 4}, {"learning_rate": 3e-4}
    assert named(method, params, train=train) == "0013 lora r4 lr 3e-4"
