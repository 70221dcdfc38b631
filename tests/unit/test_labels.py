"""How trials are named."""

import pytest
from rich.console import Console

from alast_tune.config import TrialConfig
from alast_tune.labels import differing, method_label, setting_labels
from alast_tune.results import TrialResult
from alast_tune.summary import summarise
from alast_tune.terminal import front_table


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ({"name": "alast", "trainable_blocks": 9}, "ALaST, K 9"),
        ({"name": "alast", "trainable_blocks": 9, "lora": {}}, "ALaST with LoRA, K 9"),
        ({"name": "full"}, "full fine-tuning"),
        ({"name": "head"}, "classifier only"),
        ({"name": "top_k"}, "top-k blocks"),
        ({"name": "bsr"}, "BSR, keep 0.7"),
        ({"name": "tome", "merge": 8}, "ToMe, merge 8"),
        ({"name": "tome", "target_flops": 0.5}, "ToMe"),
        ({"name": "tome", "merge": 8, "lora": {}}, "ToMe with LoRA, merge 8"),
        ({"name": "lora"}, "LoRA, rank 8"),
        ({"name": "reader", "read": "attentive"}, "side reader, read attentive"),
        ({"name": "apla"}, "APLA"),
        ({"name": "apla", "columns": 16}, "APLA, columns 16"),
    ],
)
def test_every_method_has_a_name_for_people(method: dict[str, object], label: str) -> None:
    config = TrialConfig.model_validate({"method": method})
    assert method_label(config, key=True) == label
    assert method_label(config) == label.split(",")[0]
    assert method_label(config, "paper", key=True) == "ALaST as in the paper"


def test_settings_are_a_few_words_each() -> None:
    floors = {"method/floors/early": 0.1, "method/floors/late": 0.5}
    assert setting_labels(floors) == ["early floor 0.1", "late floor 0.5"]
    assert setting_labels({"train/seed": 3, **floors, "method/floors/middle": 0.254}) == [
        "seed 3",
        "floors 0.1/0.25/0.5",
    ]
    texts = {"data/features": "none", "train/accumulate": "auto", "method/frozen_backward": "residual"}
    assert setting_labels(texts) == ["features none", "accumulate auto", "residual"]
    assert setting_labels({"way": "lora", "train/learning_rate": 1.234e-4, "train/batch_size": 32, "x/y": True}) == [
        "lora",
        "lr 0.00012",
        "batch 32",
        "y True",
    ]


def test_conditional_parameters_are_labelled_by_what_they_set() -> None:
    floors = {f"some/method/floors/{part}": 0.5 for part in ("early", "middle", "late")}
    settings = {"way": "lora", "lora/train/learning_rate": 1e-3, **floors}
    assert setting_labels(settings) == ["lora", "lr 0.001", "floors 0.5/0.5/0.5"]


def test_members_of_several_variants_differ_in_what_any_of_them_has() -> None:
    params = [{"way": "head", "head/train/learning_rate": 0.1}, {"way": "lora", "lora/method/rank": 4}]
    results = [
        TrialResult(n, "complete", TrialConfig(), one, (0.9 - n / 10, 1e12 - n * 1e11, 1e8), 1)
        for n, one in enumerate(params)
    ]
    front = summarise("s", results, (0.0, 2e12, 2e8))
    assert list(differing(front)) == ["way", "method/rank", "train/learning_rate"]
    assert [member.params for member in front.front] == params[::-1]  # by their names
    assert results[0].searched == {"way": "head", "train/learning_rate": 0.1}
    console = Console(width=200, record=True)
    console.print(front_table(front))
    console.print(front_table(front, wide=True))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["head,", "lr", "0.1"] in lines and ["lora,", "rank", "4"] in lines
    assert any(line[-3:] == ["lora", "4", "-"] for line in lines)
