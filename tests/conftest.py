"""What holds for every test: nothing of the person's own is read, written or connected to."""

import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.harness import Pareto

# Before anything imports ray, torch, mlflow or matplotlib. The folder's path is short: Ray's sockets lie in it, and the
# name of a unix socket has at most 107 characters.
PRIVATE = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
    os.environ.pop(name, None)
os.environ |= {
    "HOME": str(PRIVATE),
    "RAY_TMPDIR": str(PRIVATE),
    # Explicit, or the first ray.init() changes how the next one behaves. The token in the environment serves heads,
    # workers and clients alike.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",  # same sums in the same order on every machine
}

try:
    import hypothesis
except ImportError:  # a GPU machine that has little more than torch
    pass
else:
    hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("house")


@pytest.fixture
def pareto(tmp_path: Path) -> "Pareto":
    """Run sweeps as a person does, in a storage of the test's own."""
    from tests.integration.harness import Pareto

    return Pareto(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave slow tests out, by name, once whoever runs them has no more time (seconds since 1970)."""
    if item.get_closest_marker("slow") and time.time() > float(os.environ.get("SLOW_TESTS_UNTIL", "inf")):
        pytest.skip("the time for slow tests is up")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(PRIVATE, ignore_errors=True)
