"""Where sweeps are kept: addresses, their copies, and what of the original comes into them."""

from pathlib import Path

import pytest

from alast_tune.config import SweepConfig, flatten, parse
from alast_tune.errors import ConfigError
from alast_tune.hold import only_driver
from alast_tune.storage import address_of, copy_of, fetch, is_copy, shown


@pytest.mark.parametrize("address", ["s3://bucket/sweeps", "gs://bucket", "s3://bucket/a/b c/ü"])
def test_an_address_and_its_copy_follow_from_one_another(address: str) -> None:
    copy = copy_of(address)
    assert is_copy(copy) and address_of(copy) == shown(copy) == address
    assert copy_of(Path(address)) == copy  # which has lost a slash
    assert address_of(copy / "demo") == f"{address}/demo"
    assert copy_of(copy) == copy


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert copy_of("runs") == Path("runs") and shown(Path("runs")) == "runs" and not is_copy(Path("runs"))
    assert address_of(tmp_path / "runs") == str(tmp_path / "runs")
    fetch(tmp_path / "nothing there")
    assert not (tmp_path / "nothing there").exists()


@pytest.mark.parametrize("wrong", ["az://container/x", "https://bucket/x", "s3://", "s3://b/x?endpoint_override=y"])
def test_other_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="no folder, and not s3://BUCKET"):
        copy_of(wrong)


def test_a_sweep_writes_its_storage_as_the_address() -> None:
    sweep = SweepConfig.model_validate(
        {"storage": "s3://bucket/sweeps", "space": {"method/trainable_blocks": {"type": "int", "low": 1, "high": 2}}}
    )
    assert sweep.storage == copy_of("s3://bucket/sweeps")
    assert sweep.given()["storage"] == flatten(sweep)["storage"] == "s3://bucket/sweeps"
    assert SweepConfig.model_validate(sweep.given()) == sweep


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ("postgresql://u:secret@host/db", r"^study = postgresql://u:\.\.\.@host/db: holds a password"),
        ("postgresql://u@host/db?password=secret", r"^study = postgresql://u@host/db: holds a password"),
        ("mysql://host/db", r"^study = mysql://host/db: none of sqlite, journal and postgresql://"),
    ],
)
def test_a_study_is_somewhere_known_and_its_address_holds_no_secret(study: str, line: str) -> None:
    space = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 2}}
    with pytest.raises(ConfigError, match=line) as refused:
        parse(SweepConfig, {"study": study, "space": space})
    assert "secret" not in str(refused.value)


def test_a_stale_copy_gives_way_to_what_is_kept(bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its write-ahead log too, or SQLite would put old pages into the new file."""
    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder):
        (folder / "study.db").write_bytes(b"")
    (folder / "study.db-wal").write_bytes(b"of a driver that was killed")
    (folder / "study.db").write_bytes(b"ahead")
    fetch(folder)
    assert (folder / "study.db").read_bytes() != b"ahead" and not (folder / "study.db-wal").exists()


def test_a_copy_that_a_driver_works_on_is_left_alone(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder) as hold:
        (folder / "front.json").write_text("1")
        hold.save()
        (folder / "front.json").write_text("2")
        fetch(folder)
        assert (folder / "front.json").read_text() == "2"


def test_storage_that_does_not_answer_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = r"^storage = s3://.+/demo: cannot be used \(.*Could not connect to server\); see clusters/README.md"
    with pytest.raises(ConfigError, match=line), only_driver(copy_of(f"{bucket}/demo")):
        pass
    with pytest.raises(ConfigError, match=line):
        fetch(copy_of(f"{bucket}/demo"))
