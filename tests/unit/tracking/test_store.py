"""A store that is away is said to be, soon."""

import os
import sys
from pathlib import Path

import pytest

from alast_tune.errors import ConfigError
from alast_tune.tracking.store import connect


@pytest.mark.timeout(60)  # MLflow by itself takes 100 s
def test_a_database_that_is_away_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)
    line = r"^MLFLOW_TRACKING_URI = postgresql\+psycopg://u:\.\.\.@127.0.0.1:9/db: cannot be used \(connection "
    with pytest.raises(ConfigError, match=line):
        connect("postgresql+psycopg://u:pw@127.0.0.1:9/db", tmp_path)
    assert os.environ["PGCONNECT_TIMEOUT"] == "10"  # for one that does not answer at all


def test_a_driver_of_postgresql_that_is_not_there_is_said_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"; pip install 'psycopg\[binary\]', or unset it$"):
        connect("postgresql://u@127.0.0.1:9/db", tmp_path)
