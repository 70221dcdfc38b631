"""Processes that outlive the one that started them, and are found and ended again without touching any other."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 20
"""How long a process may take to end in order."""


@dataclass(frozen=True)
class Leader:
    """A process that was started as head of a session of its own, to which all that it starts belongs."""

    name: str
    pid: int
    begun: int
    """Clock ticks from the machine's start to its own: tells it from a later process with the same pid."""
    boot: str
    """Id of that start of the machine; after the next one nothing of this runs any more."""

    @classmethod
    def of(cls, name: str, pid: int) -> "Leader":
        """Recognise a child of this process, which has not been waited for."""
        return cls(name, pid, _stat(Path(f"/proc/{pid}/stat"))[2], _boot())


def end(leader: Leader) -> None:
    """End a session: its leader gets SIGTERM, and what is left after a while SIGKILL."""
    if leader.pid in members(leader):
        os.kill(leader.pid, signal.SIGTERM)
    late = time.monotonic() + GRACE_SECONDS
    while left := members(leader):
        if time.monotonic() > late:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def members(leader: Leader) -> list[int]:
    """Pids of the processes of a leader's session that still run.

    A session's number is given to no other process while one of its members lives. So these are ours, unless the
    process with the leader's pid is a later one.
    """
    running = _sessions() if leader.boot == _boot() else {}
    if leader.pid in running and running[leader.pid][1] != leader.begun:
        return []
    return [pid for pid, (session, begun) in running.items() if session == leader.pid and begun >= leader.begun]


def _sessions() -> dict[int, tuple[int, int]]:
    """Session and beginning of every process that is not dead, by pid."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, session, begun = _stat(place)
            if state not in "ZX":
                found[int(place.parent.name)] = (session, begun)
    return found


def _stat(place: Path) -> tuple[str, int, int]:
    """State, session and beginning (clock ticks since the machine's start) of a process; see proc(5)."""
    fields = place.read_text().rpartition(")")[2].split()  # behind the name, from the third field on
    return fields[0], int(fields[3]), int(fields[19])


def _boot() -> str:
    """Id of the machine's current start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
