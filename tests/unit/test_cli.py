"""`alast-tune front | train | doctor`, and what a person reads when something is wrong."""

import json
from pathlib import Path

import pytest
import torch

from alast_tune.cli import main
from alast_tune.config import TrialConfig
from alast_tune.models import create_model
from alast_tune.results import TrialResult
from alast_tune.summary import summarise


def result(number: int, *values: float) -> TrialResult:
    config = TrialConfig.model_validate({"method": {"name": "alast", "trainable_blocks": 1 + number}})
    return TrialResult(number, "complete", config, {}, tuple(values), epochs=10, mlflow_run_id=f"run{number}")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    results = [result(0, 0.9, 2e12, 4e8), result(1, 0.8, 1e12, 2e8), result(2, 0.7, 3e12, 3e8)]
    folder = tmp_path / "mine"
    folder.mkdir()
    summarise("mine", results, (0.0, 4e12, 8e8), {0: 0.875}).write(folder / "front.json")
    return folder


def test_front_is_found_by_folder_file_or_name_and_laid_out(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(sweep)], [str(sweep / "front.json")], ["mine", "--storage", str(sweep.parent)]):
        main(["front", *arguments])
        shown = capsys.readouterr().out
        assert "mine: 2 of 3 complete trials on the front" in shown
        assert shown.index("0001") < shown.index("0000")  # cheapest first
        assert "0002" not in shown
        assert "0.8750" in shown


def test_front_prints_the_file_itself_as_json(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["front", str(sweep), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((sweep / "front.json").read_text())
    assert values["front"][1]["objectives"] == {"accuracy": 0.9, "train_flops": 2e12, "peak_bytes": 4e8}
    assert values["front"][1]["config"]["method"]["trainable_blocks"] == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["front", "nope"], "error: sweep = nope: no front.json; none under runs has one yet"),
        (["train", "--config", "nope.yaml"], "error: config = nope.yaml: cannot be read"),
        (["train"], "error: "),
        (["fly"], "error: "),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith(line) and "\n" not in err


def test_a_front_that_is_none_is_refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "front.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["front", str(sweep)])
    assert "is not a front.json: sweep" in capsys.readouterr().err


def test_train_runs_one_config_reports_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        "data: {train_images: 64}\nmethod: {name: alast, trainable_blocks: 3}\n"
        "train: {epochs: 2, batch_size: 32, learning_rate: 1.0e-3, device: cpu}\n"
    )
    output = tmp_path / "out"
    main(["train", "--config", str(file), "--output", str(output)])
    shown = capsys.readouterr().out
    assert "epoch 1/2 accuracy" in shown and "epoch 2/2 accuracy" in shown
    assert json.loads((output / "report.json").read_text())["epoch"] == 2
    model = create_model(
        TrialConfig().model.model_copy(update={"num_classes": 10, "checkpoint": output / "model.safetensors"})
    )
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    main(["train", "--config", str(file), "--output", str(output)])
    assert "nothing to do" in capsys.readouterr().out


def test_doctor_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    for word in ("python", "torch", "ray", "optuna", "mlflow", "GPUs", "memory"):
        assert word in shown
    assert torch.__version__.split("+")[0] in shown
