"""clusters/kuberay: against Kubernetes' and the operator's schemas, and against what Ray, MLflow and our code read."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay import node_provider
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS
from ray.scripts.scripts import start as ray_start

from alast_tune import __version__
from alast_tune.cli.sweep import Sweep
from alast_tune.tune.resources import CARD_LABEL
from tests.documents import ROOT
from tests.kustomize import Resource, build

KUBERAY = ROOT / "clusters" / "kuberay"
SCHEMAS = Path(os.environ.get("ALAST_SHARED", ROOT.parent / "shared")) / "schemas"
SERVICES = ("services", "services-auth", "volume")
CLUSTERS = ("cpu/cluster", "gpu/cluster")
JOBS = ("cpu/job", "gpu/job", "gpu/queue")
EVERYTHING = SERVICES + CLUSTERS + JOBS
GIB = 2**30


@cache
def rendered(folder: str) -> list[Resource]:
    return build(KUBERAY / folder)


@cache
def operators_schema(kind: str) -> Draft202012Validator:
    schema = (SCHEMAS / f"kuberay-1.7.0-{kind.lower()}s.schema.json").read_text()
    return Draft202012Validator(json.loads(schema))


def only(folder: str, kind: str) -> Resource:
    (found,) = (r for r in rendered(folder) if r["kind"] == kind)
    return found


def cluster_spec(folder: str) -> dict[str, Any]:
    """Spec of an overlay's RayCluster, or of the one that its RayJob makes."""
    (found,) = (r for r in rendered(folder) if r["kind"] in {"RayCluster", "RayJob"})
    return found["spec"] if found["kind"] == "RayCluster" else found["spec"]["rayClusterSpec"]


