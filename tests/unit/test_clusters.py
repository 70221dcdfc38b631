"""The files of clusters/ and the Dockerfile: valid for the program that reads them, of one version, and safe."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from clusters.local import sessions
from clusters.local.sessions import Leader, end, members
from tests.documents import ROOT, checkout_files
from tests.unit.test_house import pins

CLUSTERS = ROOT / "clusters"
LAUNCHER = ("aws", "gcp", "onprem")
COMPOSE = ("compose.yaml", "compose.gpu.yaml", "compose.auth.yaml")
FILES = [path for path in checkout_files() if path.is_relative_to(CLUSTERS) or path.name == "Dockerfile"]


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text())


# Versions ------------------------------------------------------------------------------------------------------------

MENTIONS = {
    "ray": (
        r"rayVersion: *['\"]?([\d.]+\w*)",
        r"rayproject/ray:(\d+\.\d+\.\d+)",
        r"\bray(?:\[[\w,]+\])?==(\d[\w.]*)",
    ),
    "python": (
        r"\bpython:?(\d\.\d+)(?![\w.]*\$)",
        r"\bPython (\d\.\d+)",
        r"--python[ =](\d\.\d+)",
        r"PYTHON=(\d\.\d+)",
        r"rayproject/ray:[\d.]+-py(\d\d+)",
    ),
}


def mentions(kind: str, text: str) -> set[str]:
    found = {version for pattern in MENTIONS[kind] for version in re.findall(pattern, text)}
    return {f"{version[0]}.{version[1:]}" if kind == "python" and "." not in version else version for version in found}


def chosen() -> dict[str, str]:
    """The one place of each: the lock for Ray, the Dockerfile's argument for Python."""
    (ray,) = pins()["ray"]
    (python,) = re.findall(r"^ARG PYTHON=(\d\.\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return {"ray": str(ray.specifier).removeprefix("=="), "python": python}


def test_every_file_speaks_of_the_chosen_ray_and_python() -> None:
    for path in FILES:
        for kind, version in chosen().items():
            assert mentions(kind, path.read_text()) <= {version}, f"{path.relative_to(ROOT)} names another {kind}"
    (wanted,) = re.findall(r'^requires-python = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert SpecifierSet(wanted).contains(chosen()["python"])


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("ray", "  rayVersion: '2.9.0'", "2.9.0"),
        ("ray", "image: rayproject/ray:2.9.0-py310-gpu", "2.9.0"),
        ("python", "image: rayproject/ray:2.9.0-py310-gpu", "3.10"),
        ("ray", "pip install 'ray[default,tune]==2.9.0'", "2.9.0"),
        ("python", "FROM python:3.10-slim", "3.10"),
        ("python", "apt-get install python3.10-venv", "3.10"),
        ("python", "uv venv --python 3.10 .venv", "3.10"),
    ],
)
def test_a_version_is_seen_however_it_is_written(kind: str, text: str, found: str) -> None:
    assert mentions(kind, text) == {found}


# Ray's cluster launcher ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file_is_what_ray_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = prepare_config(read(f"{name}.yaml"))
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config | {"max_worker": 8})
    for target, source in config["file_mounts"].items():
        assert source == target == "~/.ray/auth_token" or (ROOT / source).exists()
    for commands in (value for key, value in config.items() if key.endswith("_commands")):
        for command in commands:
            subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    head = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus 0" in head and "--dashboard-host 127.0.0.1" in head and "--autoscaling-config" in head
    if name != "onprem":
        assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_aws_nodes_are_what_ec2_takes() -> None:
    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert model
    for name, kind in read("aws.yaml")["available_node_types"].items():
        report = ParamValidator().validate(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, model)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    markets = {
        name: kind["node_config"].get("InstanceMarketOptions")
        for name, kind in read("aws.yaml")["available_node_types"].items()
    }
    assert markets == {"head": None, "gpu-spot": {"MarketType": "spot"}, "gpu-on-demand": None}


GCP = {
    "machineType": str,
    "disks": {"boot": bool, "autoDelete": bool, "type": str, "initializeParams": dict},
    "serviceAccounts": {"email": str, "scopes": list},
    "scheduling": {
        "provisioningModel": str,
        "instanceTerminationAction": str,
        "onHostMaintenance": str,
        "automaticRestart": bool,
    },
}
"""Of Compute Engine's instances.insert, what we use; no description of it comes with the packages at hand."""


