"""Which checkpoints stay when a sweep is over, and that nothing else goes."""

from pathlib import Path

import pytest
from pyarrow import fs

from alast_tune.cli import main
from alast_tune.config import TrialConfig
from alast_tune.errors import ConfigError, StorageError
from alast_tune.results import TrialResult
from alast_tune.tune import retention
from alast_tune.tune.retention import Freed, drop_checkpoints, keep_front
from tests.unit.tune.test_search import report, searcher, sweep


def made(folder: Path, *checkpoints: str) -> None:
    for name in checkpoints:
        (folder / "tune" / name).mkdir(parents=True)
        (folder / "tune" / name / "state.pt").write_bytes(bytes(100))


def left(folder: Path) -> list[str]:
    return sorted(str(file.parent.relative_to(folder / "tune")) for file in (folder / "tune").rglob("state.pt"))


def trial(number: int, state: str) -> TrialResult:
    return TrialResult(number, state, TrialConfig(), {}, None, 1)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """0 on the front, twice begun; 1 dominated; 2 to go on; 3 failed."""
    sweep = tmp_path / "sweep"
    made(sweep, *(f"driver-00/0000/checkpoint_00000{n}" for n in (8, 9)), "driver-01/0000/checkpoint_000000")
    made(sweep, "driver-00/0001/checkpoint_000001", *(f"driver-00/0002/checkpoint_00000{n}" for n in (0, 1)))
    made(sweep, "driver-01/0003/checkpoint_000000")
    return sweep


TRIALS = [trial(0, "complete"), trial(1, "complete"), trial(2, "running"), trial(3, "failed")]
STAY = ["driver-00/0002/checkpoint_000000", "driver-00/0002/checkpoint_000001", "driver-01/0000/checkpoint_000000"]


def test_the_last_one_of_each_member_stays_and_those_that_are_gone_on_from(folder: Path) -> None:
    before = left(folder)
    assert drop_checkpoints(folder, TRIALS, {"0000"}, dry_run=True) == Freed(4, 400)
    assert left(folder) == before
    assert drop_checkpoints(folder, TRIALS, {"0000"}) == Freed(4, 400)
    assert left(folder) == STAY
    assert drop_checkpoints(folder, TRIALS, {"0000"}) == Freed()


def test_links_and_other_folders_are_left_alone(folder: Path, tmp_path: Path) -> None:
    made(tmp_path / "other", "driver-00/0001/checkpoint_000000", "mine/0001/checkpoint_000000")
    (folder / "tune" / "driver-07").symlink_to(tmp_path / "other" / "tune" / "driver-00")
    (folder / "tune" / "driver-00" / "0009").symlink_to(tmp_path / "other" / "tune" / "driver-00" / "0001")
    made(folder, "driver-00/notes/checkpoint_000000", "driver-00/0001/best")
    drop_checkpoints(folder, TRIALS, set())
    assert len(left(tmp_path / "other")) == 2
    assert {"driver-00/notes/checkpoint_000000", "driver-00/0001/best"} <= set(left(folder))


def test_nothing_is_deleted_where_all_checkpoints_lie_behind_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "tune").symlink_to(folder / "tune")
    with pytest.raises(ConfigError, match=r"^sweep = .*hostile: tune is a link, behind which nothing is deleted"):
        drop_checkpoints(tmp_path / "hostile", TRIALS, set())
    assert len(left(folder)) == 7


def test_the_last_one_that_is_whole_stays(folder: Path) -> None:
    (folder / "tune" / "driver-01" / "0000" / "checkpoint_000000" / "state.pt").unlink()
    drop_checkpoints(folder, TRIALS, {"0000"})
    assert left(folder) == ["driver-00/0000/checkpoint_000009", *STAY[:2]]


def test_what_cannot_be_deleted_is_said_and_ends_no_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidding(fs.LocalFileSystem):  # type: ignore[misc] # as object storage is that keeps all for a year
        def delete_dir(self, path: str) -> None:
            raise PermissionError(f"Cannot delete directory '{path}'\nfor good")

    monkeypatch.setattr(retention, "open_filesystem", lambda folder: (Forbidding(), str(folder)))
    with pytest.raises(StorageError, match=r"^storage .*sweep: a checkpoint cannot be deleted: Cannot [^\n]*'$"):
        drop_checkpoints(folder, TRIALS, set())
    search, study, _ = searcher(folder, config := sweep(trials=1))
    search.suggest("a")
    search.on_trial_complete("a", report(), error=True)
    said: list[str] = []
    keep_front(folder, config, study, lambda: None, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"checkpoints that the front does not need stay: storage {folder}: a checkpoint cannot")
    assert len(left(folder)) == 7


@pytest.mark.parametrize(("tested", "kept"), [({"0": 0.5}, ["0000", "0001"]), ({"0": 0.5, "1": None}, ["0000"])])
def test_whoever_could_not_be_tested_keeps_what_a_resumed_sweep_tests(
    tmp_path: Path, tested: dict[str, float | None], kept: list[str]
) -> None:
    config = sweep(sampler="grid", trials=2, space={"method/trainable_blocks": {"type": "int", "low": 1, "high": 2}})
    search, study, _ = searcher(tmp_path, config)
    for key, flops in (("a", 1e12), ("b", 1.5e12)):
        search.suggest(key)
        search.on_trial_complete(key, report(train_flops=flops))
    study.set_user_attr("test_accuracy", tested)
    made(tmp_path, *(f"driver-00/000{n}/checkpoint_00000{m}" for n in (0, 1) for m in (1, 2)))
    said: list[str] = []
    keep_front(tmp_path, config, study, lambda: None, said.append)
    assert left(tmp_path) == [f"driver-00/{trial}/checkpoint_000002" for trial in kept]
    assert len(said) == 1 and said[0].startswith("deleted what the front does not need: ")


def test_a_sweep_without_checkpoints_has_nothing_to_free(tmp_path: Path) -> None:
    assert str(drop_checkpoints(tmp_path, TRIALS, set())) == "0 checkpoints, 0 B"


def test_what_is_no_sweep_is_not_cleaned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["clean", str(folder)])
    assert exit_.value.code == 2 and "holds no sweep" in capsys.readouterr().err
    assert len(left(folder)) == 7
