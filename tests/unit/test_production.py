"""Training for production: what it leaves in its folder and in MLflow, and that it can be interrupted anywhere."""

import json
import math
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import PIL.Image
import pytest
import timm
import torch
import yaml
from mlflow.entities import Run as MlflowRun

from alast_tune import checkpoint
from alast_tune.cli import main
from alast_tune.config import ModelConfig, PromotedConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.models import architecture_of, create_model, input_spec, timm_arguments
from alast_tune.production import CONFIG, CONFUSION, REPORT, read_config, training
from alast_tune.results import EpochReport
from alast_tune.run import Run
from alast_tune.tracking import RegistryError, default_uri
from tests.unit.tiny import MODEL

PromotedTrial = Callable[..., PromotedConfig]


@pytest.fixture(scope="module")
def config(tiny_trial: Callable[..., TrialConfig]) -> PromotedTrial:
    def make(**train: object) -> PromotedConfig:
        return PromotedConfig.model_validate(tiny_trial(**train).model_dump())

    return make


def train(folder: Path, what: PromotedConfig, stop_after: int | None = None) -> list[str]:
    """Train in a folder, or until a power cut; returns what was said."""
    said: list[str] = []

    def cut(report: EpochReport) -> None:
        if report.epoch == stop_after:
            raise KeyboardInterrupt

    with training(what, folder, said.append) as run:
        run.train(cut)
        run.finish()
    return said


def run_of(folder: Path) -> tuple[mlflow.MlflowClient, MlflowRun]:
    client = mlflow.MlflowClient(default_uri(folder.parent))
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{folder.name}'")
    return client, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path, config: PromotedTrial) -> Path:
    """The folder of a training that nothing has interrupted."""
    storage = tmp_path_factory.mktemp("storage")
    shutil.copy(empty_mlflow, storage / "mlflow.db")
    assert train(storage / "whole", config()) == []
    return storage / "whole"


def test_nothing_is_written_among_the_images(two_classes: Path, config: PromotedTrial) -> None:
    before = sorted(two_classes.rglob("*"))
    with pytest.raises(ConfigError, match=r"output = .*runs/train: lies in data.root .*; give a folder elsewhere"):
        train(two_classes / "runs" / "train", config())
    assert sorted(two_classes.rglob("*")) == before


def test_what_is_to_know_about_the_images_is_a_note(
    storage: Path, two_classes: Path, config: PromotedTrial, tmp_path: Path
) -> None:
    shutil.copytree(two_classes, tmp_path / "pictures")
    (tmp_path / "pictures" / "train" / "dark" / "list.txt").touch()
    what, said = config(), []
    data = what.data.model_copy(update={"root": tmp_path / "pictures"})
    with training(what.model_copy(update={"data": data}), storage / "noted", said.append):
        (line,) = said
    assert line.startswith(f"note: passed over in {tmp_path / 'pictures'}: 1 ")


def test_timm_alone_loads_what_training_leaves(whole: Path, config: PromotedTrial) -> None:
    run = Run(config().trial)
    run.load(whole)
    images, _ = run._splits.validation.__getitems__([0, 1, 2])
    run.model.eval()
    card = json.loads((whole / checkpoint.MODEL_CARD).read_text())
    models = {
        "last.safetensors": timm.create_model(
            card["architecture"], checkpoint_path=whole / "last.safetensors", num_classes=2, **card["model_args"]
        )
    }
    if run.best == run.report:
        models["model.safetensors"] = timm.create_model(f"local-dir:{whole}", pretrained=True)
    for model in models.values():
        with torch.no_grad():
            assert torch.equal(model.eval()(images), run.model(images))
    assert card["label_names"] == ["dark", "light"]
    assert card["pretrained_cfg"]["mean"] == list(input_spec(run.model).mean)
    assert card["pretrained_cfg"]["crop_mode"] == "squash"


