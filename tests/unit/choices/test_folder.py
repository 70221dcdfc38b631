"""A sweep is made of a folder: what it says it chose is what it has, and what was given stays."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from alast_tune.choices import Choices, Machine, name_of, sweep_of_folder
from alast_tune.config import AlastConfig, LoraConfig, SweepConfig, Variants, parse, read_mapping, write_yaml
from alast_tune.errors import ConfigError
from tests.pictures import write_images

CPU = Machine(cpus=2, memory_bytes=2**33)
CARD = Machine(cpus=16, memory_bytes=2**36, card_bytes=2**33, bf16=True)


def choices(folder: Path, machine: Machine = CPU, model: str = "embedded", **settings: Any) -> Choices:
    return sweep_of_folder(folder, model=model, machine=machine, **settings)


def said(found: Choices) -> dict[str, str]:
    return {one.what: str(one) for one in found.lines}


def test_what_is_open_is_chosen_and_said(two_classes: Path) -> None:
    found = choices(two_classes)
    trial = found.sweep.trial
    assert (found.sweep.name, found.sweep.trials) == (two_classes.name, 24)
    assert (trial.data.dataset, trial.data.root, trial.data.workers) == ("folder", two_classes, 0)
    assert (trial.model.name, trial.model.image_size) == ("embedded", 16)
    assert (trial.train.batch_size, trial.train.epochs, trial.train.precision) == (8, 20, "fp32")
    assert (trial.method.name, trial.data.features, trial.train.learning_rate) == ("full", "auto", 3e-3)
    assert (trial.recipe, trial.train.layer_decay, trial.train.warmup_epochs) == ("modern", 0.75, 2.0)
    assert list(found.sweep.space) == ["method"]  # images of four patches a side are not made smaller
    lines = said(found)
    assert lines["space"].endswith(
        "9 methods (full, lora, apla, alast, ...): each with its own settings; --dry-run shows them"
    )
    assert lines["classes"].endswith("2: dark, light")
    assert "32 to train on, 16 to validate, 8 to test: as they come divided" in lines["images"]
    assert lines["image size"].endswith("16 pixels: the model's own is 32, the images are 16")
    assert lines["epochs"].endswith("20: 80 training steps a trial")
    assert lines["recipe"].startswith("recipe        modern: AdamW, cosine, layer decay")
    assert all("\n" not in line for line in lines.values())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/pets", "pets"),
        ("/data/pets.v2", "pets.v2"),
        ("/data/my pets.csv", "my-pets"),
        ("pets.parquet", "pets"),
        ("hf:user/pets", "pets"),
        ("hf:user/pets:small", "pets"),
    ],
)
def test_a_sweep_is_called_after_its_images(place: str, name: str) -> None:
    assert name_of(place) == name


def test_the_papers_recipe_can_be_asked_for(two_classes: Path) -> None:
    modern, found = choices(two_classes), choices(two_classes, trial={"recipe": "paper"})
    trial = found.sweep.trial
    assert (trial.train.optimizer, trial.train.learning_rate, trial.train.warmup_epochs) == ("adam", 1e-3, 1.0)
    assert "recipe" not in said(found)
    ranges = [{name: one.variants for name, one in each.sweep.space.items()}["method"] for each in (modern, found)]
    for variant, settings in ranges[1].items():
        path, times = "train/learning_rate", 3 if variant in {"full", "alast", "tome"} else 1
        assert ranges[0][variant][path].low == pytest.approx(times * settings[path].low), variant
        assert ranges[0][variant][path].high == pytest.approx(times * settings[path].high), variant


def test_a_card_trains_in_bf16_and_loads_by_processes(two_classes: Path) -> None:
    trial = choices(two_classes, CARD).sweep.trial
    assert (trial.train.precision, trial.data.workers) == ("bf16", 4)
    assert choices(two_classes, Machine(2, 2**33, 2**33, bf16=False)).sweep.trial.train.precision == "fp32"


def test_what_was_given_stays_and_the_rest_suits_it(two_classes: Path) -> None:
    given = {"train": {"batch_size": "4", "precision": "bf16"}, "model": {"image_size": 32}}
    found = choices(two_classes, trial=given, trials=3, name="mine", seed=5)
    train = found.sweep.trial.train
    assert (train.batch_size, train.precision, found.sweep.trial.model.image_size) == (4, "bf16", 32)
    assert (found.sweep.trials, found.sweep.name, found.sweep.seed) == (3, "mine", 5)
    assert not {"batch", "precision", "image size", "trials"} & said(found).keys()
    narrow = choices(two_classes, methods=["lora", "head"]).sweep.space["method"]
    assert isinstance(narrow, Variants) and list(narrow.variants) == ["lora", "head"]
    assert said(found)["epochs"].endswith("20: 160 training steps a trial")


def test_a_limit_on_memory_lowers_the_batch_until_full_fine_tuning_fits(tmp_path: Path) -> None:
    for name in "ab":
        write_images(tmp_path / "many" / name, 900, (16, 16), ".png")
    roomy, tight = choices(tmp_path / "many"), choices(tmp_path / "many", max_memory="40MiB")
    assert roomy.sweep.trial.train.batch_size == 32
    assert tight.sweep.trial.train.batch_size == 16
    assert tight.sweep.max_memory == 40 * 2**20
    assert "fits into memory" in said(tight)["batch"]


def test_a_folder_that_nobody_has_split_is_divided(tmp_path: Path) -> None:
    for name in "ab":
        write_images(tmp_path / "flat" / name, 20)
    assert "divided by a hash of each path" in said(choices(tmp_path / "flat"))["images"]


def test_a_table_serves_as_well(two_classes: Path, tmp_path: Path) -> None:
    shutil.copytree(two_classes / "train", tmp_path / "in")
    rows = [f"in/{file.parent.name}/{file.name},{file.parent.name}" for file in (tmp_path / "in").rglob("*.png")]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows]))
    found = choices(tmp_path / "pets.csv")
    assert (found.sweep.name, found.sweep.trial.data.root) == ("pets", tmp_path / "pets.csv")
    assert said(found)["classes"].endswith("2: dark, light")
    assert "the images are 16" in said(found)["image size"]


def test_a_method_that_was_given_is_the_only_one(two_classes: Path) -> None:
    found = choices(two_classes, trial={"method": {"name": "lora"}}).sweep
    assert isinstance(found.trial.method, LoraConfig)
    assert list(found.space) == ["method/rank", "method/from_block", "train/learning_rate"]
    found = choices(two_classes, trial={"method": {"reading": "paper"}}).sweep
    assert isinstance(found.trial.method, AlastConfig) and found.trial.method.reading == "paper"
    assert "method/trainable_blocks" in found.space
    with pytest.raises(ConfigError, match=r"^methods = lora: trial.method says which"):
        choices(two_classes, trial={"method": {"name": "lora"}}, methods=["lora"])
    space = {"train/learning_rate": {"type": "categorical", "choices": [1e-3, 1e-4]}}
    grid = choices(two_classes, space=space, sampler="grid").sweep
    assert (grid.trials, len(grid.space)) == (2, 1)


@pytest.mark.parametrize("settings", [{}, {"max_memory": "1GiB", "time_budget": "2h", "sampler": "tpe"}])
def test_written_as_yaml_it_is_the_same_sweep(two_classes: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    sweep = choices(two_classes, **settings).sweep
    file = tmp_path / "sweep.yaml"
    file.write_text(write_yaml(sweep.given_values(), compact=True))
    again = parse(SweepConfig, read_mapping(file))
    assert again == sweep
    assert again.given_values() == sweep.given_values()


def test_local_weights_say_which_model_they_are_of(
    two_classes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "alast_tune")
    file = tmp_path / "weights.safetensors"
    model = timm.create_model("vit_tiny_patch16_384", pretrained=False)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    found = choices(two_classes, model=str(file))
    assert (found.sweep.trial.model.name, found.sweep.trial.model.checkpoint) == ("vit_tiny_patch16_384", file)
    assert said(found)["model"].endswith(f"the architecture of {file}, for images of mean 0.5, 0.5, 0.5")
    named = choices(two_classes, model=str(file), trial={"model": {"name": "deit_tiny_patch16_224"}})
    assert named.sweep.trial.model.name == "deit_tiny_patch16_224"
    torch.save({"layer": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"^model.checkpoint = .*cannot tell which timm model.*--trial.model.name"):
        choices(two_classes, model=str(tmp_path / "other.pth"))


def test_weights_that_cannot_be_had_are_asked_for(
    two_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"^model = deit_small_patch16_224: .*give --model FILE.* or --model embedded"
    ):
        sweep_of_folder(two_classes)


def test_what_is_wrong_with_a_folder_comes_first(tmp_path: Path) -> None:
    write_images(tmp_path / "one" / "only", 2)
    (tmp_path / "empty").mkdir()
    for name, words in (("none", "no such folder"), ("empty", "no class folders"), ("one", "one class only")):
        with pytest.raises(ConfigError, match=rf"^data.root = .*{words}"):
            sweep_of_folder(tmp_path / name)
