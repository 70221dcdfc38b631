"""From a real sweep to a served model: promotion, verification, production training, MLflow's registry."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from alast_tune.cli import main
from alast_tune.config import stored_sweep
from alast_tune.production import read_config
from alast_tune.results import FrontFile
from alast_tune.tune.trials import open_study
from tests.integration.harness import Pareto

pytestmark = pytest.mark.slow

SERVE = """
import sys
import warnings
from pathlib import Path
warnings.simplefilter("ignore")
import mlflow, mlflow.pyfunc, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
images = [Path(name).read_bytes() for name in sys.argv[3:]]
found = model.predict(pandas.DataFrame({"image": images}))
assert model.metadata.metadata["classes"] == ["dark", "light"]
assert not {"alast_tune", "ray", "optuna"} & {name.partition(".")[0] for name in sys.modules}
print(found.to_json(orient="records"))
"""


@pytest.fixture(scope="module")
def sweep(ray_here: object, tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path) -> Path:
    """The folder of a sweep; tests go through it from top to bottom."""
    pareto = Pareto(tmp_path_factory.mktemp("promotion"), two_classes)
    pareto.storage.mkdir()
    shutil.copy(empty_mlflow, pareto.storage)
    pareto.here("--preset", pareto.preset(trials=3, epochs=1), "--name", "pets")
    return pareto.storage / "pets"


def test_a_sweep_begins_with_another_s_results(
    sweep: Path, tmp_path: Path, two_classes: Path, with_store: Callable[[Path], Path]
) -> None:
    pareto = Pareto(tmp_path, two_classes)
    with_store(pareto.storage)
    # Two beside the baselines, which the other sweep has run.
    own = ("--preset", pareto.preset(trials=4, epochs=1), "--name", "later", "--max-memory", "1GiB")
    assert "warm start: 3 results of " in pareto.here(*own, "--warm-start", str(sweep))
    folder = pareto.storage / "later"
    assert FrontFile.read(folder / "front.json").trials.complete == 2
    trials = open_study(stored_sweep(folder), folder).get_trials(deepcopy=False)
    assert ["origin" in trial.user_attrs for trial in trials] == [True] * 3 + [False] * 2


def client_of(sweep: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{sweep.parent / 'mlflow.db'}")


def predicted(sweep: Path, uri: str, folder: Path) -> tuple[list[dict[str, object]], torch.Tensor]:
    """Serve a few pictures where there is no alast-tune; and what timm makes of them from a folder."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, 16, 16, 3), np.uint8)
    files = []
    for number, image in enumerate(pixels):
        files.append(folder / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    command = [sys.executable, "-c", SERVE, client_of(sweep).tracking_uri, uri, *map(str, files)]
    nowhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    images_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        expected_BK = model((images_BCHW.float() / 255 - mean) / std).double().softmax(dim=1)
    return json.loads(done.stdout), expected_BK


def assert_same(found: list[dict[str, object]], expected_BK: torch.Tensor) -> None:
    assert [row["label"] for row in found] == [("dark", "light")[best] for best in expected_BK.argmax(dim=1).tolist()]
    probabilities = torch.tensor([row["probabilities"] for row in found], dtype=torch.float64)
    assert torch.allclose(probabilities, expected_BK, atol=1e-9)  # JSON keeps ten digits
    assert torch.allclose(torch.tensor([row["probability"] for row in found]).double(), expected_BK.amax(1), atol=1e-6)


def test_a_repetition_that_comes_out_otherwise_promotes_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = FrontFile.read(sweep / "front.json")
    kept = (sweep / "front.json").read_text()
    member = front.front[0]
    wrong = member.model_copy(
        update={"objectives": member.objectives | {"train_flops": member.objectives["train_flops"] - 1}}
    )
    front.model_copy(update={"front": (wrong,)}).write(sweep / "front.json")
    try:
        with pytest.raises(SystemExit) as stop:
            main(["promote", str(sweep), "--pick", member.trial_id, "--verify", "-o", str(tmp_path / "c.yaml")])
    finally:
        (sweep / "front.json").write_text(kept)
    shown = capsys.readouterr()
    assert stop.value.code == 1
    (line,) = shown.err.splitlines()
    assert line.startswith(f"error: trial {member.trial_id} cannot be verified, and is not promoted: training FLOPs ")
    assert "accuracy" not in line and "memory" not in line  # these came out as they should
    assert "FAILED" in shown.out
    assert not (tmp_path / "c.yaml").exists()
    assert client_of(sweep).search_registered_models() == []


def test_a_store_that_is_away_costs_the_registration_only(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        main(["promote", str(sweep), "-o", str(tmp_path / "c.yaml")])
    assert stop.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not registered in MLflow at http://127.0.0.1:9 (") and "repeat this" in line
    assert read_config(tmp_path / "c.yaml").provenance is not None


def test_from_the_front_to_a_served_model(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, front = client_of(sweep), FrontFile.read(sweep / "front.json")
    file, output = tmp_path / "prod.yaml", sweep.parent / "production"

    # Promote the knee: trained again, every bit the same; the trial's own model is the champion.
    main(["promote", "pets", "--storage", str(sweep.parent), "-o", str(file), "--verify"])
    shown = capsys.readouterr()
    assert (
        shown.err == ""
        and shown.out.count(" ok ") == 3
        and "registered: models:/pets@champion (version 1)" in shown.out
    )
    member = next(member for member in front.front if member.trial_id == front.knee)
    config = read_config(file)
    assert config.trial == member.config
    assert config.provenance and config.provenance.verified and config.provenance.mlflow_run_id == member.mlflow_run_id
    first = client.get_model_version_by_alias("pets", "champion")
    assert (first.run_id, first.source) == (member.mlflow_run_id, f"runs:/{member.mlflow_run_id}/model")
    assert float(first.tags["alast.accuracy"]) == member.objectives["accuracy"]
    assert first.tags["alast.verified"] == "true"
    uploaded = {artifact.path for artifact in client.list_artifacts(first.run_id)}
    assert uploaded == {"model", "config.yaml"}
    assert_same(*predicted(sweep, "models:/pets@champion", sweep / "promoted" / member.trial_id))
    repeated, trial = (sweep / "verify" / member.trial_id, sweep / "promoted" / member.trial_id)
    assert (repeated / "last.safetensors").read_bytes() == (trial / "model.safetensors").read_bytes()

    # Again it is the same version, under another alias too.
    main(["promote", str(sweep), "-o", str(file), "--alias", "candidate"])
    assert client.get_model_version_by_alias("pets", "candidate").version == first.version

    # Train it for longer: the next version, linked both ways.
    main(["train", "--config", str(file), "--output", str(output), "--epochs", "2", "--all-data", "--move-alias"])
    shown = capsys.readouterr()
    assert shown.err == "" and "note:" not in shown.out
    second = client.get_model_version_by_alias("pets", "champion")
    assert int(second.version) == int(first.version) + 1
    run = client.get_run(second.run_id)
    assert run.info.status == "FINISHED" and run.data.params["data/all_data"] == "True"
    assert run.data.tags["alast.promoted_run"] == member.mlflow_run_id
    assert (run.data.tags["alast.promoted_sweep"], run.data.tags["alast.promoted_trial"]) == ("pets", member.trial_id)
    promoted = client.get_run(str(member.mlflow_run_id))
    assert promoted.data.tags["alast.trained_run"] == second.run_id
    assert promoted.data.tags["alast.registered"] == "models:/pets/1"
    assert (
        float(second.tags["alast.test_accuracy"]) == json.loads((output / "report.json").read_text())["test_accuracy"]
    )
    assert_same(*predicted(sweep, "models:/pets@champion", output))

    # The same once more, on other data: it says so, and is another training.
    other = ["--output", str(sweep.parent / "other"), "--data.train-images", "8", "--model-name", "elsewhere"]
    main(["train", "--config", str(file), *other])
    assert capsys.readouterr().out.startswith("note: other data (fingerprint ")
    assert client.get_model_version_by_alias("elsewhere", "champion").version == 1


def test_a_served_model_refuses_what_is_no_image() -> None:
    from alast_tune.tracking.served import ImageClassifier

    served = ImageClassifier()
    served._resize = create_transform(8, crop_pct=0.9, interpolation="bicubic", use_prefetcher=True)
    with pytest.raises(mlflow.exceptions.MlflowException, match="image 2 cannot be read") as refusal:
        served._decode(2, b"no image")
    assert refusal.value.get_http_status_code() == 400
    buffer = io.BytesIO()
    Image.new("RGBA", (5, 9), (255, 0, 0, 0)).save(buffer, "PNG")
    assert served._decode(0, buffer.getvalue()).shape == (3, 8, 8)
