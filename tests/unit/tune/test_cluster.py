"""A cluster that is not there is said, not waited for; a Ray of this machine's own gets what the process may use."""

import socket
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from alast_tune.data.machine import cpu_count
from alast_tune.errors import ConfigError
from alast_tune.tune import cluster
from alast_tune.tune.cluster import _short_folder, _this_machine, check_address


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://127.0.0.1:10001", "a driver runs on the cluster, .+: send it there with `alast-tune submit`"),
        ("ray://me:hunter2@head:10001", "a driver runs on the cluster"),
        ("http://127.0.0.1:8265", "is no address; give HOST:PORT"),
        ("head", "is no address"),
        ("head:0", "is no address"),
        ("me:hunter2@head:6379", "is no address"),
        ("127.0.0.1:1", r"nobody there \(Connection refused\); give HOST:PORT of a head that runs"),
        ("[::1]:1", "nobody there"),
        ("no-such-host.invalid:6379", "nobody there"),
    ],
)
def test_an_address_where_nobody_is(address: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS = .+: {line}") as error:
        check_address(address)
    assert "hunter2" not in str(error.value)


def test_who_takes_the_call_and_is_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConfigError, match="nobody there"):
        check_address(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_head_is_taken(ray_here: Cluster) -> None:
    check_address(ray_here.address)


def test_a_ray_of_its_own_gets_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _this_machine()["num_cpus"] == cpu_count()
    monkeypatch.setattr(cluster, "is_limited", lambda: True)
    monkeypatch.setattr(cluster, "available_bytes", lambda: 4 << 30)
    limited = _this_machine()
    assert limited["_memory"] + limited["object_store_memory"] == 4 << 30


def test_a_folder_too_long_for_sockets_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert _short_folder() is None
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    folder = _short_folder()
    assert folder and len(folder) < 20
    Path(folder).rmdir()