def groups(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Head and worker groups, each with its pod."""
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        yield group, group["template"]["spec"]


def templates(folder: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of every pod that comes of a folder, with the labels that the operator sets."""
    for resource in rendered(folder):
        spec = resource["spec"] if resource["kind"] in {"RayCluster", "RayJob", "Deployment", "StatefulSet"} else {}
        if "template" in spec:
            yield spec["template"]["metadata"]["labels"], spec["template"]["spec"]
        if "submitterPodTemplate" in spec:
            yield spec["submitterPodTemplate"]["metadata"]["labels"], spec["submitterPodTemplate"]["spec"]
        for group, pod in groups(spec.get("rayClusterSpec", spec)) if resource["kind"].startswith("Ray") else ():
            kind = "worker" if "groupName" in group else "head"
            yield {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind}, pod


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def byte_count(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * GIB if quantity.endswith("Gi") else int(quantity.removesuffix("Mi")) << 20


# Rendering, and schemas


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
@pytest.mark.parametrize("folder", EVERYTHING)
def test_rendered_here_as_by_kubectl(folder: str) -> None:
    printed = subprocess.run(["kubectl", "kustomize", KUBERAY / folder], capture_output=True, text=True, check=True)

    def identity(resource: Resource) -> tuple[str, str]:
        return resource["kind"], resource["metadata"]["name"]

    def as_printed(resource: Resource) -> Resource:  # kubectl prints what is empty in several ways
        return json.loads(json.dumps(resource).replace(', "annotations": {}', ""))

    theirs = sorted(yaml.safe_load_all(printed.stdout), key=identity)
    assert sorted(map(as_printed, rendered(folder)), key=identity) == theirs


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("secretGenerator: [{name: x, literals: [a=b]}]")
    with pytest.raises(AssertionError, match="secretGenerator"):
        build(tmp_path)


def test_every_kustomization_is_looked_at() -> None:
    folders = {str(p.parent.relative_to(KUBERAY)) for p in KUBERAY.rglob("kustomization.yaml")}
    assert {f for f in folders if not f.startswith("components/")} == {*EVERYTHING, "base"}


@pytest.mark.parametrize("folder", SERVICES)
def test_core_objects_are_kubernetes_own(folder: str) -> None:
    """``validate`` raises ValidationError."""
    resources = rendered(folder)
    assert resources
    for resource in resources:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_pods_of_ray_are_kubernetes_own(folder: str) -> None:
    """``validate`` raises ValidationError."""
    pods = list(templates(folder))
    assert pods
    for _, pod in pods:
        meta = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
        kubernetes_validate.validate({**meta, "spec": pod}, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no ../shared/schemas with the operator's schemas")
@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_ray_objects_keep_the_operators_schema(folder: str) -> None:
    (resource,) = rendered(folder)
    errors = operators_schema(resource["kind"]).iter_errors(resource)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


# What Ray reads


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_ray_start_knows_its_parameters(folder: str) -> None:
    options = {option.removeprefix("--") for p in ray_start.params for option in p.opts}
    for group, _ in groups(cluster_spec(folder)):
        assert group["rayStartParams"].keys() <= options


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_version_of_ray_is_the_locks(folder: str) -> None:
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert cluster_spec(folder)["rayVersion"] == locked


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_autoscaler_reads_the_groups(folder: str) -> None:
    """Ray's own reading: nothing runs on the head, and trials get less memory than a worker has."""
    spec = cluster_spec(folder)
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "alast", "namespace": "alast"}, "spec": spec})
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    for group in spec["workerGroupSpecs"]:
        kind, (container,) = kinds[group["groupName"]], group["template"]["spec"]["containers"]
        limit = byte_count(container["resources"]["limits"]["memory"])
        (shm,) = (v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
        assert kind["resources"]["memory"] + byte_count(shm["sizeLimit"]) + 3 * GIB <= limit
        assert int(group["rayStartParams"]["object-store-memory"]) < byte_count(shm["sizeLimit"])
        assert kind["resources"]["CPU"] == int(container["resources"]["requests"]["cpu"])
        assert kind["resources"].get("GPU") == (1 if folder.startswith("gpu") else None)
        assert (CARD_LABEL in kind["labels"]) == folder.startswith("gpu")
    if folder == "gpu/queue":  # all of it at once, as Kueue wants it
        assert {k["min_workers"] for k in kinds.values()} == {k["max_workers"] for k in kinds.values()} == {2, 6}
    else:
        assert {k["min_workers"] for k in kinds.values()} == {0}
        assert kinds["spot"].get("priority", 0) > kinds["on-demand"].get("priority", 0)
        assert kinds["on-demand"]["max_workers"] > 0


@pytest.mark.parametrize("folder", [f for f in CLUSTERS + JOBS if f != "gpu/queue"])
def test_autoscaler_is_the_second_and_alone_has_a_token_of_kubernetes(folder: str) -> None:
    spec = cluster_spec(folder)
    assert spec["enableInTreeAutoscaling"]
    options, pod = spec["autoscalerOptions"], spec["headGroupSpec"]["template"]["spec"]
    assert options["version"] == "v2"
    paths = {m["mountPath"]: m["name"] for m in options["volumeMounts"]}
    place = Path(node_provider.IN_CLUSTER_TOKEN_PATH)
    (volume,) = (v for v in pod["volumes"] if v["name"] == paths[str(place.parent)])
    sources = volume["projected"]["sources"]
    assert sources[0]["serviceAccountToken"]["path"] == place.name
    assert sources[1]["configMap"]["items"][0]["path"] == Path(node_provider.IN_CLUSTER_CA_CERT_PATH).name
    assert volume["name"] not in {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}


@pytest.mark.parametrize("folder", CLUSTERS + JOBS)
def test_token_is_asked_for(folder: str) -> None:
    """The operator hands mode and token to head, workers, autoscaler and submitter; its probes go without."""
    assert cluster_spec(folder)["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert "/api/healthz" in PUBLIC_EXACT_PATHS
    for _, pod in templates(folder):
        assert not any(v["name"] in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} for c in containers(pod) for v in c["env"])


# What our code reads


@pytest.mark.parametrize("folder", JOBS)
def test_entrypoint_is_a_command_line_of_ours(folder: str) -> None:
    program, script, *words = shlex.split(only(folder, "RayJob")["spec"]["entrypoint"])
    assert (program, script) == ("python", "sweeps/pareto.py")
    spelt = [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in words]
    options = Sweep(_cli_parse_args=spelt)  # type: ignore[call-arg]
    assert options.go_on and options.concurrent, "nothing would make the cluster grow"


@pytest.mark.parametrize("folder", JOBS)
def test_entrypoint_survives_the_submitters_shell(folder: str) -> None:
    """The operator puts it into a shell's command as it is."""
    entrypoint = only(folder, "RayJob")["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == entrypoint.split()
    assert not set(entrypoint) & set("$`;&|<>()*?\"'\\\n")
    assert "--go-on" in entrypoint


@pytest.mark.parametrize(("folder", "place"), [("cpu/job", "/sweeps"), ("gpu/job", "s3://")])
def test_storage_is_there(folder: str, place: str) -> None:
    words = only(folder, "RayJob")["spec"]["entrypoint"].split()
    assert words[words.index("--storage") + 1].startswith(place)
    for _, pod in groups(cluster_spec(folder)):
        (container,) = pod["containers"]
        assert ("/sweeps" in {m["mountPath"] for m in container["volumeMounts"]}) == (place == "/sweeps")
        assert container["envFrom"] == [{"secretRef": {"name": "storage", "optional": True}}]


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's, about its own
@pytest.mark.parametrize("folder", ["services", "services-auth"])
def test_mlflow_takes_its_arguments_and_answers_to_its_name(folder: str) -> None:
    from mlflow.cli import server
    from mlflow.server.security_utils import is_allowed_host_header

    (container,) = only(folder, "Deployment")["spec"]["template"]["spec"]["containers"]
    context = server.make_context("server", [*container["args"]])
    assert context.params["serve_artifacts"]
    assert (context.params["app_name"] == "basic-auth") == (folder == "services-auth")
    hosts = context.params["allowed_hosts"].split(",")
    (head,) = cluster_spec("cpu/cluster")["headGroupSpec"]["template"]["spec"]["containers"]
    (uri,) = (v["value"] for v in head["env"] if v["name"] == "MLFLOW_TRACKING_URI")
    for host in (uri.removeprefix("http://"), "localhost:5000", "127.0.0.1:5000"):
        assert is_allowed_host_header(hosts, host)
    assert not is_allowed_host_header(hosts, "evil.example:5000")


# Safe by default


def secrets_made() -> set[tuple[str, str]]:
    """Name and key of each secret that README's commands create."""
    text = (KUBERAY / "README.md").read_text().replace("\\\n", " ")
    found = set()
    for name, rest in re.findall(r"create secret generic (\S+) (.*)", text):
        found |= {(name, key) for key in re.findall(r"--from-(?:file|literal)=(\w+)=", rest)}
    return found


@pytest.mark.parametrize("folder", EVERYTHING)
def test_secrets_are_referred_to_and_made_by_readme(folder: str) -> None:
    resources = rendered(folder)
    assert not [r for r in resources if r["kind"] == "Secret"]
    named = set()
    for _, pod in templates(folder):
        for variable in (v for c in containers(pod) for v in c.get("env", [])):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            named |= {(secret["name"], secret["key"])} if secret else set()
            assert secret or not re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable["name"])
    if folder in CLUSTERS + JOBS:
        named.add((cluster_spec(folder)["authOptions"]["secretName"], "auth_token"))  # the operator's key
    assert named <= secrets_made()
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@", json.dumps(resources))  # no password in an address


@pytest.mark.parametrize("folder", EVERYTHING)
def test_pods_keep_the_restricted_standard(folder: str) -> None:
    """And more: a read-only root, no token of Kubernetes, limits; what they write has a volume."""
    for _, pod in templates(folder):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        safe = {"configMap", "emptyDir", "persistentVolumeClaim", "projected"}
        volumes = {v["name"] for v in pod["volumes"] if v.keys() - {"name"} <= safe} | {"data"}  # a StatefulSet's own
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert not any("hostPort" in port for port in container.get("ports", []))
            mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            assert {*mounts.values()} <= volumes
            home = {v["value"] for v in container["env"] if v["name"] == "HOME"}
            assert {"/tmp", *home} <= mounts.keys()
    if folder in CLUSTERS + JOBS and folder != "gpu/queue":
        options, pod = (spec := cluster_spec(folder))["autoscalerOptions"], spec["headGroupSpec"]["template"]["spec"]
        assert options["securityContext"] == pod["containers"][0]["securityContext"]
        assert options["resources"].keys() == {"requests", "limits"}
        assert {m["name"] for m in options["volumeMounts"]} <= {v["name"] for v in pod["volumes"]}
        assert "/tmp" in {m["mountPath"] for m in options["volumeMounts"]}


@pytest.mark.parametrize("folder", EVERYTHING)
def test_nothing_can_be_reached_from_outside(folder: str) -> None:
    for resource in rendered(folder):
        if resource["kind"] == "Service":
            assert resource["spec"].get("type", "ClusterIP") == "ClusterIP"
        assert resource["kind"] not in {"Ingress", "Gateway", "HTTPRoute"}
        assert resource["metadata"].get("namespace", "alast") == "alast"
    if folder in CLUSTERS + JOBS:
        assert cluster_spec(folder)["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert "enableIngress" not in cluster_spec(folder)["headGroupSpec"]


@pytest.mark.parametrize("folder", EVERYTHING)
def test_images_come_from_one_place(folder: str) -> None:
    there = yaml.safe_load((KUBERAY / "components/image/kustomization.yaml").read_text())["images"]
    tags = {image["name"]: image["newTag"] for image in there}
    assert tags["alast-tune"] == tags["alast-tune-cuda"] == __version__
    for labels, pod in templates(folder):
        for container in containers(pod):
            name, tag = container["image"].split(":")
            assert tag == tags[name]
            assert (name == "alast-tune-cuda") == (folder.startswith("gpu") and "ray.io/node-type" in labels)


def test_services_say_when_they_are_up() -> None:
    for labels, pod in templates("services"):
        for container in pod["containers"]:
            assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}, labels


# Who may talk to whom

OUTSIDE, METADATA = "203.0.113.7", "169.254.169.254"
HEAD, WORKER = ({"ray.io/is-ray-node": "yes", "ray.io/node-type": kind} for kind in ("head", "worker"))
SUBMITTER, MLFLOW, POSTGRES, OTHER = ({"app": name} for name in ("submitter", "mlflow", "postgres", "other"))
DNS = {"namespace": "kube-system", "k8s-app": "kube-dns"}
OPERATOR = {"namespace": "kuberay", "app.kubernetes.io/name": "kuberay-operator"}
STRANGER = {"namespace": "default", "app.kubernetes.io/name": "kuberay-operator"}
Peer = dict[str, str] | str


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def is_peer(said: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in said or isinstance(peer, str):
        if not ("ipBlock" in said and isinstance(peer, str)):
            return False
        block, address = said["ipBlock"], ip_address(peer)
        return address in ip_network(block["cidr"]) and not any(address in ip_network(e) for e in block["except"])
    space = {"kubernetes.io/metadata.name": peer.get("namespace", "alast")}
    here = space == {"kubernetes.io/metadata.name": "alast"}
    there = selects(said["namespaceSelector"], space) if "namespaceSelector" in said else here
    return there and selects(said.get("podSelector", {}), peer)


def passes(way: str, at: Peer, other: Peer, port: int, protocol: str) -> bool:
    """Whether a pod of ours may send to, or receive from, another: all policies that select it, added up."""
    if isinstance(at, str) or "namespace" in at:
        return True  # not ours to say
    policies = [r["spec"] for r in rendered("services") if r["kind"] == "NetworkPolicy"]
    mine = [p for p in policies if selects(p["podSelector"], at) and way.capitalize() in p["policyTypes"]]
    rules = [rule for policy in mine for rule in policy.get(way, [])]
    assert mine, f"{at} is under no policy"
    return any(
        any(is_peer(said, other) for said in rule["to" if way == "egress" else "from"])
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def flows(source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return passes("egress", source, target, port, protocol) and passes("ingress", target, source, port, protocol)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize("pod", [HEAD, WORKER, SUBMITTER, MLFLOW, POSTGRES])
def test_names_are_found(pod: Peer, protocol: str) -> None:
    assert flows(pod, DNS, 53, protocol)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        *((a, b, port) for a in (HEAD, WORKER) for b in (HEAD, WORKER) for port in (6379, 8265, 10001, 31234)),
        (HEAD, MLFLOW, 5000),
        (HEAD, POSTGRES, 5432),
        (MLFLOW, POSTGRES, 5432),
        (SUBMITTER, HEAD, 8265),
        (OPERATOR, HEAD, 8265),
        (HEAD, OUTSIDE, 443),
        (HEAD, OUTSIDE, 6443),
        (WORKER, OUTSIDE, 443),
    ],
)
def test_what_is_needed_gets_through(source: Peer, target: Peer, port: int) -> None:
    assert flows(source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        *((pod, target, 443) for pod in (OTHER, SUBMITTER, MLFLOW, POSTGRES) for target in (OUTSIDE, WORKER)),
        *((OTHER, target, port) for target, port in ((HEAD, 8265), (HEAD, 6379), (MLFLOW, 5000), (POSTGRES, 5432))),
        *((OUTSIDE, target, port) for target, port in ((HEAD, 8265), (MLFLOW, 5000), (POSTGRES, 5432), (OTHER, 80))),
        *((pod, METADATA, port) for pod in (HEAD, WORKER, MLFLOW) for port in (80, 443)),
        (WORKER, POSTGRES, 5432),
        (WORKER, MLFLOW, 5000),
        (WORKER, OUTSIDE, 80),
        (WORKER, OUTSIDE, 6443),
        (HEAD, MLFLOW, 22),
        (MLFLOW, HEAD, 8265),
        (SUBMITTER, HEAD, 6379),
        (SUBMITTER, POSTGRES, 5432),
        (OPERATOR, HEAD, 6379),
        (OPERATOR, POSTGRES, 5432),
        (STRANGER, HEAD, 8265),
    ],
)
def test_what_is_not_needed_does_not(source: Peer, target: Peer, port: int) -> None:
    assert not flows(source, target, port)


def test_flows_are_those_of_pods_that_there_are() -> None:
    there = [labels for folder in EVERYTHING for labels, _ in templates(folder)]
    for labels in (HEAD, WORKER, SUBMITTER, MLFLOW, POSTGRES):
        assert labels in there
    assert all(labels in (HEAD, WORKER, SUBMITTER, MLFLOW, POSTGRES) for labels in there)


# Retries, clearing up, Kueue


@pytest.mark.parametrize("folder", JOBS)
def test_a_job_is_tried_again_and_cleared_up_after(folder: str) -> None:
    """The operator refuses deletion rules next to shutdownAfterJobFinishes, and rules out of order."""
    spec = only(folder, "RayJob")["spec"]
    assert spec["backoffLimit"] > 0
    if folder == "gpu/queue":  # Kueue refuses anything else
        assert spec["shutdownAfterJobFinishes"]
        assert "deletionStrategy" not in spec
        return
    assert not spec.keys() & {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    rules = spec["deletionStrategy"]["deletionRules"]
    seconds = {(r["policy"], *list(r["condition"].values())[:1]): r["condition"]["ttlSeconds"] for r in rules}
    assert len(seconds) == len(rules)
    assert seconds["DeleteCluster", "SUCCEEDED"] < seconds["DeleteSelf", "SUCCEEDED"]
    assert {("DeleteCluster", "FAILED"), ("DeleteCluster", "Failed")} <= seconds.keys()
    assert not any(policy == "DeleteWorkers" for policy, _ in seconds)  # refused with the autoscaler


def test_kueue_gets_a_job_it_can_hold_back() -> None:
    job = only("gpu/queue", "RayJob")
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert job["spec"]["suspend"] is True
    assert "clusterSelector" not in job["spec"]
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) <= 7
