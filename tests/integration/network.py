"""Machines of their own network, as far as Ray can tell: Linux network namespaces, each with a link that can be cut."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_SUBNET = "198.18.77"  # of those for trying networks out (RFC 2544): in nobody's use
HERE = f"{_SUBNET}.1"
"""Address of this machine, where the others see it."""


@dataclass(frozen=True)
class Machine:
    """A network namespace with one link to this machine."""

    name: str
    address: str
    link: str
    """This machine's end of it."""

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """All passes again."""
        _ip("link", "set", self.link, "up")

    def start(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run something there; what it prints goes to a file."""
        with log.open("wb") as out:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *command],
                stdout=out,
                stderr=out,
                env=os.environ | environment,
                start_new_session=True,
            )

    def kill_all(self) -> None:
        """End whatever runs there."""
        processes = [psutil.Process(int(pid)) for pid in _ip("netns", "pids", self.name).split()]
        for process in processes:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)


@contextmanager
def network(count: int) -> Iterator[list[Machine]]:
    """Make so many machines, on one switch with this one; takes all of it away again.

    Skips, by name, where that is not allowed.
    """
    if not (shutil.which("ip") and shutil.which("nsenter")):
        pytest.skip("needs iproute2 and util-linux (ip, nsenter)")
    own = os.getpid() % 100_000  # names of links have at most 15 characters
    switch = f"alast{own}"
    machines = [Machine(f"alast-{own}-{i}", f"{_SUBNET}.{i}", f"al{own}-{i}") for i in range(2, count + 2)]
    try:
        try:
            _ip("link", "add", switch, "type", "bridge")
            for machine in machines:
                _ip("netns", "add", machine.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        _ip("address", "add", f"{HERE}/24", "dev", switch)
        _ip("link", "set", switch, "up")
        for machine in machines:
            _ip("link", "add", machine.link, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("link", "set", machine.link, "master", switch, "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", machine.name, "link", "set", link, "up")
        yield machines
    finally:
        for machine in machines:
            if Path("/run/netns", machine.name).exists():
                machine.kill_all()
                _ip("netns", "delete", machine.name)  # and with it the link
        if Path("/sys/class/net", switch).exists():
            _ip("link", "delete", switch)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
