"""Where sweeps are kept: addresses, their copies, and what of the original comes into them."""

from pathlib import Path

import pytest

from alast_tune.config import SweepConfig, flatten, parse
from alast_tune.errors import ConfigError
from alast_tune.lease import Timing, exclusive_driver
from alast_tune.storage import address_of, copy_of, display_path, fetch, is_copy, open_filesystem, path_below, words_for


@pytest.mark.parametrize("address", ["s3://bucket/sweeps", "gs://bucket", "s3://bucket/a/b c/ü"])
def test_an_address_and_its_copy_follow_from_one_another(address: str) -> None:
    copy = copy_of(address)
    assert is_copy(copy) and address_of(copy) == display_path(copy) == address
    assert copy_of(Path(address)) == copy  # which has lost a slash
    assert address_of(copy / "demo") == f"{address}/demo"
    assert copy_of(copy) == copy


def test_a_command_is_told_where_sweeps_are_in_few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words_for(Path("runs")) == words_for(tmp_path / "runs") == []
    assert words_for(Path("a/b")) == words_for(tmp_path / "a" / "b") == ["--storage", "a/b"]
    assert words_for(tmp_path.parent / "other") == ["--storage", str(tmp_path.parent / "other")]
    assert words_for(copy_of("s3://bucket/sweeps")) == ["--storage", "s3://bucket/sweeps"]


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert copy_of("runs") == Path("runs") and display_path(Path("runs")) == "runs" and not is_copy(Path("runs"))
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
    assert sweep.given_values()["storage"] == flatten(sweep)["storage"] == "s3://bucket/sweeps"
    assert SweepConfig.model_validate(sweep.given_values()) == sweep


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


NO_WAIT = Timing(sleep=lambda seconds: None)


def test_a_stale_copy_gives_way_to_what_is_kept(bucket: str) -> None:
    """Its write-ahead log too, or SQLite would put old pages into the new file."""
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT):
        (folder / "study.db").write_bytes(b"")
    for end in ("wal", "shm"):
        (folder / f"study.db-{end}").write_bytes(b"of a driver that was killed")
    (folder / "study.db").write_bytes(b"ahead")
    fetch(folder)
    assert (folder / "study.db").read_bytes().startswith(b"SQLite format 3")
    assert {path.name for path in folder.iterdir()} <= {"study.db", "driver.lock"}


def test_objects_in_the_place_of_folders_are_no_files(bucket: str) -> None:
    """Ray makes them through pyarrow."""
    folder = copy_of(f"{bucket}/demo")
    filesystem, root = open_filesystem(folder)
    for place in (root, f"{root}/front", f"{root}/tune/driver-00"):
        filesystem.create_dir(place)
    with exclusive_driver(folder, timing=NO_WAIT):
        (folder / "front").mkdir(exist_ok=True)
        (folder / "front" / "front.png").write_text("1")
    (folder / "front" / "front.png").unlink()
    fetch(folder)
    assert (folder / "front" / "front.png").read_text() == "1" and not (folder / "tune").exists()


def test_a_copy_that_a_driver_works_on_is_left_alone(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT) as hold:
        (folder / "front.json").write_text("1")
        hold.save()
        (folder / "front.json").write_text("2")
        fetch(folder / "front.json")
        assert (folder / "front.json").read_text() == "2"
    (folder / "front.json").unlink()
    fetch(folder / "front.json")
    assert (folder / "front.json").read_text() == "2"


def test_storage_that_refuses_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(objects: object, name: str) -> None:
        raise OSError("When reading: AWS Error ACCESS_DENIED: no\nand more")

    folder = copy_of("s3://no-such-bucket/sweeps/demo")
    line = r"^storage = s3://no-such-bucket/sweeps/demo: cannot be used \(NoSuchBucket.+\); see clusters/README.md$"
    with pytest.raises(ConfigError, match=line), exclusive_driver(folder, timing=NO_WAIT):
        pass
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT):
        (folder / "front.json").write_text("1")
    monkeypatch.setattr("alast_tune.objects.Objects.get", broken)
    with pytest.raises(ConfigError, match=r"^storage = .+/demo: cannot be used \(ACCESS_DENIED: no\); see clusters"):
        fetch(folder)


def test_a_name_that_no_bucket_has_is_one_line(bucket: str) -> None:
    with pytest.raises(ConfigError, match=r"^storage = s3://UPPER CASE: cannot be used \("):
        open_filesystem(copy_of("s3://UPPER CASE"))


@pytest.mark.slow
def test_storage_that_does_not_answer_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some tries, which take seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = r"^storage = s3://.+/demo: cannot be used \(HTTP error: error sending request\); see clusters/README.md"
    with pytest.raises(ConfigError, match=line):
        fetch(copy_of(f"{bucket}/demo"))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("s3://bucket/../../..", "leads out of its bucket"),
        ("s3://bucket/a/../../b", "leads out of its bucket"),
        ("s3://key:secret@bucket/x", "holds a password"),
    ],
)
def test_an_address_leads_out_of_nothing_and_holds_no_password(wrong: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        copy_of(wrong)


def test_no_link_leads_out_of_a_folder(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (sweep / "promoted" / "0001").mkdir(parents=True)
    assert path_below(sweep, "promoted", "0001") == sweep / "promoted" / "0001"
    assert path_below(sweep, "verify", "0001") == sweep / "verify" / "0001"  # not there yet
    (tmp_path / "by-link").symlink_to(sweep)
    assert path_below(tmp_path / "by-link", "verify", "0001").parts[-2:] == (
        "verify",
        "0001",
    )  # the sweep's own is the user's
    (sweep / "promoted" / "0001" / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    (sweep / "verify").symlink_to(tmp_path)
    for name in ("promoted", "verify"):
        with pytest.raises(ConfigError, match=r"leads out of it, by a link; remove that$"):
            path_below(sweep, name, "0001")
