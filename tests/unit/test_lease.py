"""Who may work on a sweep's folder, and what is brought from its copy to where it is kept, and when."""

import json
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest

from alast_tune.errors import ConfigError, StorageError
from alast_tune.lease import SweepLease, Timing, exclusive_driver
from alast_tune.objects import Objects
from alast_tune.storage import copy_of, fetch, listing, names_with, objects_of

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


def lease(folder: Path, renewal: int = 1, owner: str | None = "other") -> None:
    """Say that a driver on another machine holds a folder."""
    objects = objects_of(folder)
    objects.get("driver.json")
    objects.put("driver.json", json.dumps({"owner": owner, "host": "there", "pid": 1, "renewal": renewal}).encode())


def leased(folder: Path) -> dict[str, Any]:
    return json.loads(objects_of(folder).get("driver.json") or b"{}")


def names(folder: Path) -> set[str]:
    return {entry.base_name for entry in listing(folder)}


def test_what_one_machine_saves_another_finds(bucket: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT) as hold:
        (folder / "sweep.json").write_text("{}")
        (folder / "front").mkdir()
        (folder / "front" / "front.png").write_bytes(b"picture")
        (folder / "half.tmp").write_text("not yet")
        (folder / "tune").mkdir()
        (folder / "tune" / "workers").write_text("their own")
        hold.save()
        assert names(folder) == {"driver.json", "sweep.json", "front"}
        (folder / "late").write_text("saved at the end")
    assert names(folder) == {"driver.json", "sweep.json", "front", "late"} and leased(folder)["owner"] is None

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
        exclusive_driver(folder, timing=NO_WAIT) as hold,
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
    with exclusive_driver(folder, timing=time.timing()):
        (folder / "a").write_text("1")

    with exclusive_driver(folder, timing=time.timing()) as hold:  # which knows what is there
        monkeypatch.setattr(hold._saver, "_put", lambda name, contents: written.append((name, contents)))
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


def test_an_outage_names_the_sweep_to_go_on_with(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, contents: bytes) -> None:
        raise OSError("AWS Error SLOW_DOWN: later")

    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT) as hold:
        (folder / "a").write_text("1")
        with monkeypatch.context() as patch:
            patch.setattr(hold._saver, "_put", broken)
            with pytest.raises(StorageError, match=r"sweeps/demo: SLOW_DOWN: later; nothing .* --resume demo$"):
                hold.save()
    assert names(folder) == {"a", "driver.json"}


def test_a_second_driver_on_this_machine_is_refused(tmp_path: Path) -> None:
    with (
        exclusive_driver(tmp_path / "demo"),
        pytest.raises(ConfigError, match=r"^output = demo: another driver is at work on it; wait for it or stop it"),
        exclusive_driver(tmp_path / "demo", "output"),
    ):
        pass
    with exclusive_driver(tmp_path / "demo") as hold:
        hold.save()  # nothing to do for a folder that is no copy
    assert {path.name for path in (tmp_path / "demo").iterdir()} <= {"driver.lock"}


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
def test_a_driver_that_died_is_waited_for_a_whole_lease_whatever_its_clock_said(bucket: str, skew: float) -> None:
    folder, said = copy_of(f"{bucket}/demo"), list[str]()
    time = Time()
    old = SweepLease(folder, Timing(clock=lambda: NOW + skew + time.passed, renewal_seconds=3600))
    folder.mkdir(parents=True)
    old.acquire("name", print)
    with exclusive_driver(folder, say=said.append, timing=time.timing()):
        assert said == [
            f"demo: its last driver, on {socket.gethostname()}, may be alive; waiting 30 s for a sign of it"
        ]
        assert time.passed == LEASE and leased(folder)["owner"] != old._owner["owner"]
        (folder / "sweep.json").write_text("{}")
        with pytest.raises(StorageError, match="another driver has taken over; this one ends here"):
            old.save()
        old.release()
        assert leased(folder)["owner"] not in {None, old._owner["owner"]}


