"""A Ray cluster on this machine: a head, workers and an MLflow server.

    python -m clusters.local.cluster up 2     # prints the address that jobs go to
    python -m clusters.local.cluster down

Dashboard and MLflow are on loopback addresses, and Ray asks everybody for a token (its own ports, of head and nodes,
are open to the network whatever one says). What it starts is written down in ``<storage>/.cluster``, with the logs;
``down`` ends that and nothing else. Another Ray on the machine is neither used nor disturbed: ports that are taken are
passed over, and Ray's files are apart.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

from clusters.local.sessions import GRACE_SECONDS, Leader, end, members

# Before Ray is imported: these hold for its clients too.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
os.environ.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(GRACE_SECONDS))  # else 3: too few for a driver to close its runs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes for jobs that nobody gives it

from ray._common.utils import get_system_memory
from ray._private.utils import get_num_cpus
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
NODES = "127.0.0.2"
"""Address of every node. Ray takes 127.0.0.1 for the machine's address in its network, which a laptop may lose."""
START_SECONDS = 180
OBJECT_STORE_BYTES = 256 << 20
"""Of each node; trials hand nothing large around."""
MEMORY_SHARE = 0.7
"""Of the machine's memory: what all workers together offer, as a Ray node does by default."""


@dataclass(frozen=True)
class Cluster:
    """What ``up`` has started."""

    address: str
    mlflow: str
    workers: int
    ray_files: str
    leaders: tuple[Leader, ...] = ()

    @classmethod
    def read(cls, file: Path) -> "Cluster | None":
        """Read what was written down; None if there is nothing."""
        if not file.exists():
            return None
        stored: dict[str, Any] = json.loads(file.read_text())
        leaders = tuple(Leader(**leader) for leader in stored.pop("leaders"))
        return cls(**stored, leaders=leaders)

    def write(self, file: Path) -> None:
        """Write it down, whole or not at all."""
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(self), indent=2))
        new.replace(file)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("workers", type=int, nargs="?", help="how many share the machine's CPUs, GPUs and memory (1)")
    parser.add_argument("--dashboard-port", type=int, help="of Ray's dashboard (8265 or the next free one)")
    parser.add_argument("--mlflow-port", type=int, help="of MLflow (5000 or the next free one)")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder of the sweeps, with MLflow's (runs)")
    options = parser.parse_args()
    folder = options.storage.absolute() / ".cluster"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if options.command == "down":
            down(folder / "cluster.json")
        else:
            up(folder / "cluster.json", options)


def up(file: Path, options: argparse.Namespace) -> None:
    """Start what does not run yet; print the address of the dashboard, and to standard error what a person wants."""
    workers = 1 if options.workers is None else options.workers
    if workers < 1:
        refuse("workers", workers, "at least 1")
    cluster = Cluster.read(file)
    if cluster and not any(members(leader) for leader in cluster.leaders):
        down(file)  # the machine was started anew, or somebody ended it all
        cluster = None
    if cluster is None:
        make_token()
        try:
            cluster = start(file, workers, options.dashboard_port, options.mlflow_port)
        except BaseException:
            down(file)
            raise
    for leader in cluster.leaders:
        if not members(leader):
            refuse(leader.name, "has ended", f"{file.with_name(f'{leader.name}.log')} says why; `just cluster-down`")
    if options.workers not in (None, cluster.workers):
        refuse("workers", workers, f"the cluster has {cluster.workers}; `just cluster-down` first")
    print(f"Ray: {cluster.address} (log in with `ray get-auth-token`)", file=sys.stderr)
    print(f"MLflow: {cluster.mlflow}\n`just cluster-down` ends both", file=sys.stderr)
    print(cluster.address)


def make_token() -> None:
    """Generate the token that head, workers and clients share, unless there is one; nobody else may read it."""
    before = os.umask(0o077)
    run = subprocess.run([BIN / "ray", "get-auth-token", "--generate"], capture_output=True, text=True, check=False)
    os.umask(before)
    if run.returncode:
        sys.exit(run.stderr)