def test_gcp_nodes_have_fields_that_compute_engine_knows() -> None:
    config = read("gcp.yaml")
    for kind in config["available_node_types"].values():
        for field, value in kind["node_config"].items():
            known = GCP[field]
            for part in value if isinstance(value, list) else [value]:
                if isinstance(known, dict):
                    assert all(isinstance(inner, known[key]) for key, inner in part.items()), field
                else:
                    assert isinstance(part, known)
        (disk,) = kind["node_config"]["disks"]
        assert disk["initializeParams"]["diskType"].split("/")[1] == config["provider"]["availability_zone"]
        if kind["resources"]["GPU"]:  # such a machine cannot move to another host while it runs
            assert kind["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"


# Containers ----------------------------------------------------------------------------------------------------------


@cache
def compose_schema() -> Any:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    return jsonschema.validators.validator_for(schema)(schema)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_file_fits_the_published_schema(name: str) -> None:
    pytest.importorskip("check_jsonschema", reason="carries the schema of the Compose specification")
    compose_schema().validate(read(f"local/{name}"))
    with pytest.raises(jsonschema.ValidationError):
        compose_schema().validate({"services": {"head": {"command": [], "depend_on": {}}}})


def test_containers_are_locked_down() -> None:
    compose = read("local/compose.yaml")
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service.get("user", "0") == "postgres" or service["image"].startswith("alast-tune:"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for dependency, how in service.get("depends_on", {}).items():
            other = compose["services"][dependency]
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in other or "ray" in other["command"], f"{dependency}: the image's own is a Ray node's"
        assert not service.get("privileged") and "network_mode" not in service
    assert compose["services"]["postgres"]["networks"] == ["data"] and compose["networks"]["data"]["internal"]


def test_auth_variant_changes_nothing_else_about_the_server() -> None:
    plain = read("local/compose.yaml")["services"]["mlflow"]["command"]
    assert read("local/compose.auth.yaml")["services"]["mlflow"]["command"] == [*plain, "--app-name=basic-auth"]


def test_image_is_not_roots_and_has_all_that_it_copies() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    users = [line.split()[1] for line in lines[stages[-1] :] if line.startswith("USER ")]
    assert users and users[-1].split(":")[0].isdigit() and int(users[-1].split(":")[0]) > 0
    assert not any(line.startswith("ENTRYPOINT") for line in lines)
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / source).exists() for source in line.split()[1:-1])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / path).exists() for path in allowed)
    assert {"alast_tune", "sweeps", "pyproject.toml", "requirements.lock", "clusters/prune_cuda.py"} <= allowed


# Secrets and open doors ----------------------------------------------------------------------------------------------

