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

from alast_tune.errors import ConfigError
from alast_tune.tracking.store import open_store
from tests.integration.harness import ROOT, Pareto, mlflow_server
from tests.integration.postgres import PASSWORD, postgres_server

SETTINGS = {
    "compose": (ROOT / "clusters/local/mlflow-auth.ini").read_text(),
    "kuberay": yaml.safe_load((ROOT / "clusters/kuberay/services-auth/basic-auth.yaml").read_text())["data"][
        "basic_auth.ini"
    ],
}
SECRET = secrets.token_hex(16)
WHERE = re.compile(r"postgresql\+psycopg://mlflow@postgres(?::5432)?/(\w+)")


@pytest.fixture
def guarded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server that asks for a password, which no client has been told yet; its address."""
    settings = SETTINGS[request.param]
    with postgres_server("mlflow") as database:
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        for name in WHERE.findall(settings):
            if name != "mlflow":  # as KubeRay's database does on its first start
                with psycopg.connect(database, autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {name}")
        server = database.replace("postgresql:", "postgresql+psycopg:").removesuffix("/mlflow")
        ini = tmp_path / "auth.ini"
        ini.write_text(WHERE.sub(rf"{server}/\1", settings))
        monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(ini))
        monkeypatch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", SECRET)
        monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", secrets.token_hex(16))
        options = ["--artifacts-destination", str(tmp_path / "artifacts"), "--app-name", "basic-auth"]
        with mlflow_server("--backend-store-uri", f"{server}/mlflow", *options) as address:
            yield address


def log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)


@pytest.mark.slow
@pytest.mark.parametrize("guarded", SETTINGS, indirect=True)
def test_who_gives_no_password_is_told_to(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{guarded}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30)
    with pytest.raises(ConfigError) as refused:
        open_store(guarded, tmp_path, "alast-tune")
    assert str(refused.value) == (
        f"MLFLOW_TRACKING_URI = {guarded}: cannot be used (answers 401); "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or unset it"
    )
    log_in(monkeypatch)
    client, experiment = open_store(guarded, tmp_path, "alast-tune")
    assert client.get_experiment(experiment).name == "alast-tune"


@pytest.mark.slow
@pytest.mark.parametrize("guarded", ["kuberay"], indirect=True)
def test_a_sweep_with_the_password_writes_it_nowhere(
    guarded: str, pareto: Pareto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded)
    log_in(monkeypatch)
    out = pareto.run("--preset", pareto.preset(trials=2, epochs=1), "--name", "guarded")
    client = mlflow.MlflowClient(guarded)
    runs = client.search_runs([client.get_experiment_by_name("alast-tune").experiment_id])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 3}
    files = [file for file in pareto.storage.rglob("*") if file.is_file()]
    assert files and SECRET not in out and not [file for file in files if SECRET.encode() in file.read_bytes()]
