"""What a driver uploads of its copy: of files that grow what is new, of others what has changed."""

import json
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from alast_tune.objects import Objects, OverwrittenError
from alast_tune.saver import Saver
from alast_tune.segments import name_at, parse, segments_of
from alast_tune.storage import download


class Killed(BaseException):
    """In the place of SIGKILL: nothing is written after it."""


class Machine:
    """A driver's copy and what it uploads."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        folder.mkdir(parents=True, exist_ok=True)
        download(folder, objects)
        self.saver = Saver(folder, objects, lambda: None)
        self.uploaded = 0
        put = objects.put

        def counted(name: str, contents: bytes) -> None:
            put(name, contents)
            self.uploaded += len(contents)

        objects.put = counted  # type: ignore[method-assign]

    @property
    def study(self) -> Path:
        return self.folder / "study.jsonl"

    def trial(self, number: int, size: int = 1000) -> None:
        """Write and save as a trial starts and ends."""
        for what in ("starts", "ends"):
            with self.study.open("a") as file:
                file.write(json.dumps({"trial": number, what: "x" * size}) + "\n")
            self.saver.save()

    def trials(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.trial(number)


def copied(folder: Path, objects: Objects) -> bytes:
    """Read the study on a machine that has nothing yet."""
    folder.mkdir()
    download(folder, objects)
    file = folder / "study.jsonl"
    return file.read_bytes() if file.exists() else b""


def test_a_segment_is_named_after_where_it_begins() -> None:
    assert [parse(name_at("a/study.jsonl", start)) for start in (0, 1234)] == [
        ("a/study.jsonl", 0),
        ("a/study.jsonl", 1234),
    ]
    assert parse("study.jsonl.bak") == ("study.jsonl.bak", 0) and parse("x.json.000000000001")[1] == 0
    sizes = {name_at("a.jsonl", start): size for start, size in [(0, 10), (4, 6), (10, 5), (20, 1)]} | {"b.jsonl": 3}
    used, left = segments_of("a.jsonl", sizes)
    assert [segment.start for segment in used] == [0, 10]
    assert left == [name_at("a.jsonl", 4), name_at("a.jsonl", 20)]  # merged already, or behind a gap


def test_a_trial_uploads_as_much_however_many_there_are(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    (machine.folder / "sweep.json").write_text("{}" * 1000)
    uploaded = [0]
    for _ in range(4):
        machine.trials(range(500))
        uploaded.append(machine.uploaded)
    written = 2 * 1000  # and twice again, to be merged
    assert max(after - before for before, after in pairwise(uploaded)) < 500 * 3.5 * written
    assert len(machine.objects.sizes) < 80
    fresh = open_objects()
    assert copied(tmp_path / "there", fresh) == machine.study.read_bytes()


def test_lines_are_uploaded_whole_and_small_files_when_they_change(
    open_objects: Callable[[], Objects], tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    machine.study.write_text('{"a": 1}\n{"b"')
    (machine.folder / "front.json").write_text("1")
    machine.saver.save()
    assert machine.uploaded == len('{"a": 1}\n') + 1
    with machine.study.open("a") as file:
        file.write(": 2}\n")
    machine.saver.save()
    machine.saver.save()
    assert machine.uploaded == len(machine.study.read_text()) + 1
    (machine.folder / "front.json").write_text("22")
    machine.saver.save()
    assert machine.uploaded == len(machine.study.read_text()) + 3


def test_every_database_is_saved_with_what_sqlite_has_written_beside_it(
    open_objects: Callable[[], Objects], tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    with closing(sqlite3.connect(machine.folder / "mlflow.db")) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (x)")
        connection.execute("insert into t values (1)")
        connection.commit()
        machine.saver.save()
        copied(tmp_path / "there", open_objects())
    with closing(sqlite3.connect(tmp_path / "there" / "mlflow.db")) as connection:
        assert connection.execute("select x from t").fetchall() == [(1,)]


@pytest.mark.parametrize("step", ["after-segment", "after-merge", "amid-merge"])
def test_a_driver_that_is_killed_between_two_steps_leaves_a_beginning_that_is_gone_on_with(
    open_objects: Callable[[], Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    first = Machine(tmp_path / "first", open_objects())

    def killed(name: str) -> None:
        if name == step and len(first.objects.sizes) > 20:
            raise Killed

    monkeypatch.setattr("alast_tune.saver.failpoint", killed)
    with pytest.raises(Killed):
        first.trials(range(100))
    monkeypatch.undo()
    monkeypatch.setattr("alast_tune.objects._open", lambda *arguments: first.objects._store)
    second = Machine(tmp_path / "second", open_objects())
    assert second.study.read_bytes() == first.study.read_bytes()  # all that was saved
    second.trial(100)
    with pytest.raises(OverwrittenError):  # should the first be alive after all, it comes too late
        first.trial(100, size=7)
    second.trials(range(101, 200))
    assert copied(tmp_path / "third", open_objects()) == second.study.read_bytes()
    _, left = segments_of("study.jsonl", open_objects().sizes)
    assert not left


def test_a_copy_is_a_beginning_while_segments_are_merged(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    """The driver goes on between a reader's list and each of its reads."""
    machine, reader = Machine(tmp_path / "here", open_objects()), open_objects()
    get = reader.get
    read = 0

    def slow(name: str) -> bytes | None:
        nonlocal read
        if read < 40:
            machine.trial(read)
        read += 1
        return get(name)

    machine.trials(range(10))
    reader.get = slow  # type: ignore[method-assign]
    found = copied(tmp_path / "there", reader)
    assert found and machine.study.read_bytes().startswith(found) and found.endswith(b"\n")


def test_what_an_older_version_left_is_gone_on_with(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    objects = open_objects()
    objects.put("study.jsonl", b'{"whole": 1}\n' * 100)
    machine = Machine(tmp_path / "here", open_objects())
    machine.trial(1)
    assert machine.uploaded == len(machine.study.read_bytes()) - 1300
    assert copied(tmp_path / "there", open_objects()) == machine.study.read_bytes()


def test_what_a_sweep_deletes_is_deleted_in_the_original_and_nothing_else(
    open_objects: Callable[[], Objects], tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    refused, page = machine.folder / "mlflow-refused.jsonl", machine.folder / "front" / "front.png"
    page.parent.mkdir()
    for file in (refused, page, machine.folder / "sweep.json"):
        file.write_text("as it was\n" * 3)
        machine.saver.save()
    machine.trial(1)
    refused.unlink()
    refused.write_text("anew\n")  # not what was there, and more of it
    machine.saver.save()
    copied(tmp_path / "second", open_objects())
    assert (tmp_path / "second" / refused.name).read_text() == "anew\n"
    for file in (refused, page, machine.folder / "sweep.json", machine.study):  # the last two by somebody else
        file.unlink()
    machine.saver.save()
    copied(tmp_path / "third", open_objects())
    assert {file.name for file in (tmp_path / "third").rglob("*") if file.is_file()} == {"sweep.json", "study.jsonl"}
