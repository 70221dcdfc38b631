"""MLflow asking for name and password, set up by the files of the compose and KubeRay variants, on PostgreSQL."""

import re
import secrets
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psycopg
import pytest
import yaml

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.summary import summarise
from alast_tune.tracking import Tracker
from alast_tune.tracking.store import open_store
from tests.integration.harness import ROOT, mlflow_server
from tests.integration.postgres import PASSWORD, postgres_server

pytestmark = pytest.mark.slow

SWEEP = SweepConfig.model_validate(
    {"name": "guarded", "space": {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0, "log": True}}}
)

SETTINGS = {
    "compose": (ROOT / "clusters/local/mlflow-auth.ini").read_text(),
    "kuberay": yaml.safe_load((ROOT / "clusters/kuberay/services-auth/basic-auth.yaml").read_text())["data"][
        "basic_auth.ini"
    ],
}
SECRET = secrets.token_hex(16)
WHERE = re.compile(r"postgresql\+psycopg://mlflow@postgres(?::5432)?/(\w+)")


@pytest.fixture(scope="module")
def databases() -> Iterator[str]:
    """A PostgreSQL server; its URL, which no password is in."""
    with postgres_server("first") as url:
        yield url


@pytest.fixture(scope="module", params=SETTINGS)
def guarded(request: pytest.FixtureRequest, databases: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a server that asks for a password, which no client has been told yet; its address."""
    variant, settings = request.param, SETTINGS[request.param]
    folder = tmp_path_factory.mktemp(variant)
    for name in {"mlflow", *WHERE.findall(settings)}:
        with psycopg.connect(databases, password=PASSWORD, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {variant}_{name}")
    server = databases.replace("postgresql:", "postgresql+psycopg:").removesuffix("/first")
    ini = folder / "auth.ini"
    ini.write_text(WHERE.sub(rf"{server}/{variant}_\1", settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", PASSWORD)
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(ini))
        patch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", SECRET)
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(16))
        options = ["--artifacts-destination", str(folder / "artifacts"), "--app-name", "basic-auth"]
        with mlflow_server("--backend-store-uri", f"{server}/{variant}_mlflow", *options) as address:
            yield address


def test_who_gives_no_password_is_told_to(guarded: str, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{guarded}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30)
    with pytest.raises(ConfigError) as refused:
        open_store(guarded, tmp_path)
    assert str(refused.value) == (
        f"MLFLOW_TRACKING_URI = {guarded}: cannot be used (answers 401); "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or unset it"
    )


def test_the_password_opens_it_and_is_written_nowhere(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    tracker = Tracker(guarded, tmp_path)
    tracker.start_sweep(SWEEP)
    tracker.start_trial(0, SWEEP.trial, {})
    tracker.end_trial(0, "FINISHED", {})
    tracker.log_front(summarise("guarded", [], (0.0, 4e12, 8e8)), [])
    tracker.end_sweep("FINISHED")
    client = mlflow.MlflowClient(guarded)
    experiment = client.get_experiment_by_name("alast-tune")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 2}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    files += [file for run in runs for file in _downloaded(client, run.info.run_id, tmp_path / run.info.run_id)]
    assert len(files) > 3 and not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in str([run.data.to_dictionary() for run in runs])
    assert SECRET not in "".join(capfd.readouterr())


def _downloaded(client: mlflow.MlflowClient, run_id: str, folder: Path) -> list[Path]:
    """Fetch all artifacts of a run."""
    folder.mkdir()
    return [Path(client.download_artifacts(run_id, one.path, str(folder))) for one in client.list_artifacts(run_id)]
