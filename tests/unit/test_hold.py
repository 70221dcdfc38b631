"""Who may work on a sweep's folder, and what is brought from its copy to where it is kept, and when."""

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alast_tune.errors import ConfigError, StorageError
from alast_tune.hold import Hold, Timing, only_driver
from alast_tune.storage import copy_of, fetch, listing, names_with, opened

NOW = 1e9
LEASE = Timing().lease_seconds
REFUSED = r"^name = demo: another driver is at work on it, on there; wait for it"


class Time:
    """A clock that only sleeping moves on; while it sleeps, others do something."""

    def __init__(self, others: Callable[[], object] = lambda: None) -> None:
        self.passed = 0.0
        self._others = others

    def timing(self, **options: float) -> Timing:
        return Timing(clock=lambda: NOW + self.passed, sleep=self._sleep, **options)

    def _sleep(self, seconds: float) -> None:
        self.passed += seconds
        self._others()


NO_WAIT = Time().timing()


def lease(folder: Path, at: float, owner: str = "other") -> None:
    """Say that a driver on another machine holds a folder."""
    filesystem, root = opened(folder)
    with filesystem.open_output_stream(f"{root}/driver.json") as out:
        out.write(json.dumps({"owner": owner, "host": "there", "pid": 1, "at": at}).encode())


def leased(folder: Path) -> dict[str, Any]:
    filesystem, root = opened(folder)
    with filesystem.open_input_stream(f"{root}/driver.json") as file:
        return json.loads(file.read())


def names(folder: Path) -> set[str]:
    return {entry.base_name for entry in listing(folder)}


def test_what_one_machine_saves_another_finds(bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder, timing=NO_WAIT) as hold:
        (folder / "sweep.json").write_text("{}")
        (folder / "front").mkdir()
        (folder / "front" / "front.png").write_bytes(b"picture")
        (folder / "half.tmp").write_text("not yet")
        (folder / "tune").mkdir()
        (folder / "tune" / "workers").write_text("their own")
        hold.save()
        assert names(folder) == {"driver.json", "sweep.json", "front"}
        (folder / "late").write_text("saved at the end")
    assert names(folder) == {"sweep.json", "front", "late"}  # the hold ends with the driver

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

    with (
        only_driver(folder, timing=NO_WAIT) as hold,
        closing(sqlite3.connect(folder / "study.db")) as connection,
    ):
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (x)")
        connection.commit()
        hold.save()
        connection.execute("insert into t values (1)")
        connection.commit()  # into study.db-wal alone
        hold.save()
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", elsewhere)
            other = copy_of(f"{bucket}/demo")
            fetch(other)
        assert not (other / "study.db-wal").exists() and rows(other / "study.db") == 1


