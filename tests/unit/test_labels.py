"""How trials are named."""

import pytest

from alast_tune.config import TrialConfig
from alast_tune.labels import method_label, setting_labels


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
