"""The Slurm job on this machine as its one node: a pretended srun really runs what it is given.

`ray symmetric-run` ends with `ray stop`, which ends every Ray that it sees: it runs in a process namespace of its own,
and the test skips where there may be none. What the job's script asks of Slurm and of Ray, and how it ends, is checked
without either in tests/unit/test_clusters.py (test_slurm_job_runs_one_ray_over_its_nodes).
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest

from tests.integration.harness import PATIENCE, ROOT, Pareto
from tests.integration.test_sweep import trial_states

ALONE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
SRUN = f"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done # its own options
exec {" ".join(ALONE)} "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo localhost ;; requeue) echo "$@" > {requeued} ;; esac
"""


def may_be_alone() -> bool:
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.nightly
@pytest.mark.skipif(not may_be_alone(), reason="no process namespace of its own for `ray stop`")
def test_slurm_job_runs_a_sweep_to_its_end(pareto: Pareto, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL.format(requeued=tmp_path / "requeued")}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {
        "SUBMIT_DIR": str(tmp_path),
        "JOB_ID": str(os.getpid()),
        "JOB_NODELIST": "localhost",
        "JOB_NUM_NODES": "1",
        "JOB_END_TIME": str(int(time.time()) + 3600),
    }
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", str(ROOT / "clusters/slurm/sweep.sbatch"), "first", "--preset", pareto.preset(trials=3, epochs=1)],
        capture_output=True, text=True, timeout=PATIENCE, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert trial_states(pareto.storage / "first") == ["COMPLETE"] * 2
    assert "MLflow: " in done.stdout and not (tmp_path / "requeued").exists()
    client = mlflow.MlflowClient(f"sqlite:///{pareto.storage / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'alast-tune'")
    assert Counter(run.info.status for run in client.search_runs([experiment.experiment_id])) == {"FINISHED": 3}
    assert not Path(f"/tmp/ray-{os.getpid()}").exists()