@pytest.mark.parametrize("name", ["embedded", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_every_model_is_built_by_timm_s_own_name(name: str, tmp_path: Path) -> None:
    """Also through the folder: the architecture, its input size, no part of the weights left out."""
    size = 28 if "14" in name else 32
    settings = ModelConfig(name=name, pretrained=False, num_classes=3, image_size=size)
    model = create_model(settings)
    checkpoint.save_weights(model, tmp_path / checkpoint.BEST)
    checkpoint.save_model_card(settings, input_spec(model), ("a", "b", "c"), tmp_path)
    architecture, arguments = timm_arguments(settings, size)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = model.eval()(images)
        plain = timm.create_model(
            architecture, checkpoint_path=tmp_path / checkpoint.BEST, num_classes=3, **arguments
        ).eval()
        folder = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert torch.equal(plain(images), expected) and torch.equal(folder(images), expected)
    assert input_spec(folder).resizing == input_spec(model).resizing  # timm's transforms then do as evaluation does
    again = ModelConfig(name=architecture_of(tmp_path), checkpoint=tmp_path, image_size=size)
    assert again.name == name.partition(".")[0] and input_spec(create_model(again)) == input_spec(model)


def test_a_training_that_begins_with_another_keeps_its_image_size(
    storage: Path, whole: Path, config: PromotedTrial
) -> None:
    what = config(epochs=1)
    model = what.model.model_copy(update={"checkpoint": whole, "image_size": None})
    train(storage / "next", what.model_copy(update={"model": model}))
    card = json.loads((storage / "next" / checkpoint.MODEL_CARD).read_text())
    assert card["pretrained_cfg"]["input_size"] == [3, 64, 64]  # the architecture's own are larger


def test_the_test_images_are_asked_about_the_best_weights(storage: Path, config: PromotedTrial) -> None:
    folder, what = storage / "best", config(epochs=1)
    with training(what, folder, print) as run:
        run.train(lambda report: None)
        (folder / checkpoint.LAST).unlink()
        model = create_model(what.model.model_copy(update={"checkpoint": folder / checkpoint.BEST, "num_classes": 2}))
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([0.0, 1.0]))
        checkpoint.save_weights(model, folder / checkpoint.BEST)
        outcome = run.finish()
        splits = run._splits
    assert outcome.test["test_accuracy"] == 0.5  # every picture is light, half of them are
    assert outcome.objectives() == {
        "accuracy": outcome.best.accuracy,
        "train_flops": outcome.last.cost.train_flops,
        "peak_bytes": outcome.last.cost.peak_bytes,
        "test_accuracy": 0.5,
    }
    report = json.loads((folder / REPORT).read_text())
    light, dark = splits.classes[1], splits.classes[0]
    assert report == outcome.last.metrics() | {
        "best_epoch": 1,
        "best_accuracy": outcome.best.accuracy,
        "test_accuracy": 0.5,
        "test_balanced_accuracy": 0.5,
        "test_macro_f1": pytest.approx(1 / 3),
        "test_loss": pytest.approx((math.log(1 + math.e) + math.log(1 + math.exp(-1))) / 2, rel=1e-5),
        "score": "accuracy",
        "classes_of": "test",
        "classes": [
            {"class": dark, "images": 4, "precision": 0.0, "recall": 0.0, "f1": 0.0},
            {"class": light, "images": 4, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)},
        ],
        "confusion": [[0, 4], [0, 4]],
    }
    with PIL.Image.open(folder / CONFUSION) as picture:
        assert picture.size == (1080, 900)


