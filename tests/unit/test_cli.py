"""`alast-tune front | list | ui | train | doctor`, and what a person reads when something is wrong."""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import alast_tune
from alast_tune import promote
from alast_tune.cli import main
from alast_tune.cli.ui import _OPEN
from alast_tune.config import Limits, TrialConfig
from alast_tune.results import TrialResult
from alast_tune.summary import summarise, within


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


def test_front_leaves_out_what_breaks_a_limit(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["front", str(sweep), "--json", "--max-memory", "300MB"])
    values = json.loads(capsys.readouterr().out)
    assert [member["trial_id"] for member in values["front"]] == ["0001"]
    assert values["knee"] == "0001"
    assert values["limits"] == {"max_memory": 300_000_000, "max_flops": None, "min_accuracy": None}
    assert values["hypervolume_share"] == pytest.approx(0.8 * 0.75 * 0.75)
    main(["front", str(sweep), "--json", "--min-accuracy", "0.95", "--max-flops", "2e15"])
    values = json.loads(capsys.readouterr().out)
    assert (values["front"], values["knee"], values["hypervolume"]) == ([], None, 0.0)


def test_front_prints_the_file_itself_as_json(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["front", str(sweep), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((sweep / "front.json").read_text())
    assert values["front"][1]["objectives"] == {"accuracy": 0.9, "train_flops": 2e12, "peak_bytes": 4e8}
    assert values["front"][1]["config"]["method"]["trainable_blocks"] == 1


def test_fronts_of_several_sweeps_are_compared_and_drawn(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = sweep.parent / "other"
    other.mkdir()
    summarise("other", [result(0, 0.85, 1e12, 2e8)], (0.0, 2e12, 8e8)).write(other / "front.json")
    for name in ("fronts.html", "fronts.png"):
        main(["front", str(sweep), str(other), "--plot", str(sweep / name)])
        shown = capsys.readouterr().out
        rows = [line.split() for line in shown.splitlines()]
        # From (0, 4e12, 8e8): 0.9 / 4 + 0.8 * 0.75 * 0.75 - 0.8 / 4, and 0.85 * 0.75 * 0.75.
        assert ["mine", "2", "1", "0.9000", "0.4750"] in rows and ["other", "1", "1", "0.8500", "0.4781"] in rows
        assert "other/0000" in shown and "mine/0000" in shown and "mine/0001" not in shown
    page = (sweep / "fronts.html").read_text()
    assert "mine (hypervolume" in page and "other, trial 0000" in page
    with Image.open(sweep / "fronts.png") as picture:
        assert picture.size == (1650, 750)
    main(["front", str(sweep), str(other), "--json"])
    joint = json.loads(capsys.readouterr().out)
    assert [member["trial_id"] for member in joint["front"]] == ["other/0000", "mine/0000"]
    for folder, meter in ((sweep, ""), (other, ', "meter": 2')):
        (folder / "fingerprints.json").write_text(f'{{"data": "d1", "weights": null{meter}}}')
    main(["front", str(sweep), str(other), "--json"])
    assert "note: the sweeps' FLOPs were counted in different ways" in (said := capsys.readouterr().err)
    assert "had not the same images" not in said
    (other / "fingerprints.json").write_text('{"data": "d2", "weights": null}')
    main(["front", str(sweep), str(other), "--json"])
    assert "note: the sweeps had not the same images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["front", "nope"], "error: sweep = nope: no front.json; none under runs has one yet"),
        (["list", "--storage", "none"], "error: storage = none: holds no sweep yet; alast-tune sweep --preset demo"),
        (["ui", "--storage", "none"], "error: storage = none: holds no sweep yet; alast-tune sweep --preset demo"),
        (["front", "a", "b", "--within", "0.01"], "error: within = 0.01: is asked of one sweep"),
        (["front", "nope", "--plot", "x.pdf"], "error: plot = x.pdf: give a .html or a .png file"),
        (["train", "--config", "nope.yaml"], "error: config = nope.yaml: cannot be read"),
        (["train"], "error: "),
        (["train", "--config", "one.yaml", "--epochs", "0"], "error: train.epochs = 0: Input should be"),
        (["train", "--config", "one.yaml", "--train.epoch", "3"], "error: unrecognized arguments: --train.epoch 3"),
        (["train", "--config", "odd.yaml"], "error: train.epoch = 3: no such setting"),
        (["train", "--config", "one.yaml", "--model.num-classes", "7"], "error: model.num_classes = 7: digits has 10"),
        (["promote", "nope", "-o", "x.yaml"], "error: sweep = nope: no front.json"),
        (["promote", "nope"], "error: "),
        (
            ["promote", "mine", "-o", "x.yaml", "--pick", "0002"],
            "error: pick = 0002: not on the front; give knee, cheap",
        ),
        (
            ["promote", "mine", "-o", "x.yaml", "--pick", "it"],
            "error: pick = it: not on the front; give knee, cheapest",
        ),
        (["promote", "mine", "-o", "x.yaml", "--max-flops", "1"], "error: pick = knee: nobody on the front of mine ke"),
        (["promote", "mine", "-o", "one.yaml"], "error: output = one.yaml: exists, and is not of this trial"),
        (["promote", "mine", "-o", "x.yaml", "--pick", "1"], "error: pick = 0001: no checkpoint of it under"),
        (["train", "--config", "own.yaml"], "error: output = /elsewhere: own.yaml says what to train, not where to"),
        (["front", "picture"], "error: sweep = picture/front.json: is not a front.json: configuration = "),
        (["fly"], "error: "),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(
    arguments: list[str],
    line: str,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "own.yaml").write_text("output: /elsewhere\n")
    (tmp_path / "picture").mkdir()
    (tmp_path / "picture" / "front.json").write_bytes(b"\x89PNG\r\n\x1a\n" * 1000)
    (tmp_path / "odd.yaml").write_text("train: {epoch: 3}\n")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith(line) and "\n" not in err and len(err) < 600


def test_a_front_that_is_none_is_refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "front.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["front", str(sweep)])
    assert "is not a front.json: sweep" in capsys.readouterr().err


def test_doctor_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    shown = capsys.readouterr().out
    for word in ("python", "torch", "ray", "optuna", "mlflow", "GPUs", "memory", "food101"):
        assert word in shown
    assert torch.__version__.split("+")[0] in shown


def test_front_says_what_is_near_full_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = replace(result(0, 0.90, 2e12, 4e8), baseline="full")
    near, paper = result(1, 0.89, 1e12, 3e8), replace(result(2, 0.86, 5e11, 1e8), baseline="paper")
    for name, results in (
        ("mine", [full, near, paper]),
        ("beaten", [full, result(1, 0.91, 1e12, 1e8)]),
        ("no", [near]),
    ):
        (tmp_path / name).mkdir()
        summarise(name, results, (0.0, 4e12, 8e8)).write(tmp_path / name / "front.json")

    def said(name: str, *options: str) -> list[str]:
        main(["front", name, "--storage", str(tmp_path), *options])
        out = capsys.readouterr().out
        return [line for line in out.splitlines() if line.startswith("within ")]

    one, five = said("mine")
    lead = "of full fine-tuning: trial"
    command = f"alast-tune promote mine --storage {tmp_path} --pick"
    costs = f"0.8900, 50% of the FLOPs, 75% of the memory; {command} 0001 -o best.yaml"
    assert one == f"within 1 point {lead} 0001 (ALaST, K 2): {costs}"
    costs = f"0.8600, 25% of the FLOPs, 25% of the memory; {command} 0002 -o best.yaml"
    assert five == f"within 5 points {lead} 0002 (ALaST as in the paper): {costs}"
    assert said("mine", "--within", "0.002") == ["within 0.2 points of full fine-tuning: nothing that is cheaper"]
    assert said("mine", "--max-memory", "200MB", "--within", "0.01") == ["within 1 point of full fine-tuning: nothing"]
    (line,) = said("beaten")  # full fine-tuning is not on the front
    assert "within 1 point of full fine-tuning, also within 5 points: trial 0001" in line
    assert "(ALaST, K 2): 0.9100, 50% of the FLOPs, 25% of the memory" in line
    assert said("no") == []


def test_the_knee_is_near_full_fine_tuning_wherever_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        replace(result(0, 0.90, 2e12, 4e8), baseline="full"),
        result(1, 0.89, 1.9e12, 3.9e8),
        result(2, 0.86, 1e12, 2e8),
        result(3, 0.70, 1e11, 1e7),
    ]
    front = summarise("mine", results, (0.0, 4e12, 8e8))
    assert front.knee == promote.pick(within(front, Limits()), "knee").trial_id == "0002"
    front.model_copy(update={"knee": "0003", "knee_within": None}).write(tmp_path / "front.json")  # as before

    def knee(*options: str) -> tuple[str, float | None]:
        main(["front", str(tmp_path), "--json", *options])
        values = json.loads(capsys.readouterr().out)
        return values["knee"], values["knee_within"]

    assert knee() == ("0002", 0.05)
    assert knee("--within", "0.01") == ("0001", 0.01)
    assert knee("--within", "1") == ("0002", 1.0)
    assert knee("--max-memory", "10MB") == ("0003", None)
    main(["front", str(tmp_path), "--within", "0.01"])
    assert "\n0001 *" in capsys.readouterr().out


def test_the_wide_front_has_a_column_a_setting_however_narrow_the_terminal(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["front", str(sweep), "--wide"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    (head,) = (number for number, words in enumerate(lines) if words[0] == "trial")
    assert lines[head][-1] == "trainable_blocks" and [row[-1] for row in lines[head + 2 : head + 4]] == ["2", "1"]


def test_list_has_a_line_for_every_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}}
    pets = {"space": space, "trial": {"data": {"dataset": "folder", "root": "/data/pets"}}}
    (sweep / "sweep.json").write_text(json.dumps(pets))
    for name, text in (("begun", json.dumps({"space": space})), ("broken", "{")):
        (sweep.parent / name).mkdir()
        (sweep.parent / name / "sweep.json").write_text(text)
    main(["list", "--storage", str(sweep.parent)])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    begun, mine, broken = (line.split(maxsplit=4) for line in lines[-3:])
    assert begun == ["begun", "0", "-", "-", "embedded, digits"]
    assert broken[0] == "broken:" and "is not YAML" in lines[-1]
    assert mine == ["mine", "3", "2", "0.9000", "embedded, /data/pets"]


def test_presets_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", "--list-presets"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 10
    assert re.search(r"^demo +The embedded backbone on scikit-learn's digits: ", out, re.MULTILINE)


def test_ui_prints_the_address_of_the_runs_and_becomes_the_server(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: became.append(words))
    monkeypatch.setattr("subprocess.Popen", lambda words, **how: started.append(words))
    main(["ui", "--storage", str(storage), "--port", "5001"])
    page = "http://127.0.0.1:5001/#/experiments?workflowType=machine_learning"
    assert capsys.readouterr().out == f"open {page}\n"
    (words,) = became
    assert words[1:5] == ["-m", "mlflow", "server", "--backend-store-uri"] and words[-4:-2] == ["--port", "5001"]
    assert words[5] == f"sqlite:///{storage / 'mlflow.db'}"
    assert not started  # nobody would see a browser
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("DISPLAY", ":0")
    main(["ui", "--storage", str(storage), "--no-browser"])
    assert not started
    main(["ui", "--storage", str(storage), "--port", "5001"])
    assert [words[-1] for words in started] == [page]


def test_ui_says_what_it_cannot_show(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (storage / "mine").mkdir()
    (storage / "mine" / "sweep.json").write_text("{}")
    for sweep, message in (
        ("nope", f"not under {storage}; there are: mine"),
        ("mine", f"MLflow does not have it yet; alast-tune sync {storage}/mine"),
    ):
        with pytest.raises(SystemExit):
            main(["ui", sweep, "--storage", str(storage)])
        assert capsys.readouterr().err == f"error: sweep = {sweep}: {message}\n"


def test_ui_opens_the_browser_once_the_server_answers(tmp_path: Path) -> None:
    program, opened = tmp_path / "browser", tmp_path / "opened"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    program.chmod(0o755)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False) as server:
        server.server_bind()
        page = f"http://127.0.0.1:{server.server_port}/#/experiments"
        environment = os.environ | {"BROWSER": str(program)}
        with subprocess.Popen([sys.executable, "-c", _OPEN, page], env=environment) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):  # nobody answers yet
                waiting.wait(1)
            assert not opened.exists()
            server.server_activate()
            server.handle_request()
            assert waiting.wait(60) == 0
    assert opened.read_text() == f"{page}\n"


def hostile(front: dict[str, Any], **member: Any) -> dict[str, Any]:
    front["front"][0] |= member
    return front


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda f: hostile(f, trial_id="/etc"), "front.0.trial_id"),
        (lambda f: hostile(f, trial_id="../0001"), "front.0.trial_id"),
        (lambda f: hostile(f, trial_id="a/../0001"), "front.0.trial_id"),
        (lambda f: hostile(f, trial_id="0001\x1b[2J"), "front.0.trial_id"),
        (lambda f: hostile(f, trial_id="\u0661\u0661\u0661\u0661"), "front.0.trial_id"),  # digits, but others
        (lambda f: hostile(f, mlflow_run_id="x' or '1' = '1"), "front.0.mlflow_run_id"),
        (lambda f: hostile(f, baseline="best"), "front.0.baseline"),
        (lambda f: hostile(f, origin="[red]x"), "front.0.origin"),
        (lambda f: hostile(f, objectives={"accuracy": 1.0}), "front.0.objectives"),
        (lambda f: hostile(f, objectives={"accuracy": "NaN", "train_flops": 1, "peak_bytes": 1}), "front.0.objectives"),
        (lambda f: f | {"sweep": "../../x"}, "sweep"),
        (lambda f: f | {"sweep": "\x1b]0;x\x07"}, "sweep"),
        (lambda f: f | {"knee": "/tmp"}, "knee"),
        (lambda f: f | {"reference_point": [0.0]}, "reference_point"),
        (lambda f: f | {"knee_within": "NaN"}, "knee_within"),
        (lambda f: f | {"region": {"source": "full", "floor": 1.0}}, "region.floor"),
        (lambda f: f | {"region": {"source": "\x1b[2J"}}, "region.source"),
        (lambda f: f | {"full_timing": {"train_seconds": 0, "device": "x"}}, "full_timing.train_seconds"),
        (lambda f: hostile(f, timing={"train_seconds": 1, "device": "x" * 201}), "front.0.timing.device"),
    ],
)
def test_a_front_that_leads_elsewhere_is_refused_by_all_who_read_it(
    change: Any, field: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep / "front.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    for command in (["front", str(sweep)], ["promote", str(sweep), "-o", str(tmp_path / "c.yaml"), "--verify"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith(f"error: sweep = {file}: is not a front.json: {field}")
        assert err.isprintable()


@pytest.mark.parametrize("link", ["verify", "verify/0001"])
def test_nothing_is_deleted_or_written_through_a_link_in_a_sweep(
    link: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "mine-too" / "0001" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (sweep / link).parent.mkdir(exist_ok=True)
    (sweep / link).symlink_to(kept.parent if link.endswith("1") else kept.parent.parent)
    with pytest.raises(SystemExit):
        main(["promote", str(sweep), "-o", str(tmp_path / "c.yaml"), "--pick", "1", "--verify"])
    assert "verify/0001 leads out of it, by a link; remove that" in capsys.readouterr().err
    assert kept.exists() and not (tmp_path / "c.yaml").exists()


def test_help_and_refusals_import_nothing_that_takes_seconds(tmp_path: Path) -> None:
    heavy = ("torch", "torchvision", "timm", "ray", "optuna", "mlflow", "pandas")
    lines = ["--help", "sweep --help", "train --help", "ui --help", "sweep --list-presets", "front none", "list"]
    code = (
        "import contextlib, sys\nfrom alast_tune.cli import main\n"
        f"for line in {lines}:\n"
        "    with contextlib.suppress(SystemExit):\n        main(line.split())\n"
        f"    assert not [name for name in {heavy} if name in sys.modules], line\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path, env=os.environ)


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"alast-tune {alast_tune.__version__}\n"


def test_an_option_that_has_no_default_is_asked_for_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["promote", "demo"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: promote.output = not given: it has no default; see --help\n"


def test_ui_leaves_alone_a_port_at_which_another_program_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["ui", "--storage", str(tmp_path), "--port", str(port)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(
        f"error: port = {port}: no server can listen at 127.0.0.1:{port} (Address already in use)"
    )
    assert not said.out
