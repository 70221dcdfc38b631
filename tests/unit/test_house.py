"""The house itself: what the files promise one another."""

import builtins
import re
import sys
import threading
import tomllib
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.documents import ROOT, checkout_files

BINARY = {".safetensors", ".png", ".pt", ".npz"}
# In pieces, so that this file does not hold what it looks for.
INDEX = re.compile(
    "|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "://[^ ]*/" + "simple", r"(?<!-emit)-index" + "-url[ =]"))
)
HOMES = re.compile(r"(?<![\w.~-])(/root|/home/(?!ray\b)\w+|/Users/\w+)(?=/)")  # /home/ray is in Ray's own images


def texts() -> list[Path]:
    return [path for path in checkout_files() if path.suffix not in BINARY]


def recipes() -> dict[str, str]:
    """Name of each public recipe -> the line above it."""
    lines = (ROOT / "justfile").read_text().splitlines()
    heads = (
        (re.match(r"([a-z][\w-]*)( [^:=]*)?:(?!=)", line), above)
        for above, line in zip(["", *lines], lines, strict=False)
    )
    return {head[1]: above for head, above in heads if head and above != "[private]"}


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and line[0] not in "# ":
            pin = Requirement(line.rstrip("\\ "))
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def test_no_file_names_a_home_or_an_index() -> None:
    here = f"{ROOT}/" if len(ROOT.parts) > 2 else None  # /src would be too common a word
    for path in texts():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}"
            assert here is None or here not in line, f"{where} names a path of this machine"
            assert not HOMES.search(line), f"{where} names somebody's home"
            assert not INDEX.search(line), f"{where} names a package index"


def test_lock_pins_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins()
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        wanted = Requirement(line)
        of_it = locked.get(canonicalize_name(wanted.name), [])
        assert of_it, f"requirements.lock lacks {wanted}"
        for pin in of_it:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert wanted.specifier.contains(exact.version), (
                f"requirements.lock has {pin}, pyproject.toml wants {wanted}"
            )


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_has_one_version_of_a_package_for_each_python(python: str) -> None:
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for name, alternatives in pins().items():
        fitting = [pin for pin in alternatives if pin.marker is None or pin.marker.evaluate(machine)]
        assert len(fitting) <= 1, f"{name}: {fitting}"
        assert fitting or all(pin.marker is not None for pin in alternatives)


def test_lock_has_a_hash_for_every_pin() -> None:
    blocks = re.split(r"\n(?=[^ #\n])", (ROOT / "requirements.lock").read_text())[1:]
    assert len(blocks) == sum(map(len, pins().values()))
    assert all("--hash=sha256:" in block for block in blocks)


def test_recipes_are_those_promised_and_described() -> None:
    names = "setup demo sweep submit cluster-up cluster-down ui lint fmt docs bench coverage mutants"
    names += " test test-all test-nightly test-gpu"
    assert sorted(recipes()) == sorted(names.split())
    for name, above in recipes().items():
        assert above.startswith("# "), f"{name} has no line that describes it"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "CHANGELOG.md", "justfile", ".ci/run"])
def test_commands_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)) if document.endswith(".md") else text
    for recipe in re.findall(r"(?:^|[`/ ])just ([a-z][\w-]*)", code, re.MULTILINE):
        assert recipe in recipes(), f"{document}: just {recipe}"
    for preset in re.findall(r"--preset ([a-z][\w-]*)(?![\w./-])", code):
        assert (ROOT / "alast_tune/presets" / f"{preset}.yaml").exists(), f"{document}: --preset {preset}"
    for script in re.findall(r"python3? ((?:sweeps|benchmarks|clusters)/\S+\.py)", code):
        assert (ROOT / script).exists(), f"{document}: {script}"


def test_the_training_core_imports_without_ray_optuna_and_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where a module would import them that import-linter allows to."""
    import_, here = builtins.__import__, threading.get_ident()

    def refusing(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] in {"ray", "optuna", "mlflow"} and threading.get_ident() == here:
            raise ModuleNotFoundError(name)
        return import_(name, *arguments, **options)

    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "alast_tune"}
    try:
        for name in kept:
            del sys.modules[name]
        monkeypatch.setattr(builtins, "__import__", refusing)
        package, _ = import_module("alast_tune"), import_module("alast_tune.front")
        assert package.fit.__module__ == "alast_tune.train"
        with pytest.raises(ModuleNotFoundError, match=r"^(ray|optuna|mlflow)"):
            _ = package.run_sweep
    finally:
        monkeypatch.undo()
        for name in [name for name in sys.modules if name.partition(".")[0] == "alast_tune"]:
            del sys.modules[name]
        sys.modules.update(kept)
