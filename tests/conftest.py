"""What holds for every test: nothing of the person's own is read, written or connected to.

Fixtures that more than one folder of tests uses. All imports of heavy packages are inside: a GPU machine has little
more than torch.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from tests.integration.harness import Pareto

# Before anything imports ray, torch, mlflow or matplotlib. The folder's path is short: Ray's sockets lie in it, and the
# name of a unix socket has at most 107 characters. Every process of pytest-xdist has a folder and a token of its own.
PRIVATE = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
for name in (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN_PATH",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "XDG_CACHE_HOME",
):
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
    "RAY_worker_niceness": "0",  # else a worker starves beside the tests of another process, which waits for nobody
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",  # same sums in the same order on every machine
}

try:
    import hypothesis
except ImportError:
    pass
else:
    hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of pytest have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def empty_mlflow(shared_folder: Path) -> Path:
    """An MLflow store that has been migrated and holds nothing: made once in a run, since that takes seconds."""
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    template = shared_folder / "mlflow.db"
    with FileLock(shared_folder / "mlflow.lock"):
        if not template.exists():
            draft = shared_folder / "draft.db"
            SqlAlchemyStore(f"sqlite:///{draft}", (shared_folder / "nowhere").as_uri()).engine.dispose()
            draft.replace(template)
    return template


@pytest.fixture
def with_store(empty_mlflow: Path) -> Callable[[Path], Path]:
    """Give a storage the MLflow store that a sweep in it will find, instead of making one; returns the storage."""

    def copy(storage: Path) -> Path:
        storage.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_mlflow, storage / "mlflow.db")
        return storage

    return copy


@pytest.fixture
def storage(tmp_path: Path, with_store: Callable[[Path], Path]) -> Path:
    """A folder for sweeps, with an empty MLflow store in it."""
    return with_store(tmp_path / "runs")


@pytest.fixture(scope="session")
def two_classes(shared_folder: Path) -> Path:
    """An image folder of two classes with 16, 8 and 4 small pictures each to train, validate and test on."""
    from filelock import FileLock

    from tests.pictures import write_two_classes

    root = shared_folder / "two-classes"
    with FileLock(shared_folder / "two-classes.lock"):
        if not root.exists():
            draft = shared_folder / "two-classes-draft"
            write_two_classes(draft)
            draft.rename(root)
    return root


@pytest.fixture(scope="session")
def ray_here() -> Iterator["Cluster"]:
    """One Ray for all tests of this process that need one: a head with two CPUs, to which nodes may be added.

    This process is connected to it, so that `run_sweep` and the commands use it; a driver in a process of its own does
    if it gets RAY_ADDRESS. Whoever adds a node removes it again.
    """
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def pareto(storage: Path, two_classes: Path) -> "Pareto":
    """Run sweeps as a person does, on a few pictures, in a storage of the test's own."""
    from tests.integration.harness import Pareto

    return Pareto(storage.parent, two_classes)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory, two_classes: Path, empty_mlflow: Path) -> Path:
    """A storage with one finished sweep, for all that look at its pages in a browser.

    ALAST_SWEEP_STORAGE: look at the sweeps of this folder instead of running a small one.
    """
    from tests.integration.harness import Pareto

    if given := os.environ.get("ALAST_SWEEP_STORAGE"):
        return Path(given).absolute()
    pareto = Pareto(tmp_path_factory.mktemp("shown"), two_classes)
    pareto.storage.mkdir()
    shutil.copy(empty_mlflow, pareto.storage)
    # One at a time: always the same front, so that the knee never lies under another point.
    pareto.run("--preset", pareto.preset(trials=8), "--name", "demo")
    return pareto.storage


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests must be in one process, and let those that take longest begin first.

    All that use the shared Ray are one group, all that look at the finished sweep another; every other module of
    integration and end-to-end tests is one, since its servers and clusters are the module's. Unit tests go wherever
    there is room.
    """

    def group_of(item: pytest.Item) -> str | None:
        if "ray_here" in getattr(item, "fixturenames", ()):
            return "ray"
        if "shown" in getattr(item, "fixturenames", ()):
            return "shown"
        folder = item.path.parent.name
        return item.path.stem if folder in {"integration", "e2e"} else None

    order = {"ray": 0, None: 2}
    items.sort(key=lambda item: (order.get(group_of(item), 1), item.get_closest_marker("slow") is None))
    for item in items:
        if (group := group_of(item)) is not None:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_unconfigure(config: pytest.Config) -> Any:
    shutil.rmtree(PRIVATE, ignore_errors=True)
