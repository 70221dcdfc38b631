"""Brings what has changed in the copy of a sweep's folder to where it is kept: of files that grow, what is new.

So it is with the queue for MLflow, a database: its differences are brought.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from alast_tune.differences import give_back, last, take, watched
from alast_tune.failpoints import failpoint
from alast_tune.objects import Objects
from alast_tune.segments import SUFFIX, name_at, parse, segments_of, to_merge
from alast_tune.storage import ELSEWHERE, STUDY, STUDY_JOURNAL

_DATABASE = ".db"
_DIFFERENCES = 4
"""So many times as much as the whole database its differences may be,"""
_LEAST = 1 << 16
"""or so many bytes."""
_MAY_GO = ("front/", "report.html", "mlflow-refused.jsonl")
"""Files that a sweep itself deletes, to write them anew, and the folder of such. All else stays in the original, should
somebody clear the copy away."""


class Saver:
    """Saves a copy to which its original was just downloaded.

    Args:
        folder: the copy.
        objects: of the original, all of them seen.
        check: is called before each write; raises if there must be none.
    """

    def __init__(self, folder: Path, objects: Objects, check: Callable[[], None]) -> None:
        self._folder = folder
        self._objects = objects
        self._check = check
        self._kept = {self._name(file): _stamp(file) for file in _files(folder)}

    def save(self) -> None:
        """Upload what has changed. Delete what the sweep has deleted here.

        A process that is killed meanwhile leaves each file as it was or as it is; of one that grows, a beginning. What
        MLflow is still to hear of comes before the study: a trial that the study has further behind goes on there and
        tells MLflow again, but what the study has already nobody would tell.

        Raises:
            OSError: it cannot be written.
        """
        for file in sorted(_files(self._folder), key=lambda file: _turn(self._name(file))):
            stamp, name = _stamp(file), self._name(file)
            if self._kept.get(name) != stamp:
                if file.suffix == SUFFIX and not name.startswith(_MAY_GO):
                    self._extend(file, name)
                elif file.suffix == _DATABASE and file.name != STUDY:
                    self._send_difference(file, name)
                else:
                    self._put(name, _contents(file))
                    self._delete_parts(name)  # of a version that took it for one that only grows
                self._kept[name] = stamp
        for name in [name for name in self._kept if name.startswith(_MAY_GO) and not (self._folder / name).exists()]:
            self._delete(name)  # else another copy would have it again
            self._delete_parts(name)
            del self._kept[name]

    def _extend(self, file: Path, name: str) -> None:
        """Upload a file's new lines as a segment; what is still being written waits."""
        segments, left = segments_of(name, self._objects.sizes)
        for leftover in left:
            self._delete(leftover)
        end = segments[-1].start + segments[-1].size if segments else 0
        new = _between(file, end)
        new = new[: new.rfind(b"\n") + 1]
        if new:
            self._put(name_at(name, end), new)
            failpoint("after-segment")
        merged = to_merge(segments_of(name, self._objects.sizes)[0])
        if merged:
            first, last = merged[0], merged[-1]
            self._put(first.name, _between(file, first.start, last.start + last.size))
            failpoint("after-merge")
            for segment in merged[1:]:
                self._delete(segment.name)
                failpoint("amid-merge")

    def _send_difference(self, file: Path, name: str) -> None:
        """Upload what has changed in a database, or all of it once its differences are much more than that."""
        with watched(file) as (database, noted):
            new = take(database) if noted else b""
            sizes = self._objects.sizes
            sent = sum(sizes[part] for part in self._parts(name))
            whole = not noted or name not in sizes or sent > max(_DIFFERENCES * sizes[name], _LEAST)
            try:
                if whole:
                    self._put(name, _contents(file))
                elif new:
                    self._put(name_at(name, last(database)), new)
            except BaseException:
                if new:
                    give_back(database, new)
                raise
            failpoint("after-difference")
        if whole:
            self._delete_parts(name)

    def _parts(self, name: str) -> list[str]:
        """Name the objects that a file has beside the one of its name."""
        return [part for part in self._objects.sizes if part != name and parse(part)[0] == name]

    def _delete_parts(self, name: str) -> None:
        for part in self._parts(name):
            self._delete(part)
            failpoint("amid-parts")

    def _put(self, name: str, contents: bytes) -> None:
        self._check()
        self._objects.put(name, contents)

    def _delete(self, name: str) -> None:
        self._check()
        self._objects.delete(name)

    def _name(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()


def _turn(name: str) -> int:
    """Say when a file is uploaded: what leaves the queue for a file must be there before it is gone from the queue."""
    if name.startswith("mlflow-"):
        return int(name.endswith(_DATABASE))
    if name == "sweep.json":  # which makes it a sweep to be resumed
        return 4
    return 2 if name in {STUDY, STUDY_JOURNAL} else 3


def _files(folder: Path) -> Iterator[Path]:
    for top in folder.iterdir():
        if top.name not in ELSEWHERE:
            for file in [top] if top.is_file() else top.rglob("*"):
                if file.is_file() and not file.name.endswith(("-wal", "-shm", ".tmp")) and not parse(file.name)[1]:
                    yield file


def _stamp(file: Path) -> tuple[int, int]:
    """Tell one state of a file from another; SQLite writes beside it first."""
    beside = Path(f"{file}-wal")
    stat = beside.stat() if file.suffix == _DATABASE and beside.exists() else file.stat()
    return stat.st_mtime_ns, stat.st_size


def _contents(file: Path) -> bytes:
    if file.suffix != _DATABASE:
        return file.read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = Path(scratch) / file.name
        with closing(sqlite3.connect(file)) as source:
            source.execute("VACUUM INTO ?", (str(snapshot),))  # without the room that deleted rows leave
        return snapshot.read_bytes()


def _between(file: Path, start: int, end: int | None = None) -> bytes:
    with file.open("rb") as opened:
        opened.seek(start)
        return opened.read(-1 if end is None else end - start)
