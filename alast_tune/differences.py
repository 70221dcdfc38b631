"""What has changed in a small SQLite database, to be sent to object storage instead of all of it.

``queue.db`` is there whole as it once was, and ``queue.db.000000000012`` is the twelfth difference: a line of JSON for
each row that is new, changed or gone. The whole one knows which difference is the last that it has (``user_version``).
Once the differences are several times as much as the whole, it is sent anew, and then they are deleted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

_NOTES = "create table changed (name text not null, key, primary key (name, key)) without rowid"


class _GoneError(Exception):
    """A difference is not there any more."""


@contextmanager
def watched(file: Path) -> Iterator[tuple[sqlite3.Connection, bool]]:
    """Open a database, which notes its changes from now on; gives whether it has noted the earlier ones too.

    A database with a table that has no primary key, or one of several columns, notes nothing.
    """
    with closing(_opened(file)) as database:
        notes = bool(database.execute("select count(*) from sqlite_master where name = 'changed'").fetchone()[0])
        keys = {} if notes else _keys(database)
        if keys:
            triggers = [
                f"create trigger changed_{table}_{event} after {event} on {table} begin "
                f"insert or ignore into changed values ('{table}', {row}.{key}); end"
                for table, key in keys.items()
                for event, row in (("insert", "new"), ("update", "new"), ("delete", "old"))
            ]
            database.executescript(f"begin; {'; '.join([_NOTES, *triggers])}; commit;")
        yield database, notes


def take(database: sqlite3.Connection) -> bytes:
    """Give what has changed since the last time, as a difference with the next number; empty if nothing has."""
    if not database.execute("select count(*) from changed").fetchone()[0]:
        return b""
    keys, lines = _keys(database), []
    with _transaction(database):
        for table, key in database.execute("select name, key from changed order by name, key").fetchall():
            row = database.execute(f"select * from {table} where {keys[table]} = ?", (key,)).fetchone()
            lines.append(json.dumps([table, key, row], separators=(",", ":")).encode() + b"\n")
        database.execute("delete from changed")
        database.execute(f"pragma user_version = {last(database) + 1}")
    return b"".join(lines)


def give_back(database: sqlite3.Connection, difference: bytes) -> None:
    """Take the last difference for changes that have not been sent, which the next one will have."""
    with _transaction(database):
        for line in difference.splitlines():
            database.execute("insert or ignore into changed values (?, ?)", json.loads(line)[:2])
        database.execute(f"pragma user_version = {last(database) - 1}")


def last(database: sqlite3.Connection) -> int:
    """Tell the number of the last difference that a database has."""
    return int(database.execute("pragma user_version").fetchone()[0])


def bring_up_to_date(file: Path, numbers: Sequence[int], read: Callable[[int], bytes | None]) -> bool:
    """Add differences to a database, those that it lacks; False, and nothing is added, if one of them is gone.

    Args:
        file: the database.
        numbers: of the differences that there are, ascending.
        read: gives one of them, or None.

    Raises:
        OSError: the database or a difference is damaged.
    """
    with closing(_opened(file)) as database:
        try:
            keys = _keys(database)
            with _transaction(database):
                for number in numbers:
                    if number <= last(database):
                        continue
                    lines = read(number) if number == last(database) + 1 else None
                    if lines is None:
                        raise _GoneError
                    for table, key, row in map(json.loads, lines.splitlines()):
                        database.execute(f"delete from {table} where {keys[table]} = ?", (key,))
                        if row is not None:
                            database.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)
                    database.execute(f"pragma user_version = {number}")
                if "changed" in _tables(database):
                    database.execute("delete from changed")  # the object storage has all of it
        except _GoneError:
            return False
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError):
            raise OSError(f"{file.name} is damaged") from None
    return True


def _opened(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None, timeout=60)  # the queue's own thread writes it too
    database.execute("pragma synchronous = off")  # what this disk loses is in the object storage
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of what is written within, or nothing of it."""
    database.execute("begin immediate")
    try:
        yield
        database.execute("commit")
    except BaseException:
        if database.in_transaction:  # SQLite itself has taken it back on a full disk
            database.execute("rollback")
        raise


def _tables(database: sqlite3.Connection) -> list[str]:
    query = "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"
    return [name for (name,) in database.execute(query)]


def _keys(database: sqlite3.Connection) -> dict[str, str]:
    """Name each table's primary key; nothing if one has none, or one of several columns."""
    keys = {}
    for table in _tables(database):
        if table != "changed":
            columns = database.execute(f"pragma table_info({table})").fetchall()
            found = [name for _, name, _, _, _, place in columns if place]
            if len(found) != 1:
                return {}
            keys[table] = found[0]
    return keys
