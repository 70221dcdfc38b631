"""The paper's tables as data: whole, as printed, and checked against what the paper says of itself."""

import statistics

import pytest

from alast_tune.config import ModelConfig
from alast_tune.models import create_model
from alast_tune.reports.paper import FULL, MEASURES, read_paper

PAPER = read_paper()
METHODS = {"FT head", FULL, "FT top-3", "ToMe", "BSR", "LoRA", "ALaST"}
DATASETS = {2: "Food-101", 3: "CIFAR-100", 7: "Flower-102"}
TIMM = {"DeiT-T": "deit_tiny_patch16_224", "DeiT-S": "deit_small_patch16_224", "ViT-B": "vit_base_patch16_224"}


def test_every_table_is_there_and_whole() -> None:
    assert [table.table for table in PAPER.tables] == [2, 3, 4, 5, 6, 7]
    by_number = {table.table: table for table in PAPER.tables}
    for number, dataset in DATASETS.items():
        table = by_number[number]
        assert (table.dataset, set(table.rows)) == (dataset, set(PAPER.architectures))
        assert all(set(methods) == METHODS for methods in table.rows.values())
    assert list(by_number[4].rows["DeiT-S"]) == [f"K {k}" for k in (1, 2, 3, 4, 8, 10, 12)]
    for number in (5, 6):
        assert set(by_number[number].rows["ViT-B"]) == {FULL, "LoRA", "ALaST", "LoRA + ALaST"}


def test_no_figure_is_out_of_its_unit() -> None:
    for table in PAPER.tables:
        for methods in table.rows.values():
            for compute, megabytes, minutes, accuracy in methods.values():
                assert 0.1 <= compute <= 160 and 1_000 <= megabytes <= 14_000 and 1 <= minutes <= 65
                assert 0.5 <= accuracy <= 0.98


def test_tables_5_and_6_repeat_tables_3_and_2() -> None:
    """The same runs are printed twice: what was typed in wrongly would differ."""
    by_number = {table.table: table for table in PAPER.tables}
    for short, long in ((5, 3), (6, 2)):
        for method in (FULL, "LoRA", "ALaST"):
            assert by_number[short].rows["ViT-B"][method] == by_number[long].rows["ViT-B"][method]


def test_figure_5_follows_from_the_tables() -> None:
    """'60% FLOPs, 50% memory and 80% time' and similar accuracy, averaged over the datasets for DeiT-S."""
    ratios = [PAPER.ratios("DeiT-S", dataset, "ALaST") for dataset in DATASETS.values()]
    mean = {name: statistics.mean(one[name] for one in ratios if one) for name in MEASURES}
    assert mean == pytest.approx({"compute": 0.6, "memory": 0.5, "time": 0.8, "accuracy": 1.0}, abs=0.05)


@pytest.mark.parametrize("model", TIMM)
def test_table_1_describes_timms_models(model: str) -> None:
    import torch

    printed = PAPER.architectures[model]
    with torch.device("meta"):
        vit = create_model(ModelConfig(name=TIMM[model], pretrained=False))
    assert (vit.embed_dim, vit.blocks[0].attn.num_heads, len(vit.blocks)) == (
        printed.embedding,
        printed.heads,
        printed.layers,
    )
    assert sum(parameter.numel() for parameter in vit.parameters()) / 1e6 == pytest.approx(printed.params, rel=0.15)


def test_ratios_are_to_full_fine_tuning_of_the_same_pair() -> None:
    ratios = PAPER.ratios("DeiT-S", "Food-101", "K 1")
    assert ratios == pytest.approx(
        {"compute": 11.6 / 30.2, "memory": 3125 / 7186, "time": 20 / 33.08, "accuracy": 81 / 86}
    )
    assert PAPER.ratios("DeiT-S", "Food-101", "LoRA + ALaST") is None  # was run on ViT-B alone
    full = PAPER.ratios("ViT-B", "CIFAR-100", FULL)
    assert full == dict.fromkeys(MEASURES, 1.0)


def test_impossible_figures_are_found_and_possible_ones_are_not() -> None:
    sentences = PAPER.impossible()
    for words in (
        "Table 7: ALaST on DeiT-T is printed with 0.8 PFLOPs, above full fine-tuning's 0.14",
        "Table 7: ALaST on DeiT-T is printed with 3820 MB, above",
        "Table 2: ToMe on ViT-B is printed with 153 PFLOPs, above",
        "table 4 has 3888",
    ):
        assert sum(words in sentence for sentence in sentences) == 1, words
    # Put right what is wrong, and nothing is found; so nothing is found by itself.
    values = PAPER.model_dump()
    for table in values["tables"]:
        scale = {"Food-101": 75_750, "CIFAR-100": 50_000, "Flower-102": 1_020}[table["dataset"]]
        for model, methods in table["rows"].items():
            size = PAPER.architectures[model].params
            for place, method in enumerate(methods):
                compute = scale * size * (1.0 if method == FULL else 0.5 + place / 1000)
                methods[method] = (compute, size * (100.0 if method == FULL else 50.0 + place / 1000), 1.0, 0.9)
    rows = values["tables"][0]["rows"]["DeiT-S"]
    between = [
        (a + b) / 2 for a, b in zip(*(values["tables"][2]["rows"]["DeiT-S"][k] for k in ("K 8", "K 10")), strict=True)
    ]
    rows["ALaST"] = tuple(between)
    values["tables"][3]["rows"] = values["tables"][4]["rows"] = {}
    assert type(PAPER).model_validate(values).impossible() == []
