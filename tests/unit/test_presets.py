"""The presets of the paper's nine pairs say what appendix E says, and are valid sweeps."""

import json
from itertools import product
from pathlib import Path

import pytest
import timm

from alast_tune.cli.sweep import Sweep
from alast_tune.config import AlastConfig, Choice, SweepConfig, apply_params, parse, read_mapping, write_yaml
from alast_tune.data import num_classes_of

PRESETS = Path(__file__).parents[2] / "alast_tune" / "presets"
MODELS = {"deit-t": (192, 3), "deit-s": (384, 6), "vit-b": (768, 12)}  # width and heads, table 1
PAIRS = list(product(MODELS, {"cifar100": 100, "flowers102": 102, "food101": 101}.items()))


def load(model, dataset):
    return parse(SweepConfig, read_mapping(PRESETS / f"{model}-{dataset}.yaml"))


@pytest.mark.parametrize(("model", "dataset"), PAIRS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_preset_has_the_papers_hyper_parameters(model, dataset):
    name, classes = dataset
    sweep = load(model, name)
    data, train, method = sweep.trial.data, sweep.trial.train, sweep.trial.method
    assert (data.dataset, data.augment, sweep.trial.model.image_size) == (name, "paper", 224)
    assert num_classes_of(data) == classes
    assert (train.optimizer, train.batch_size, train.learning_rate) == ("adam", 128, 1e-4)
    assert (train.epochs, train.precision) == (20, "bf16")
    assert isinstance(method, AlastConfig)
    assert (method.reading, method.trainable_blocks) == ("fast", 9)


@pytest.mark.parametrize("model", MODELS)
def test_a_presets_model_is_the_papers_and_has_weights(model):
    import torch

    name = load(model, "cifar100").trial.model.name
    assert timm.models.is_model_pretrained(name)
    with torch.device("meta"):
        vit = timm.create_model(name)
    assert (vit.embed_dim, vit.blocks[0].attn.num_heads, len(vit.blocks)) == (*MODELS[model], 12)


@pytest.mark.parametrize(("model", "dataset"), PAIRS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_presets_space_holds_its_own_starting_point(model, dataset):
    sweep = load(model, dataset[0])
    for path, distribution in sweep.space.items():
        value = sweep.trial
        for key in path.split("/"):
            value = getattr(value, key)
        if isinstance(distribution, Choice):
            assert value in distribution.choices
        elif value is not None:
            assert distribution.low <= value <= distribution.high, path
        else:
            assert path == "method/alpha"  # unset: the learning rate
    lowest = {p: d.choices[0] if isinstance(d, Choice) else d.low for p, d in sweep.space.items()}
    assert apply_params(sweep.trial, lowest).method.trainable_blocks == 3


def test_every_preset_parses_and_starts_with_what_it_is():
    files = sorted(PRESETS.glob("*.yaml"))
    assert {f"{model}-{name}.yaml" for model, (name, _) in PAIRS} <= {file.name for file in files}
    for file in files:
        assert file.read_text().startswith("# ")
        assert parse(SweepConfig, read_mapping(file)).space or file.stem == "demo"  # which says auto


def test_a_sweep_is_resumed_in_the_storage_of_its_preset(tmp_path):
    file, folder = tmp_path / "mine.yaml", tmp_path / "elsewhere" / "mine"
    values = {"space": {"method/trainable_blocks": {"type": "int", "low": 1, "high": 2}}}
    file.write_text(write_yaml({"storage": str(folder.parent), **values}))
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(
        json.dumps(parse(SweepConfig, {"name": "mine", "trials": 7, **values}).given_values())
    )
    found = Sweep(_cli_parse_args=["--preset", str(file), "--resume", "mine"])
    assert (found.name, found.storage, found.trials) == ("mine", folder.parent, 7)
    assert Sweep(_cli_parse_args=["--preset", str(file)]).name == "mine-2"  # the name is taken there