def test_mlflow_has_params_epochs_outcome_and_files(whole: Path) -> None:
    client, run = run_of(whole)
    report = json.loads((whole / REPORT).read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["train/epochs"] == "2" and run.data.params["method/alpha"] == "0.5"
    assert run.data.tags["alast.kind"] == "training"
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [point.step for point in history] == [1, 2] and history[-1].value == report["accuracy"]
    for name in ("balanced_accuracy", "macro_f1"):
        assert len(client.get_metric_history(run.info.run_id, name)) == 2
    for name in ("test_accuracy", "test_balanced_accuracy", "test_macro_f1", "best_accuracy"):
        assert run.data.metrics[name] == pytest.approx(report[name], rel=1e-5)
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {CONFIG, REPORT, CONFUSION, "steps.csv", "config.json"}


def test_without_test_images_the_classes_are_those_of_validation_unless_it_trains_on_them(
    storage: Path, two_classes: Path, config: PromotedTrial
) -> None:
    pictures = shutil.copytree(two_classes, storage / "pictures")
    shutil.rmtree(pictures / "test")
    what = config(epochs=1)
    for all_data in (False, True):
        folder = storage / f"untested-{all_data}"
        data = what.data.model_copy(update={"root": pictures, "all_data": all_data})
        train(folder, what.model_copy(update={"data": data}))
        report = json.loads((folder / REPORT).read_text())
        assert report["test_accuracy"] is None and report["best_accuracy"] == report["accuracy"]
        assert (folder / CONFUSION).exists() == ("confusion" in report) == (not all_data)
        if not all_data:
            right = report["confusion"][0][0] + report["confusion"][1][1]
            assert report["classes_of"] == "validation" and right / 16 == report["best_accuracy"]


def test_an_interrupted_training_ends_up_the_same_bit_for_bit_in_one_mlflow_run(
    whole: Path, config: PromotedTrial
) -> None:
    folder = whole.parent / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        train(folder, config(), stop_after=1)
    assert run_of(folder)[1].info.status == "KILLED"
    train(folder, config())
    train(folder, config())  # nothing left to do
    for name in (checkpoint.BEST, checkpoint.LAST, "config.json", CONFIG):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [json.loads((one / REPORT).read_text()) for one in (folder, whole)]
    one, other = ({k: v for k, v in report.items() if "seconds" not in k} for report in reports)
    assert one == other
    client, run = run_of(folder)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "accuracy")] == [1, 2]


def test_an_epoch_that_was_saved_but_not_logged_is_logged_afterwards(whole: Path, config: PromotedTrial) -> None:
    folder = whole.parent / "unlogged"
    with pytest.raises(KeyboardInterrupt):
        train(folder, config(), stop_after=1)
    for file in folder.glob("mlflow-queue.db*"):
        file.unlink()
    uri = default_uri(folder.parent)
    client, first = run_of(folder)
    client.delete_run(first.info.run_id)
    train(folder, config())
    client, run = run_of(folder)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "accuracy")] == [1, 2], uri


def test_a_folder_belongs_to_one_configuration_and_one_process(whole: Path, config: PromotedTrial) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(ConfigError, match=r"^output = .*: belongs to a training with other settings"):
        train(whole, config(epochs=3))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before
    busy = whole.parent / "busy"
    with (
        training(config(), busy, print),
        pytest.raises(ConfigError, match=r"^output = busy: another driver is at work on it"),
    ):
        train(busy, config())