def test_a_driver_that_lives_is_seen_at_its_first_sign(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    lease(folder)
    time = Time(lambda: lease(folder, 2) if time.passed == 3 else None)
    said: list[str] = []
    with pytest.raises(ConfigError, match=REFUSED), exclusive_driver(folder, say=said.append, timing=time.timing()):
        pass
    assert time.passed == 3 and len(said) == 1
    assert leased(folder) == {"owner": "other", "host": "there", "pid": 1, "renewal": 2}


@pytest.mark.parametrize("gone", [False, True])
def test_a_lease_that_is_given_back_meanwhile_need_not_run_out(bucket: str, gone: bool) -> None:
    folder = copy_of(f"{bucket}/demo")
    lease(folder)

    def give_back() -> None:
        if time.passed == 3:
            objects_of(folder).delete("driver.json") if gone else lease(folder, owner=None)

    time = Time(give_back)
    with exclusive_driver(folder, say=lambda line: None, timing=time.timing()):
        assert time.passed == 3 and leased(folder)["owner"] != "other"
    with exclusive_driver(folder, timing=time.timing()):
        assert time.passed == 3  # given back


def test_a_lease_that_cannot_be_read_runs_out_too(bucket: str) -> None:
    folder, time, said = copy_of(f"{bucket}/demo"), Time(), list[str]()
    objects_of(folder).put("driver.json", b"{")
    with exclusive_driver(folder, say=said.append, timing=time.timing()):
        assert time.passed == LEASE and "on an unknown host" in said[0]


@pytest.mark.parametrize("left", ["nothing", "given back", "run out"])
def test_of_drivers_that_come_at_the_same_time_one_has_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """All have seen the same when they write, each on a machine of its own."""
    folder, count = copy_of(f"{bucket}/demo"), 4
    if left != "nothing":
        lease(folder, owner=None if left == "given back" else "other")
    together, write = threading.Barrier(count), SweepLease._write
    refused: list[ConfigError] = []

    def at_once(self: SweepLease, objects: Objects) -> None:
        together.wait(60)
        write(self, objects)

    monkeypatch.setattr(SweepLease, "_write", at_once)
    monkeypatch.setattr("alast_tune.lease.download", lambda folder, objects: None)
    leases = [SweepLease(folder, Time().timing(renewal_seconds=3600)) for _ in range(count)]
    folder.mkdir(parents=True)

    def drive(lease: SweepLease) -> None:
        try:
            lease.acquire("name", lambda line: None)
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=drive, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (lease for lease in leases if lease._saver)
    assert len(refused) == count - 1 and all(str(error).startswith("name = demo: another") for error in refused)
    for loser in leases:
        if loser is not winner:
            loser.release()
    assert leased(folder)["owner"] == winner._owner["owner"]
    winner.release()
    assert leased(folder)["owner"] is None


def test_the_lease_is_renewed_until_it_is_released_also_after_whatever_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, renewed, said = copy_of(f"{bucket}/demo"), threading.Event(), list[str]()
    tries: list[int] = []
    write = SweepLease._write

    def with_outage(self: SweepLease, objects: Objects) -> None:
        tries.append(len(tries))
        if len(tries) in {2, 3}:
            raise ValueError("away") if len(tries) == 2 else BaseException("panic")
        write(self, objects)
        if len(tries) == 5:
            renewed.set()

    monkeypatch.setattr(SweepLease, "_write", with_outage)
    with exclusive_driver(folder, say=said.append, timing=Time().timing(renewal_seconds=0.01)) as hold:
        assert renewed.wait(60)
    assert said == [f"{bucket}/demo: its lease was not renewed (away); trying again"]  # once
    assert hold._thread and not hold._thread.is_alive() and leased(folder)["owner"] is None
    hold.renew()  # what came in between does not bring it back
    assert leased(folder)["owner"] is None


def test_a_renewal_whose_answer_was_lost_is_a_renewal(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT) as hold:
        lease(folder, 99, hold._owner["owner"])
        hold.renew()
        (folder / "sweep.json").write_text("{}")
        hold.save()
        assert leased(folder)["renewal"] == hold._renewals and "sweep.json" in names(folder)


@pytest.mark.parametrize("by", ["other", None])
def test_a_driver_that_has_lost_its_lease_writes_nothing_more(bucket: str, by: str | None) -> None:
    folder = copy_of(f"{bucket}/demo")
    folder.mkdir(parents=True)
    hold = SweepLease(folder, Time().timing(renewal_seconds=0.3))
    hold.acquire("name", print)
    with hold._turn:  # between two renewals
        lease(folder, owner=by)  # whose is over already, if by nobody
    assert hold._thread
    hold._thread.join(60)
    assert not hold._thread.is_alive() and not hold._released.is_set()
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(StorageError, match="another driver has taken over; this one ends here"):
        hold.save()
    hold.release()
    assert names(folder) == {"driver.json"} and leased(folder)["owner"] == by


def test_a_driver_that_could_not_renew_for_a_lease_writes_only_if_it_still_can(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, time = copy_of(f"{bucket}/demo"), Time()

    def away(self: SweepLease, objects: Objects) -> None:
        raise OSError("away")

    with exclusive_driver(folder, timing=time.timing(renewal_seconds=3600)) as hold:
        (folder / "sweep.json").write_text("{}")
        with monkeypatch.context() as patch:
            patch.setattr(SweepLease, "_write", away)
            time.passed += LEASE
            with pytest.raises(StorageError, match="away; nothing finished is lost"):
                hold.save()
            assert names(folder) == {"driver.json"}
        before = leased(folder)["renewal"]
        hold.save()
        assert "sweep.json" in names(folder) and leased(folder)["renewal"] == before + 1


def test_a_write_that_was_under_way_when_another_took_over_spoils_nothing(bucket: str) -> None:
    folder = copy_of(f"{bucket}/demo")
    with exclusive_driver(folder, timing=NO_WAIT) as hold:
        (folder / "study.jsonl").write_text("ours\n")
        objects_of(folder).put("study.jsonl", b"late\n")
        with pytest.raises(StorageError, match="another driver has taken over"):
            hold.save()
        assert objects_of(folder).get("study.jsonl") == b"late\n"
        (folder / "study.jsonl").unlink()


def test_a_store_that_ignores_conditions_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = obstore.put

    def ignoring(store: Any, name: str, contents: bytes, *, mode: object, **options: Any) -> Any:
        return put(store, name, contents, **options)

    monkeypatch.setattr(obstore, "put", ignoring)
    line = r"^storage = s3://.+/demo: ignores If-None-Match and If-Match, which keep two drivers apart; use"
    with pytest.raises(ConfigError, match=line), exclusive_driver(copy_of(f"{bucket}/demo"), timing=NO_WAIT):
        pass
