"""What `alast-tune submit` sends, and what it refuses before it asks anybody; tests/e2e submits for real."""

from pathlib import Path

import pytest

from alast_tune.cli import main
from alast_tune.cli.submit import given_preset, sent_along
from alast_tune.errors import ConfigError
from tests.documents import ROOT


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "demo"], "error: address = not given: give the address of a head's"),
        (
            ["--address", "http://h:1"],
            "error: preset = not given: give what alast-tune sweep shall do",
        ),
        (
            ["--address", "http://h:1", "--preset", "demo"],
            "error: storage = not given: give --storage, a folder",
        ),
        (["--address", "http://h:1", "--preset", "no.yaml"], "error: preset = no.yaml: there is no such file here"),
        (
            ["--address", "http://127.0.0.1:1", "--preset=here.yaml"],
            "error: address = http://127.0.0.1:1: takes no",
        ),
        (["--address", "nonsense://x", "--preset", "demo", "--storage", "/s"], "error: address = nonsense://x: takes"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_a_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("storage: /shared/sweeps\n")  # which says where
    with pytest.raises(SystemExit) as stop:
        main(["submit", *arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_a_preset_s_file_is_found_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    monkeypatch.setenv("HERE", str(tmp_path))
    for words in (["--preset", "mine.yaml"], ["--trials", "3", "--preset=mine.yaml"], ["--preset", "$HERE/mine.yaml"]):
        found = given_preset(words)
        assert found and found.samefile("mine.yaml")
    assert given_preset(["--preset", "demo"]) is None and given_preset(["--resume", "pets"]) is None
    with pytest.raises(ConfigError, match="there is no such file here"):
        given_preset(["--preset", "other.yaml"])


def test_no_more_is_sent_along_than_a_job_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preset = tmp_path / "mine.yaml"
    preset.write_text("trials: 3\n")
    (tmp_path / "photographs").mkdir()
    with sent_along(None) as folder:
        assert folder is None
    with sent_along(preset) as folder:
        assert folder and folder != tmp_path and [file.name for file in folder.iterdir()] == ["mine.yaml"]
    monkeypatch.chdir(ROOT)  # a checkout: the job shall run its code
    with sent_along(preset) as folder:
        assert folder == ROOT


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["submit", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "alast-tune submit --address http://head:8265 --preset demo --storage s3://bucket/sweeps" in out
    assert max(map(len, out.splitlines())) <= 120