def start(file: Path, workers: int, dashboard_port: int | None, mlflow_port: int | None) -> Cluster:
    """Start MLflow, the head and the workers, and wait until jobs are taken."""
    storage = file.parent.parent
    dashboard = free_port("dashboard-port", dashboard_port, 8265)
    gcs = f"{NODES}:{free_port('port', None, 6379)}"
    tracking = free_port("mlflow-port", mlflow_port, 5000)
    own_mlflow = not os.environ.get("MLFLOW_TRACKING_URI")
    cluster = Cluster(
        address=f"http://{LOOPBACK}:{dashboard}",
        mlflow=f"http://{LOOPBACK}:{tracking}" if own_mlflow else os.environ["MLFLOW_TRACKING_URI"],
        workers=workers,
        ray_files=tempfile.mkdtemp(prefix="r", dir=os.environ.get("RAY_TMPDIR", "/tmp")),  # sockets: short names
    )
    cluster.write(file)
    # Jobs run in the head's environment.
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": cluster.mlflow}
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environment.pop(name, None)

    def launch(name: str, command: list[str], **variables: str) -> None:
        nonlocal cluster
        with file.with_name(f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | variables,
                cwd=storage, start_new_session=True,
            )  # fmt: skip
        cluster = replace(cluster, leaders=(*cluster.leaders, Leader.of(name, process.pid)))
        cluster.write(file)

    if own_mlflow:
        launch("mlflow", [
            sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(tracking), "--workers", "1",
            "--allowed-hosts", f"{LOOPBACK}:*,localhost:*",
            "--backend-store-uri", f"sqlite:///{storage / 'mlflow.db'}",
            "--artifacts-destination", str(storage / "mlartifacts"),
        ])  # fmt: skip
    common = [
        str(BIN / "ray"), "start", "--block", "--node-ip-address", NODES, "--disable-usage-stats",
        "--object-store-memory", str(OBJECT_STORE_BYTES),
        # Fixed by default: beside another Ray on the machine the agent then lives without it, and takes no jobs.
        "--dashboard-agent-listen-port", "0",
    ]  # fmt: skip
    head = ["--head", "--port", gcs.split(":")[1], "--dashboard-host", LOOPBACK, "--dashboard-port", str(dashboard)]
    # A folder for each node: out of a common one a node that is done with a job's files deletes those of the others.
    files = ["--temp-dir", f"{cluster.ray_files}/0"]
    launch("head", [*common, *head, *files, "--num-cpus", "0", "--num-gpus", "0"], CUDA_VISIBLE_DEVICES="")
    wait(cluster, file, lambda: answers(f"{cluster.address}/api/version"))
    memory = int(MEMORY_SHARE * get_system_memory() / workers)
    cards = gpus()
    for number in range(1, workers + 1):
        cpus = len(range(number, int(get_num_cpus()) + 1, workers)) or 1
        mine = cards[number - 1 :: workers]
        files = ["--temp-dir", f"{cluster.ray_files}/{number}"]
        shares = ["--num-cpus", str(cpus), "--num-gpus", str(len(mine)), "--memory", str(memory)]
        launch(
            f"worker-{number}",
            [*common, "--address", gcs, *files, *shares],
            **({"CUDA_VISIBLE_DEVICES": ",".join(mine)} if cards else {}),
        )
        # One after another: Ray gives a node 30 s to join, which several at once may need on a busy machine.
        wait(cluster, file, partial(joined, cluster.address, nodes=number + 1))
    wait(cluster, file, lambda: takes_jobs(cluster.address))
    if own_mlflow:  # before any driver writes: two that make the database at once would hinder one another
        wait(cluster, file, lambda: answers(f"{cluster.mlflow}/health"))
    return cluster


def joined(address: str, nodes: int) -> bool:
    """Whether the cluster has so many nodes, the head among them."""
    try:
        return sum(node.state == "ALIVE" for node in list_nodes(address=address)) == nodes
    except (RuntimeError, OSError):  # not yet
        return False


def takes_jobs(address: str) -> bool:
    """Whether an empty job runs: a new head refuses jobs until its agent is up."""
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint="true")
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.2)
        succeeded = client.get_job_status(job) == JobStatus.SUCCEEDED
        client.delete_job(job)
    except (RuntimeError, OSError):  # not yet
        return False
    return succeeded


def down(file: Path) -> None:
    """End what ``up`` has started: jobs, workers, head, MLflow; in order, then by force."""
    cluster = Cluster.read(file)
    if cluster is None:
        return
    if any(members(leader) for leader in cluster.leaders):
        with suppress(RuntimeError, OSError):  # a head that does not answer has no job to stop
            stop_jobs(JobSubmissionClient(cluster.address))
    for leader in reversed(cluster.leaders):
        end(leader)
    shutil.rmtree(cluster.ray_files, ignore_errors=True)
    file.unlink()


def stop_jobs(client: JobSubmissionClient) -> None:
    """Let running jobs end in order: a sweep closes its runs in MLflow."""
    jobs = [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    for job in jobs:
        client.stop_job(job)
    late = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < late and not all(client.get_job_status(job).is_terminal() for job in jobs):
        time.sleep(0.2)


def gpus() -> list[str]:
    """Cards of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [card for card in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if card]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU")]


def free_port(name: str, wanted: int | None, usual: int) -> int:
    """Choose the port that is wanted, else the usual one or the next that nobody listens on."""

    def free(port: int) -> bool:
        with suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return True
        return False

    if wanted is None:
        return next(filter(free, range(usual, usual + 1000)))
    if not free(wanted):
        refuse(name, wanted, "taken; leave it out for the next free one")
    return wanted


def wait(cluster: Cluster, file: Path, ready: Callable[[], bool]) -> None:
    """Wait until something is there; ends the program with the end of the log if a process has died."""
    late = time.monotonic() + START_SECONDS
    while not ready():
        for leader in cluster.leaders:
            if (slow := time.monotonic() > late) or leader.pid not in members(leader):
                log = file.with_name(f"{leader.name}.log").read_text(errors="replace")
                sys.exit(f"{log[-2000:]}\nerror: {leader.name} has {'not come up' if slow else 'ended'}")
        time.sleep(0.3)


def answers(address: str) -> bool:
    """Whether an HTTP server is there, whatever it says."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError:  # a dashboard that asks for the token
        return True
    except OSError:
        return False


def refuse(field: str, value: object, remedy: str) -> NoReturn:
    """End with one line that names the setting, what it was and what would be right."""
    print(f"error: {field} = {value}: {remedy}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