def test_only_what_has_changed_is_written_and_not_too_often(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, time, written = copy_of(f"{bucket}/demo"), Time(), []
    with only_driver(folder, timing=time.timing()):
        (folder / "a").write_text("1")

    with only_driver(folder, timing=time.timing()) as hold:  # which knows what is there
        monkeypatch.setattr(hold, "_write", lambda name, contents: written.append((name, contents)))
        for name in ("b", "study.db"):
            (folder / name).touch()
        hold.save()
        assert [name for name, _ in written] == ["study.db", "b"]  # the truth first
        hold.save()
        (folder / "b").write_text("22")
        time.passed += 59
        hold.save(every=60)
        assert len(written) == 2
        time.passed += 1
        hold.save(every=60)
        assert written[2:] == [("b", b"22")]
        (folder / "b").write_text("333")
        time.passed -= 3600  # somebody has put the clock back
        hold.save(every=60)
        assert written[3:] == [("b", b"333")]


def test_an_outage_names_the_sweep_to_go_on_with(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, contents: bytes) -> None:
        raise OSError("AWS Error SLOW_DOWN: later")

    folder = copy_of(f"{bucket}/demo")
    with only_driver(folder, timing=NO_WAIT) as hold:
        (folder / "a").write_text("1")
        with monkeypatch.context() as patch:
            patch.setattr(hold, "_write", broken)
            with pytest.raises(StorageError, match=r"sweeps/demo: SLOW_DOWN: later; nothing .* --resume demo$"):
                hold.save()
    assert names(folder) == {"a"}


def test_a_second_driver_on_this_machine_is_refused(tmp_path: Path) -> None:
    with (
        only_driver(tmp_path / "demo"),
        pytest.raises(ConfigError, match=r"^output = demo: another driver is at work on it; wait for it or stop it"),
        only_driver(tmp_path / "demo", "output"),
    ):
        pass
    with only_driver(tmp_path / "demo") as hold:
        hold.save()  # nothing to do for a folder that is no copy
    assert {path.name for path in (tmp_path / "demo").iterdir()} <= {"driver.lock"}


def test_a_driver_that_died_is_waited_for_until_its_lease_has_run_out(bucket: str) -> None:
    folder, said = copy_of(f"{bucket}/demo"), list[str]()
    lease(folder, NOW - 10)
    time = Time()
    with only_driver(folder, say=said.append, timing=time.timing()):
        assert said == ["demo: its last driver, on there, may be alive; waiting 20 s for a sign of it"]
        assert time.passed == LEASE - 10 + 1  # and a second for others that come at the same time
        assert leased(folder)["at"] == NOW + LEASE - 10


@pytest.mark.parametrize(("age", "waits"), [(LEASE, 0), (LEASE - 0.5, 1), (-3600, LEASE)])
def test_the_wait_is_what_is_left_and_a_lease_at_most_if_clocks_differ(bucket: str, age: float, waits: float) -> None:
    folder, time = copy_of(f"{bucket}/demo"), Time()
    lease(folder, NOW - age)
    with only_driver(folder, say=lambda line: None, timing=time.timing()):
        assert time.passed == waits + 1


def test_a_driver_that_lives_is_seen_at_its_first_sign(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    lease(folder, NOW - 10)
    time = Time(lambda: lease(folder, NOW + 1) if time.passed == 3 else None)
    said: list[str] = []
    with pytest.raises(ConfigError, match=REFUSED), only_driver(folder, say=said.append, timing=time.timing()):
        pass
    assert time.passed == 3 and len(said) == 1
    assert leased(folder) == {"owner": "other", "host": "there", "pid": 1, "at": NOW + 1}


def test_a_lease_that_is_given_back_meanwhile_need_not_run_out(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    lease(folder, NOW)
    filesystem, root = opened(folder)
    time = Time(lambda: filesystem.delete_file(f"{root}/driver.json") if time.passed == 3 else None)
    with only_driver(folder, say=lambda line: None, timing=time.timing()):
        assert time.passed == 3 + 1
        assert leased(folder)["owner"] != "other"


def test_of_two_that_come_at_the_same_time_the_last_to_write_has_it(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    time = Time(lambda: lease(folder, NOW))
    with pytest.raises(ConfigError, match=REFUSED), only_driver(folder, timing=time.timing()):
        pass
    assert time.passed == 1 and leased(folder)["owner"] == "other"


def test_the_lease_is_renewed_until_it_is_released_also_after_an_outage(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tries, renewed = copy_of(f"{bucket}/demo"), list[int](), threading.Event()
    renew = Hold._renew

    def with_outage(hold: Hold) -> None:
        tries.append(len(tries))
        if len(tries) == 2:
            raise OSError("away")
        renew(hold)
        if len(tries) == 4:
            renewed.set()

    monkeypatch.setattr(Hold, "_renew", with_outage)
    with only_driver(folder, timing=Time().timing(renewal_seconds=0.01)) as hold:
        assert renewed.wait(60)
    assert not hold._renewal.is_alive() and names(folder) == set()
    hold._stay_or_lose()  # what came in between does not bring it back
    assert names(folder) == set()


def test_a_driver_that_has_lost_its_hold_writes_nothing_more(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    folder.mkdir(parents=True)
    hold = Hold(folder, NO_WAIT)
    hold.take("name", print)
    filesystem, root = opened(folder)
    filesystem.delete_file(f"{root}/driver.json")  # by whom ever: it is nobody else's
    hold._stay_or_lose()
    assert leased(folder)["owner"] != "other"
    lease(folder, NOW)
    hold._stay_or_lose()
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(StorageError, match="another driver has taken over; this one ends here"):
        hold.save()
    hold.release()
    assert names(folder) == {"driver.json"} and leased(folder)["owner"] == "other"


def test_a_renewal_ends_when_the_lease_is_lost(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    folder.mkdir(parents=True)
    hold = Hold(folder, Time().timing(renewal_seconds=0.01))
    hold.take("name", print)
    for _ in range(600):  # it may renew between our write and its next look
        lease(folder, NOW)
        hold._renewal.join(0.1)
        if not hold._renewal.is_alive():
            break
    assert not hold._renewal.is_alive() and not hold._released.is_set()
    hold.release()
    assert leased(folder)["owner"] == "other"
