"""What may still be used is the machine's memory or the container's, whichever is less."""

import pytest

from alast_tune.data.machine import available_bytes, cpu_count

MEMINFO = "MemTotal: 64000000 kB\nMemFree: 100 kB\nMemAvailable: 8000000 kB\n"
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file 30\ntotal_active_file 7")
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
