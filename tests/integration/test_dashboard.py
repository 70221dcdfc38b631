"""optuna-dashboard on the study of a sweep: it shows the objectives by their names."""

import io
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

from rich.console import Console

from alast_tune.config import SweepConfig
from alast_tune.fingerprints import Fingerprints
from alast_tune.results import OBJECTIVES
from alast_tune.tune.forecast import Forecast
from alast_tune.tune.study import Prepared, _begin
from tests.integration.harness import PATIENCE, free_port


def test_optuna_dashboard_has_the_names_of_the_objectives(tmp_path: Path) -> None:
    space = {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}}
    sweep = SweepConfig.model_validate({"name": "s", "storage": tmp_path, "space": space})
    origin = Fingerprints(data="0123456789abcdef", weights=None)
    (tmp_path / "s").mkdir()
    prepared = Prepared(
        sweep, False, False, "", (0.0, 4e12, 8e8), 16, origin, Forecast(), [], Console(file=io.StringIO()), print
    )
    study = _begin(prepared)
    study.tell(study.ask(), [0.9, 4e12, 8e8])
    port = free_port()
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    address = f"sqlite:///{tmp_path / 's' / 'study.db'}"
    with subprocess.Popen([program, address, "--port", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            (summary,) = answer(server, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            detail = answer(server, f"http://127.0.0.1:{port}/api/studies/{summary['study_id']}?after=0")
        finally:
            server.terminate()
    assert detail["name"] == "s"
    assert detail["objective_names"] == [objective.name for objective in OBJECTIVES]
    assert detail["directions"] == [objective.direction for objective in OBJECTIVES]


def answer(server: subprocess.Popen[bytes], address: str) -> Any:
    """Ask a server that may still be starting."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(address, timeout=PATIENCE) as response:
                return json.load(response)
        except URLError:
            assert server.poll() is None and time.monotonic() < end, "no dashboard"
            time.sleep(0.1)
