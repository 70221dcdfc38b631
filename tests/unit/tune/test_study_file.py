"""Which file a study is in, and what of one that only grows survives."""

import resource
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.storage import copy_of
from alast_tune.tune.study_file import StudyFile, StudyJournal
from alast_tune.tune.trials import open_study


def sweep(study: str | None) -> SweepConfig:
    space = {"method/trainable_blocks": {"type": "int", "low": 1, "high": 12}}
    return SweepConfig.model_validate({"space": space} | ({"study": study} if study else {}))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = copy_of("s3://bucket/sweeps/sweep")
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.name.startswith("study") and not file.name.endswith("lock")}


@pytest.mark.parametrize(("study", "file"), [(None, "study.db"), ("sqlite", "study.db"), ("journal", "study.jsonl")])
def test_in_a_folder_a_study_is_a_database_unless_a_journal_is_asked_for(
    tmp_path: Path, study: str | None, file: str
) -> None:
    open_study(sweep(study), tmp_path, new=True).set_user_attr("a", 1)
    assert file in files(tmp_path) <= {file, f"{file}-wal", f"{file}-shm"}
    assert open_study(sweep(None), tmp_path).user_attrs == {"a": 1}


@pytest.mark.parametrize("study", [None, "journal"])
def test_in_object_storage_a_study_only_grows(copy: Path, study: str | None) -> None:
    first = open_study(sweep(study), copy, new=True)
    first.ask()
    assert files(copy) == {"study.jsonl"}
    size = (copy / "study.jsonl").stat().st_size
    again = open_study(sweep(None), copy)
    assert [trial.state for trial in again.trials] == [TrialState.RUNNING]
    assert (copy / "study.jsonl").stat().st_size == size  # reading writes nothing


def test_in_object_storage_a_new_study_is_no_database_while_one_that_is_there_is_gone_on_with(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"^study = sqlite: a database in object storage is uploaded whole for each"):
        open_study(sweep("sqlite"), copy, new=True)
    assert not files(copy)
    old = optuna.create_study(storage=f"sqlite:///{copy / 'study.db'}", study_name="sweep", directions=["maximize"] * 3)
    old.ask()
    for study in (None, "sqlite"):
        assert len(open_study(sweep(study), copy).trials) == 1
    assert "study.jsonl" not in files(copy)


@pytest.mark.parametrize(("ours", "theirs", "same"), [
    (None, "sqlite", True), (None, "journal", True), ("journal", None, True), (None, None, True),
    ("sqlite", "journal", False), (None, "postgresql://host/db", False), ("postgresql://host/db", None, False),
])  # fmt: skip
def test_a_sweep_that_names_no_study_goes_on_with_the_file_that_is_there(
    ours: str | None, theirs: str | None, same: bool
) -> None:
    assert (sweep(ours).difference(sweep(theirs)) is None) == same


def test_half_a_line_is_not_there_and_a_full_disk_leaves_none(tmp_path: Path) -> None:
    file = tmp_path / "study.jsonl"
    study = optuna.create_study(storage=StudyJournal(file), study_name="a")
    study.ask()
    whole = file.read_bytes()
    with file.open("ab") as out:
        out.write(b'{"op_code": 4, "wor')
    assert len(optuna.load_study(storage=StudyJournal(file), study_name="a").trials) == 1
    StudyFile(file).append_logs([])  # by a driver
    assert file.read_bytes() == whole
    file.write_bytes(b"x" * 100_000)
    StudyFile(file).append_logs([])
    assert file.read_bytes() == b""
    file.write_bytes(whole)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, before[1]))  # writes five bytes, and no more
    try:
        with pytest.raises(OSError, match="No space left on device"):
            StudyFile(file).append_logs([{"op_code": 4}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == whole