def test_the_command_takes_settings_over_those_of_the_file(
    storage: Path, two_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = storage / "mine.yaml", storage / "out"
    settings = {
        "data": {"dataset": "folder", "root": str(two_classes)},
        "model": MODEL,
        "method": {"name": "full"},
        "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
    }
    file.write_text(yaml.safe_dump(settings))
    overrides = ["--epochs", "1", "--train.learning_rate=5e-4", "--train.batch-size", "24", "--all-data"]
    main(["train", "--config", str(file), "-o", str(output), *overrides])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("epoch 1/1 accuracy ") and " (of images it trains on) " in lines[0]
    accuracy = json.loads((output / REPORT).read_text())["test_accuracy"]
    assert lines[1] == f"model: {output / 'model.safetensors'} (epoch 1, test accuracy {accuracy:.4f})"
    assert len(lines) == 2 and shown.err == ""  # no name, so that nothing is registered
    written = read_config(output / CONFIG)
    assert (written.train.epochs, written.train.learning_rate, written.data.all_data) == (1, 5e-4, True)
    assert len((output / "steps.csv").read_text().splitlines()) == 1 + 2  # 48 images, by 24


def test_a_folder_is_gone_on_with_where_its_images_have_moved_but_not_with_others(
    whole: Path, config: PromotedTrial, two_classes: Path, tmp_path: Path
) -> None:
    def at(root: Path) -> PromotedConfig:
        plain = config()
        return plain.model_copy(update={"data": plain.data.model_copy(update={"root": root})})

    kept = json.loads((whole / "fingerprints.json").read_text())
    assert run_of(whole)[1].data.params["weights_fingerprint"] == str(kept["weights"])
    shutil.copytree(two_classes, tmp_path / "moved")
    assert train(whole, at(tmp_path / "moved")) == []
    shutil.copytree(two_classes, tmp_path / "other")
    next((tmp_path / "other" / "train").rglob("*.*")).unlink()
    before = (whole / CONFIG).read_bytes()
    with pytest.raises(ConfigError, match=rf"^output = .*: was begun otherwise: .*, not {kept['data']}\)"):
        train(whole, at(tmp_path / "other"))
    assert (whole / CONFIG).read_bytes() == before


def test_runs_go_into_the_experiment_that_the_environment_names_and_stay_there(
    storage: Path, config: PromotedTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team-x")
    with pytest.raises(KeyboardInterrupt):
        train(storage / "run", config(), stop_after=1)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    train(storage / "run", config())
    kept = json.loads((storage / "run" / "fingerprints.json").read_text())
    client = mlflow.MlflowClient(default_uri(storage))
    (team,) = client.search_experiments(filter_string="name = 'team-x'")
    (run,) = client.search_runs([team.experiment_id])
    assert run.info.run_name == "run"
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == [kept["data"]]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "accuracy")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model-name", "team/pets"], "error: model_name = team/pets: MLflow refuses it ("),
        (["--model-name", " "], "error: model_name = : MLflow refuses it ("),
        (["--model-name", "pets", "--alias", "latest"], "error: alias = latest: MLflow refuses it ("),
        (["--model-name", "pets", "--alias", "v3"], "error: alias = v3: MLflow refuses it ("),
        (["--model-name", "pets", "--alias", "a b"], "error: alias = a b: MLflow refuses it ("),
    ],
)
def test_names_that_the_registry_refuses_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epochs: 1}\n")
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--config", str(tmp_path / "mine.yaml"), "-o", str(tmp_path / "out"), *options])
    assert exit_.value.code == 2 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err.startswith(line)


def test_what_is_to_be_repeated_after_a_failed_registration_has_name_and_alias(
    storage: Path, two_classes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RegistryError("no answer")

    monkeypatch.setenv("DATA", str(two_classes.parent))
    monkeypatch.setattr("alast_tune.production.register", fail)
    settings = {"data": {"dataset": "folder", "root": f"$DATA/{two_classes.name}"}, "model": MODEL}
    settings |= {"method": {"name": "head"}, "train": {"epochs": 1, "batch_size": 24, "device": "cpu"}}
    (storage / "mine.yaml").write_text(yaml.safe_dump(settings))
    command = ["train", "--config", str(storage / "mine.yaml"), "-o", str(storage / "my out")]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--model-name", "jo's pets", "--alias", "best"])
    assert exit_.value.code == 3
    again = shlex.split(capsys.readouterr().err.partition("once MLflow is back: ")[2])
    monkeypatch.undo()
    assert again[0] == "alast-tune"
    main(again[1:])
    assert "registered: models:/jo's pets@best (version 1)" in capsys.readouterr().out

    # Another training takes the alias from the first one only if that one is not better, or when asked to.
    monkeypatch.setenv("DATA", str(two_classes.parent))
    client = mlflow.MlflowClient(default_uri(storage))
    first = client.get_model_version_by_alias("jo's pets", "best")
    better = float(first.tags["alast.accuracy"]) + 0.1
    client.set_model_version_tag("jo's pets", "1", "alast.accuracy", str(better))
    second = ["train", "--config", str(storage / "mine.yaml"), "-o", str(storage / "second")]
    second += ["--model-name", "jo's pets", "--alias", "best"]
    main(second)
    line = f"best stays with version 1: its validation accuracy is {better:.4f}, not {better - 0.1:.4f}; --move-alias"
    assert f"registered: models:/jo's pets/2; {line} moves it" in capsys.readouterr().out
    assert int(client.get_model_version_by_alias("jo's pets", "best").version) == 1
    main([*second, "--move-alias"])
    assert "registered: models:/jo's pets@best (version 2)" in capsys.readouterr().out
    assert int(client.get_model_version_by_alias("jo's pets", "best").version) == 2
