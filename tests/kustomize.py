"""What `kubectl kustomize` makes of a folder, as far as clusters/kuberay uses it; anything else is refused.

A test holds this against kubectl itself where that is installed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
_KNOWN = {
    "apiVersion", "kind", "namespace", "nameSuffix", "resources", "components", "images", "patches", "replacements",
}  # fmt: skip
_LOCAL = "config.kubernetes.io/local-config"


def build(folder: Path) -> list[Resource]:
    """Render a kustomization, as objects that share no part with one another."""
    built = _accumulate(folder, [])
    return [r for r in built if r["metadata"].get("annotations", {}).get(_LOCAL) != "true"]


def _accumulate(folder: Path, resources: list[Resource]) -> list[Resource]:
    (said,) = _read(folder / "kustomization.yaml")
    unknown = said.keys() - _KNOWN
    assert not unknown, f"{folder}: {unknown} is not understood here"
    for name in said.get("resources", []):
        path = folder / name
        # Through JSON: YAML's aliases would make one object of what are several.
        resources += _accumulate(path, []) if path.is_dir() else json.loads(json.dumps(_read(path)))
    for name in said.get("components", []):
        resources = _accumulate(folder / name, resources)
    for patch in said.get("patches", []):
        chosen = [r for r in resources if _matches(r, patch["target"])]
        assert chosen and patch.keys() == {"target", "patch"}, f"{folder}: {patch} changes nothing"
        for operation in yaml.safe_load(patch["patch"]):
            for resource in chosen:
                _apply(resource, **json.loads(json.dumps(operation)))
    for resource in resources:
        if "namespace" in said and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = said["namespace"]
        resource["metadata"]["name"] += said.get("nameSuffix", "")
        for image in said.get("images", []):
            _set_image(resource, **image)
    for replacement in said.get("replacements", []):
        source = dict(replacement["source"])
        field = source.pop("fieldPath")
        (origin,) = (r for r in resources if _matches(r, source))
        for target in replacement["targets"]:
            assert target["options"] == {"create": True}, target
            for resource in (r for r in resources if _matches(r, target["select"])):
                for path in target["fieldPaths"]:
                    *above, last = path.split(".")
                    _at(resource, above)[last] = json.loads(json.dumps(_at(origin, field.split("."))))
    return resources


@cache
def _read(path: Path) -> list[Resource]:
    """Read a file of YAML once; whoever changes what is in it changes a copy."""
    return list(yaml.safe_load_all(path.read_text()))


def _matches(resource: Resource, target: dict[str, str]) -> bool:
    assert target.keys() <= {"kind", "name"}, target
    return all(value == {**resource, **resource["metadata"]}[key] for key, value in target.items())


def _at(there: Any, keys: list[str]) -> Any:
    for key in keys:
        there = there[int(key) if isinstance(there, list) else key]
    return there


def _apply(resource: Resource, op: str, path: str, value: Any = None) -> None:
    """One operation of RFC 6902; only add may name what is not there."""
    *above, last = (part.replace("~1", "/").replace("~0", "~") for part in path.removeprefix("/").split("/"))
    there = _at(resource, above)
    key: Any = len(there) if last == "-" else int(last) if isinstance(there, list) else last
    if op == "add" and isinstance(there, list):
        there.insert(key, value)
    elif op == "add":
        there[key] = value
    elif op == "replace":
        there[key]  # must exist
        there[key] = value
    else:
        assert op == "remove", op
        del there[key]


def _set_image(there: Any, name: str, newTag: str, newName: str | None = None) -> None:
    for key, value in there.items() if isinstance(there, dict) else ():
        for container in value if key in {"containers", "initContainers"} else ():
            if container["image"].split(":")[0] == name:
                container["image"] = f"{newName or name}:{newTag}"
    for value in there.values() if isinstance(there, dict) else there if isinstance(there, list) else ():
        _set_image(value, name, newTag, newName)
