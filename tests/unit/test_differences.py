"""Differences of a database: what a row more costs, and what a driver that is killed leaves of them."""

import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from alast_tune.objects import Objects
from alast_tune.saver import Saver
from alast_tune.segments import parse
from alast_tune.storage import download
from alast_tune.tracking.kept import FILE
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.queue import Queue


class Killed(BaseException):
    """In the place of SIGKILL: nothing is written after it."""


class Machine:
    """A driver's copy with its queue, and what is uploaded of it."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        folder.mkdir(exist_ok=True)
        download(folder, objects)
        self.folder, self.objects = folder, objects
        self.saver = Saver(folder, objects, lambda: None)
        self.queue = Queue(folder)
        self.uploaded = 0
        put = objects.put

        def counted(name: str, contents: bytes) -> None:
            put(name, contents)
            self.uploaded += len(contents)

        objects.put = counted  # type: ignore[method-assign]

    def trial(self, number: int, *, written: bool = True) -> None:
        """Ask for what a trial is to MLflow, and let MLflow take it, with an upload at its start and its end."""
        run = f"{number:05d}"
        self.queue.ask(Operation(run, "open", 1, tags={"t": "x" * 500}))
        self.saver.save()
        if written:
            self.queue.opened(run, f"id-{run}")
        for step in range(3):
            self.queue.ask(Operation(run, "log", 2, metrics={"accuracy": 0.5}, step=step))
        self.queue.ask(Operation(run, "end", 3, status="FINISHED"))
        while written and (batch := self.queue.batch()):
            self.queue.done(batch)
        self.saver.save()

    def trials(self, count: int) -> None:
        for number in range(count):
            self.trial(number)


def rows(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that a queue holds."""
    with closing(sqlite3.connect(folder / FILE)) as database:
        return {
            table: sorted(database.execute(f"select * from {table}").fetchall(), key=str)
            for table in ("operations", "runs", "facts")
        }


def restored(folder: Path, objects: Objects) -> dict[str, list[tuple[object, ...]]]:
    """What a machine finds that has nothing yet."""
    folder.mkdir()
    download(folder, objects)
    return rows(folder)


@pytest.mark.parametrize("written", [True, False], ids=["written", "MLflow is away"])
def test_a_trial_uploads_as_much_however_many_there_are(
    written: bool, open_objects: Callable[[], Objects], tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    sent = []
    for number in range(800):
        machine.trial(number, written=written)
        sent.append(machine.uploaded / (number + 1))
    assert max(sent[100:]) < 3000, max(sent[100:])  # all of it is 50 KB, and a megabyte if MLflow is away
    assert sum(parse(name)[0] == FILE for name in machine.objects.sizes) < 1500
    assert restored(tmp_path / "there", open_objects()) == rows(machine.folder)


def test_any_change_is_in_a_difference(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    draw = random.Random(0)
    machine = Machine(tmp_path / "here", open_objects())
    for turn in range(60):
        for _ in range(draw.randrange(4)):
            run = f"{draw.randrange(6)}"
            change = draw.randrange(6)
            if change == 0:
                machine.queue.ask(Operation(run, "log", 1, metrics={"a": draw.random()}, step=draw.randrange(9)))
            elif change == 1:
                machine.queue.ask(Operation(run, "end", 1, status="KILLED"), first=True)
            elif change == 2 and (batch := machine.queue.batch()):
                machine.queue.done(batch)
            elif change == 3:
                machine.queue.opened(run, f"id-{turn}")
            elif change == 4:
                machine.queue.placed(run, {"pareto": str(turn)})
            else:
                machine.queue.note(run, turn)
        machine.saver.save()
        assert restored(tmp_path / f"{turn}", open_objects()) == rows(machine.folder)


@pytest.mark.parametrize("step", ["after-difference", "amid-parts"])
@pytest.mark.parametrize("when", [1, 2, 40])
def test_a_killed_driver_leaves_what_it_has_uploaded_and_is_gone_on_with(
    step: str, when: int, open_objects: Callable[[], Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, passed = Machine(tmp_path / "first", open_objects()), 0

    def killed(name: str) -> None:
        nonlocal passed
        passed += name == step
        if passed == when:
            raise Killed

    monkeypatch.setattr("alast_tune.saver.failpoint", killed)
    with pytest.raises(Killed):
        first.trials(300)
    monkeypatch.undo()
    monkeypatch.setattr("alast_tune.objects._open", lambda *arguments: first.objects._store)
    left = rows(first.folder)
    second = Machine(tmp_path / "second", open_objects())
    assert rows(second.folder) == left
    for number in range(400, 420):
        second.trial(number)
    assert restored(tmp_path / "third", open_objects()) == rows(second.folder)


def test_what_could_not_be_sent_is_sent_the_next_time(
    open_objects: Callable[[], Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    machine.trial(0)
    with monkeypatch.context() as patched:

        def away(name: str, contents: bytes) -> None:
            raise OSError("away")

        patched.setattr(machine.objects, "put", away)
        with pytest.raises(OSError, match="away"):
            machine.trial(1)
    machine.trial(2)
    assert restored(tmp_path / "there", open_objects()) == rows(machine.folder)


def test_a_copy_is_of_one_moment_while_a_driver_goes_on(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    """The driver sends all of it anew, and deletes differences, between a reader's list and its reads."""
    machine, reader = Machine(tmp_path / "here", open_objects()), open_objects()
    get, read = reader.get, 0

    def slow(name: str) -> bytes | None:
        nonlocal read
        for number in range(60 * read, 60 * (read + 1) if read < 3 else 0):
            machine.trial(1000 + number)
        read += 1
        return get(name)

    for number in range(60):
        machine.trial(number)
    reader.get = slow  # type: ignore[method-assign]
    found = restored(tmp_path / "there", reader)
    assert found["operations"] == [] or found["runs"]
    assert len(found["runs"]) > 60


def test_a_damaged_difference_is_said(open_objects: Callable[[], Objects], tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", open_objects())
    machine.trial(0)
    (part,) = [name for name in machine.objects.sizes if parse(name)[1] == 1 and name.startswith(FILE)]
    machine.objects.put(part, json.dumps(["sqlite_master; --", 1, None]).encode() + b"\n")
    (tmp_path / "there").mkdir()
    with pytest.raises(Exception, match=f"{FILE} is damaged"):
        download(tmp_path / "there", open_objects())
