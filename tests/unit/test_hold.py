"""Who may work on a sweep's folder, and what is brought from its copy to where it is kept, and when."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import boto3
import pytest

from alast_tune import hold as hold_module
from alast_tune.errors import ConfigError, StorageError
from alast_tune.hold import Hold, only_driver
from alast_tune.storage import copy_of, fetch, listing, names_with, opened


def test_what_one_machine_saves_another_finds(bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder) as hold:
        (folder / "sweep.json").write_text("{}")
        (folder / "front").mkdir()
        (folder / "front" / "front.png").write_bytes(b"picture")
        (folder / "half.tmp").write_text("not yet")
        (folder / "tune").mkdir()
        (folder / "tune" / "workers").write_text("their own")
        hold.save()
        there = {entry.base_name for entry in listing(folder)}
    assert there == {"driver.json", "sweep.json", "front"}
    assert {entry.base_name for entry in listing(folder)} == {"sweep.json", "front"}  # the hold ends with the driver

    monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
    other = copy_of(f"{bucket}/demo")
    assert other != folder and names_with(other.parent, "sweep.json") == ["demo"]
    fetch(other)
    assert (other / "front" / "front.png").read_bytes() == b"picture" and not (other / "tune").exists()


def test_a_study_is_saved_whole_while_sqlite_writes_beside_it(
    bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(f"{bucket}/demo")

    def rows(database: Path) -> int:
        with closing(sqlite3.connect(database)) as connection:
            return int(connection.execute("select count(*) from t").fetchone()[0])

    with only_driver(folder) as hold, closing(sqlite3.connect(folder / "study.db")) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (x)")
        connection.commit()
        hold.save()
        connection.execute("insert into t values (1)")
        connection.commit()  # into study.db-wal alone
        hold.save()
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        other = copy_of(f"{bucket}/demo")
        fetch(other)
        assert not (other / "study.db-wal").exists() and rows(other / "study.db") == 1
        monkeypatch.undo()


def test_only_what_has_changed_is_written_and_not_too_often(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")

    def written() -> dict[str, object]:
        name, _, prefix = bucket.removeprefix("s3://").partition("/")
        found = boto3.client("s3").list_objects_v2(Bucket=name, Prefix=f"{prefix}/demo")["Contents"]
        return {entry["Key"].rsplit("/", 1)[1]: entry["LastModified"] for entry in found}

    with only_driver(folder) as hold:
        for name in ("a", "b"):
            (folder / name).write_text("1")
        hold.save()
        before = written()
        time.sleep(1.1)  # the server's clock has whole seconds
        (folder / "b").write_text("22")
        hold.save(every=60)
        assert written()["b"] == before["b"]
        hold.save()
        after = written()
    assert after["a"] == before["a"] and after["b"] != before["b"]


def test_a_second_driver_elsewhere_waits_for_a_dead_one_and_is_refused_by_one_alive(
    bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder):
        (folder / "sweep.json").write_text("{}")
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        said: list[str] = []
        with (
            pytest.raises(ConfigError, match=r"^name = demo: another driver is at work on it, on .+; wait for it"),
            only_driver(copy_of(f"{bucket}/demo"), say=said.append),
        ):
            pass
        assert len(said) == 1 and "may be alive; waiting " in said[0]

    monkeypatch.setattr(hold_module, "LEASE_SECONDS", 8.0)
    monkeypatch.setattr(Hold, "_stay", lambda hold: None)  # a driver that dies: it says nothing more
    dead = Hold(copy_of(f"{bucket}/demo"))
    dead.take("name", print)
    with only_driver(dead.folder, say=said.append):
        assert len(said) == 2


def test_a_driver_that_has_lost_its_hold_writes_nothing_more(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_module, "LEASE_SECONDS", 0.4)
    folder = copy_of(f"{bucket}/demo")
    filesystem, root = opened(folder)
    folder.mkdir(parents=True)
    hold = Hold(folder)
    hold.take("name", print)
    end = time.monotonic() + 60
    while not hold._lost:
        with filesystem.open_output_stream(f"{root}/driver.json") as out:
            out.write(json.dumps({"owner": "other", "host": "elsewhere", "pid": 1, "at": time.time()}).encode())
        assert time.monotonic() < end
        time.sleep(0.05)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(StorageError, match="another driver has taken over; this one ends here"):
        hold.save()
    hold.release()
    assert {entry.base_name for entry in listing(folder)} == {"driver.json"}  # the other's
