"""Object storage and tiny trials, for the tests of several modules."""

import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from alast_tune.config import TrialConfig
    from alast_tune.objects import Objects


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Run an S3 server; its address."""
    from moto.server import ThreadedMotoServer  # here: a GPU machine has little more than torch

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an empty bucket, which a driver on a machine without copies finds; its address."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "here"),
    }.items():
        monkeypatch.setenv(name, value)
    name = tmp_path.name.replace("_", "-").lower()
    with urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")):
        return f"s3://{name}/sweeps"


@pytest.fixture
def open_objects(monkeypatch: pytest.MonkeyPatch) -> Callable[[], "Objects"]:
    """Let several machines see one store, in memory."""
    from obstore.store import MemoryStore  # here: a GPU machine has little more than torch

    from alast_tune.objects import Objects

    store = MemoryStore()
    monkeypatch.setattr("alast_tune.objects._open", lambda *arguments: store)
    return lambda: Objects("s3://bucket/demo", None, 10)


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """Name of another machine's folder of copies, for XDG_CACHE_HOME."""
    return str(tmp_path / "elsewhere")


@pytest.fixture(scope="session")
def tiny_trial(two_classes: Path) -> Callable[..., "TrialConfig"]:
    """Make a trial that trains in a fraction of a second: ``tiny_trial(method, epochs=3)``."""
    from tests.unit import tiny  # here: nothing heavy is imported for those who need none

    return partial(tiny.trial, two_classes)