SECRET = re.compile(
    r"(?i)(?:password|passwd|token|secret(?:_?key)?|access_?key)[\"']?\s*[:=]\s*[\"']?(?![\"'\s]|\$|null\b|~/|token\b|mlflow\b|optuna\b)([\w+/=-]{6,})"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_holds_a_secret(path: Path) -> None:
    assert not SECRET.search(path.read_text())
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{40,}\b", path.read_text())


def test_a_secret_would_be_seen() -> None:
    for text in ("POSTGRES_PASSWORD: hunter22", "RAY_AUTH_TOKEN=0123456789abcdef", 'admin_password = "letmein"'):
        assert SECRET.search(text)
    for text in ("RAY_AUTH_MODE: token", "RAY_AUTH_TOKEN: ${RAY_AUTH_TOKEN:?}", "RAY_AUTH_TOKEN: null"):
        assert not SECRET.search(text)


def test_every_ray_asks_for_a_token_and_every_mlflow_knows_its_hosts() -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in image
    for path in FILES:
        text = path.read_text()
        if path.suffix in {".md", ".py"} or "kind: Component" in text:  # which changes a cluster that asks
            continue
        if re.search(r"\bray[, ]+(start|symmetric-run)|rayStartParams", text) and "alast-tune:" not in text:
            assert re.search(r"RAY_AUTH_MODE(=|: *)\"?token|authOptions", text), path
        assert not re.search(r"RAY_AUTH_MODE(=|: *)\"?disabled", text), path
        servers = len(re.findall(r"\bmlflow server\b|^ +- server$", text, re.MULTILINE))
        assert text.count("--allowed-hosts") >= servers and not re.search(r"allowed-hosts[= ]\"?\*", text), path


# Slurm, SkyPilot -----------------------------------------------------------------------------------------------------


def test_skypilot_file_has_fields_that_it_documents() -> None:
    task = read("skypilot.yaml")
    assert set(task) <= {"name", "num_nodes", "workdir", "resources", "envs", "secrets", "file_mounts", "setup", "run"}
    assert set(task["resources"]) <= {"accelerators", "use_spot", "disk_size", "any_of", "cpus", "memory", "image_id"}
    assert task["secrets"] == {"RAY_AUTH_TOKEN": None}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        given = (
            set(task["envs"])
            | set(task["secrets"])
            | {"SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "PWD", "PATH", "HOME"}
        )
        assert set(re.findall(r"\$\{?([A-Z_]+)", script)) <= given


SBATCH = CLUSTERS / "slurm" / "sweep.sbatch"


@pytest.mark.parametrize("ended", [124, 0, None], ids=["time-up", "done", "no-ray"])
def test_slurm_job_runs_one_ray_over_its_nodes(ended: int | None, tmp_path: Path) -> None:
    """A dry run: srun and scontrol write down how they are called; srun leaves what the driver would have."""
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    calls, storage = tmp_path / "calls", tmp_path / "runs"
    driver = f"case $* in *timeout*) echo {ended} > {storage}/.ended-4711 ;; esac" if ended is not None else ""
    for name, answer in {"srun": driver, "scontrol": "[ $1 = requeue ] || echo node-7", "ray": ""}.items():
        program = tmp_path / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\n{answer}\n')
        program.chmod(0o755)
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_ID": "4711", "JOB_NODELIST": "node-[7-8]", "JOB_NUM_NODES": "2"}
    done = subprocess.run(
        ["bash", str(SBATCH), "big", "--preset", "demo"], capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "MLFLOW_TRACKING_URI": "http://mlflow.invalid", "HOME": str(tmp_path)}
        | {f"SLURM_{name}": value for name, value in slurm.items()}
        | {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)},
    )  # fmt: skip
    assert done.returncode == (1 if ended is None else ended), done.stderr
    token, hosts, srun, cleaning, *requeue = calls.read_text().splitlines()
    assert token == "ray get-auth-token --generate" and hosts == "scontrol show hostnames node-[7-8]"
    assert requeue == (["scontrol requeue 4711"] if ended == 124 else [])
    assert cleaning.endswith("--ntasks=2 --ntasks-per-node=1 rm -rf /tmp/ray-4711")
    start, _, entry = srun.partition(" -- ")
    assert start.endswith("ray symmetric-run --address node-7:29422 --min-nodes 2")
    assert "--ntasks=2 --ntasks-per-node=1" in start and "timeout --kill-after=120" in entry
    limit = re.search(
        rf"4711 (\d+) python sweeps/pareto.py --name big --go-on --storage {storage} --preset demo$", entry
    )
    assert limit and 3240 <= int(limit[1]) <= 3300


# The cluster on this machine -----------------------------------------------------------------------------------------


def spawn(program: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


def test_session_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    parent = spawn(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}])")
    leader = Leader.of("parent", parent.pid)
    child = [pid for pid in members(leader) if pid != parent.pid]
    assert len(child) == 1
    # The grace ends when the parent has: who ignores SIGTERM is killed then.
    looks = count()
    hurried = SimpleNamespace(monotonic=lambda: next(looks) * (parent.poll() is not None) * 1e3, sleep=time.sleep)
    monkeypatch.setattr(sessions, "time", hurried)
    end(leader)
    assert members(leader) == [] and parent.wait(60) == -signal.SIGTERM
    assert not Path(f"/proc/{child[0]}").exists() or "Z" in Path(f"/proc/{child[0]}/stat").read_text().split(")")[1]
    assert parent.stdout
    parent.stdout.close()


def test_later_process_with_the_same_pid_is_left_alone() -> None:
    later = spawn("import time; print('up', flush=True); time.sleep(600)")
    now = Leader.of("later", later.pid)
    try:
        for ours in (
            Leader("ours", later.pid, now.begun - 1, now.boot),
            Leader("ours", later.pid, now.begun, "an earlier start of the machine"),
        ):
            assert members(ours) == []
            end(ours)
            assert later.poll() is None
    finally:
        end(now)
        later.wait(60)
        assert later.stdout
        later.stdout.close()
