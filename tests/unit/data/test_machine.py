"""What may still be used is the machine's memory or the container's, whichever is less."""

import os
from pathlib import Path

import pytest

import alast_tune
from alast_tune.data.machine import available_bytes, cpu_count, cpu_model, is_limited, memory_bytes

MEMINFO = "MemTotal: 64000000 kB\nMemFree: 100 kB\nMemAvailable: 8000000 kB\n"
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file 30\ntotal_active_file 7")
V1_HALF = {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}
V2 = ("memory.max", "memory.current", "inactive_file 30\nactive_file 7\nanon 4")


@pytest.fixture
def system(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def group(system, place, kind, limit, usage=1000):
    folder = system / "sys/fs/cgroup" / place
    folder.mkdir(parents=True)
    for name, value in ((kind[0], limit), (kind[1], usage), ("memory.stat", kind[2])):
        (folder / name).write_text(f"{value}\n")


def test_processors_are_named_as_their_maker_does(system):
    (system / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Any CPU @ 2GHz\nmodel name\t: Any CPU @ 2GHz\n")
    assert cpu_model(system) == "Any CPU @ 2GHz"
    (system / "proc/cpuinfo").unlink()
    assert cpu_model(system)  # its architecture


def test_without_groups_it_is_what_the_machine_has(system):
    assert available_bytes(system) == 8000000 * 1024


@pytest.mark.parametrize(
    ("lines", "place", "kind"),
    [
        ("0::/pod/c\n", "pod/c", V2),
        ("0::/pod/c\n", "pod", V2),  # the limit is of a group around it
        ("0::/\n", ".", V2),
        ("4:memory:/docker/x\n0::/\n", "memory/docker/x", V1),
        ("4:cpu,memory:/docker/x\n", "memory", V1),  # in a container only the top is to be seen
    ],
)
def test_a_group_may_leave_less(system, lines, place, kind):
    (system / "proc/self/cgroup").write_text(lines)
    group(system, place, kind, 5000)
    assert available_bytes(system) == 5000 - 1000 + 37


@pytest.mark.parametrize("limit", ["max", 1 << 62])
def test_a_group_without_a_limit_does_not(system, limit):
    (system / "proc/self/cgroup").write_text("0::/pod\n")
    group(system, "pod", V2, limit)
    assert available_bytes(system) == 8000000 * 1024


def test_a_group_that_is_full_leaves_nothing(system):
    (system / "proc/self/cgroup").write_text("0::/pod\n")
    group(system, "pod", V2, 500)
    assert available_bytes(system) == 0


def test_a_system_that_does_not_say(tmp_path):
    assert available_bytes(tmp_path) == 0


def test_here():
    assert available_bytes() > 0
    assert cpu_count() >= 1


@pytest.mark.parametrize(
    ("lines", "place", "files"),
    [
        ("0::/pod/c\n", "pod", {"cpu.max": "150000 100000"}),
        (
            "3:cpu,cpuacct:/docker/x\n0::/\n",
            "cpu/docker/x",
            V1_HALF,
        ),
        ("3:cpu,cpuacct:/docker/x\n", "cpu,cpuacct", V1_HALF),
    ],
)
def test_a_group_may_grant_less_than_the_processors_there_are(system, lines, place, files):
    (system / "proc/self/cgroup").write_text(lines)
    folder = system / "sys/fs/cgroup" / place
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    assert cpu_count(system) == 1


def test_a_group_without_a_quota_grants_all(system):
    (system / "proc/self/cgroup").write_text("0::/pod\n")
    (system / "sys/fs/cgroup/pod").mkdir(parents=True)
    (system / "sys/fs/cgroup/pod/cpu.max").write_text("max 100000\n")
    assert cpu_count(system) == len(os.sched_getaffinity(0))


def test_affinity_counts(system):
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_count(system) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory_in_all_is_the_machines_or_that_of_the_group(system):
    assert memory_bytes(system) == 64000000 * 1024 and not is_limited(system)
    (system / "proc/self/cgroup").write_text("0::/pod\n")
    group(system, "pod", V2, 5000)
    assert memory_bytes(system) == 5000 and is_limited(system)
    group(system, "pod/c", V2, 1 << 62)
    (system / "proc/self/cgroup").write_text("0::/pod/c\n")
    assert memory_bytes(system) == 5000


def test_nobody_else_counts_processors():
    package = Path(alast_tune.__file__).parent
    files = [file for file in package.rglob("*.py") if "os.cpu_count()" in file.read_text()]
    assert files == [package / "data" / "machine.py"]
