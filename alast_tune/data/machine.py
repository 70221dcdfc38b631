"""What this machine has to offer: processors, memory, and a folder for what can be made again."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def cpu_count(system: Path = Path("/")) -> int:
    """Count the processors that this process may use: of its affinity, and of what its control groups grant it.

    Args:
        system: where ``proc`` and ``sys`` lie.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *map(int, _quotas(system))]))


def cpu_model(system: Path = Path("/")) -> str:
    """Name the processors of this machine as their maker does; where the system does not say, their architecture."""
    try:
        found = re.search(r"^model name\s*: *(.+)$", (system / "proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine() or "CPU"


def limit_threads() -> int:
    """Keep torch, in this process, to the processors that it may use; returns how many threads it has."""
    import torch  # seconds

    torch.set_num_threads(min(torch.get_num_threads(), cpu_count()))
    return torch.get_num_threads()


def in_own_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of a module in a fresh process, which ends afterwards.

    A process that has used a card keeps half a GiB of it until it ends: a driver shall not.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@lru_cache(maxsize=1)
def smallest_card() -> tuple[int, bool]:
    """Look up the memory of the smallest CUDA device, bytes, and whether it computes in bfloat16; (0, False): none."""
    import torch  # seconds

    return in_own_process(_smallest_card) if torch.cuda.is_available() else (0, False)


def _smallest_card() -> tuple[int, bool]:
    import torch

    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    card = min(cards, key=lambda card: card.total_memory)
    return card.total_memory, card.major >= 8  # of Ampere on; older ones emulate it


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
    return max(0, min([1024 * int(found[1]), *(left for _, left in _memory_of_groups(system))]))


def memory_bytes(system: Path = Path("/")) -> int:
    """Memory in all: the machine's, or the limit of a control group, whichever is less; 0 where nobody says."""
    try:
        found = re.search(r"^MemTotal: +(\d+) kB", (system / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return min([1024 * int(found[1]), *(limit for limit, _ in _memory_of_groups(system))]) if found else 0


def is_limited(system: Path = Path("/")) -> bool:
    """Whether a control group limits memory to less than the machine has."""
    return any(limit <= memory_bytes(system) for limit, _ in _memory_of_groups(system))


def _memory_of_groups(system: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group around this process, and what it leaves of it."""
    for group, version in _groups(system, "memory"):
        limit, usage = (
            ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        cached = ("inactive_file", "active_file") if version == 2 else ("total_inactive_file", "total_active_file")
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            yield int(most), int(most) - used + sum(int(stat.get(name, 0)) for name in cached)  # files' pages give way


def _quotas(system: Path) -> Iterator[float]:
    """Yield how many processors' time each control group around this process grants it, where that is limited."""
    for group, version in _groups(system, "cpu"):
        try:
            if version == 2:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in {"max", "-1"}:
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def _groups(system: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the control groups that this process is in, those around them too; and their version."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, version = ["sys/fs/cgroup"], 2
        elif controller in controllers.split(","):
            tops, version = [f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}"], 1
        else:
            continue
        # In a container the path may be the host's, of which only the top is to be seen.
        inner = Path(path.strip("/"))
        yield from ((group, version) for group in {system / t / f for t in tops for f in (inner, *inner.parents)})
