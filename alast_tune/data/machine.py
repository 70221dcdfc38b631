"""What this machine has to offer: processors, memory, and a folder for what can be made again."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cpu_count() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Folder of this user for what can be made again: ``$XDG_CACHE_HOME/alast-tune``, else ``~/.cache/alast-tune``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alast-tune"


def available_bytes(system: Path = Path("/")) -> int:
    """Memory that may still be used without swapping: the machine's, or what a control group (container) leaves.

    Args:
        system: where ``proc`` and ``sys`` lie.

    Returns:
        Bytes; 0 where the system does not say (no Linux).
    """
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", (system / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return 0
    return max(0, min([1024 * int(found[1]), *_left_by_groups(system)]))


def _left_by_groups(system: Path) -> list[int]:
    """What each control group that this process is in, and each around it, leaves of its limit."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, cached = (
                "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                ("inactive_file", "active_file"),
            )
        elif "memory" in controllers.split(","):
            top, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = ("total_inactive_file", "total_active_file")
        else:
            continue
        # In a container the path may be the host's, of which only the top is to be seen.
        inner = Path(path.strip("/"))
        for group in {system / top / folder for folder in (inner, *inner.parents)}:
            try:
                most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":
                left.append(int(most) - used + sum(int(stat.get(name, 0)) for name in cached))  # files' pages give way
    return left
