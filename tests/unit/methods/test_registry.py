"""A method of one's own, under a name: registered in this process, or by a package for all processes."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from ray import cloudpickle
from torch import nn

import alast_tune
from alast_tune import plugins
from alast_tune.cli import main
from alast_tune.cli.doctor import machine
from alast_tune.config import (
    MethodConfig,
    SweepConfig,
    TrialConfig,
    apply_params,
    known_methods,
    method_names,
    parse,
    write_yaml,
)
from alast_tune.errors import ConfigError
from alast_tune.labels import method_label
from alast_tune.methods import build_method
from alast_tune.tracking.names import run_name
from alast_tune.tune.cluster import _worker_setup
from tests.unit.every_method import vit

OURS = ["alast", "full", "head", "top_k", "bsr", "tome", "lora", "apla", "reader"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another has registered."""
    monkeypatch.setattr(plugins, "_HERE", {})


class Norms(MethodConfig):
    """Norms and the classifier train."""

    name: Literal["norms"] = "norms"
    label = "norms alone"
    foremost = "depth"

    depth: int = Field(2, ge=1)

    def trainable_parameters(self, model: Any) -> list[nn.Parameter]:
        return [p for name, p in model.named_parameters() if "norm" in name or name.startswith("head.")]


def refusal(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(TrialConfig, {"method": values})
    return str(caught.value)


def test_it_is_a_method_like_any_other() -> None:
    alast_tune.register_method(Norms)
    assert method_names() == [*OURS, "norms"]
    trial = parse(TrialConfig, {"method": {"name": "norms", "depth": 3}})
    assert trial.method == Norms(depth=3)
    assert parse(TrialConfig, trial.model_dump(mode="json")) == parse(TrialConfig, trial.given_values()) == trial
    assert apply_params(trial, {"method/depth": 5}).method == Norms(depth=5)
    assert apply_params(TrialConfig(), {"method": {"name": "norms"}}).method == Norms()
    assert refusal({"name": "norms", "depth": 0}) == "method.depth = 0: Input should be greater than or equal to 1"
    assert refusal({"name": "norms", "deep": 1}) == "method.deep = 1: no such setting; see --help for those there are"
    method = build_method(trial.method, vit())
    assert method.plan.trainable_L == (True,) * 6
    assert method_label(trial, key=True) == "norms alone, depth 3"
    assert run_name(7, trial, {"method/depth": 3}) == "0007 norms depth 3"


def test_a_sweep_searches_its_settings_by_path() -> None:
    alast_tune.register_method(Norms)
    space = {"method/depth": {"type": "int", "low": 1, "high": 4}}
    sweep = parse(SweepConfig, {"trial": {"method": {"name": "norms"}}, "space": space})
    assert apply_params(sweep.trial, sweep.settings({"method/depth": 4})).method == Norms(depth=4)
    wrong = {"method/depth": {"type": "int", "low": 0, "high": 4}}
    with pytest.raises(ConfigError, match=r"space\.method/depth = 0: method\.depth = 0"):
        parse(SweepConfig, {"trial": {"method": {"name": "norms"}}, "space": wrong})


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    known = f"known are {', '.join(OURS)}; your own takes alast_tune.register_method, or an entry point of group"
    assert refusal({"name": "norms"}) == f"method.name = norms: no such method; {known} alast_tune.methods"
    assert refusal({"name": "lorra"}).startswith("method.name = lorra: no such method; did you mean lora? known are")
    assert refusal({"depth": 1}) == f"method.name = not given: name a method: {', '.join(OURS)}"


def test_two_methods_of_one_name_are_refused() -> None:
    class Other(Norms):
        """Of the same name."""

    alast_tune.register_method(Norms)
    alast_tune.register_method(Norms)  # a notebook's cell, run again
    with pytest.raises(ConfigError, match=r"^register_method = norms: is the name of \S+:Norms; choose another$"):
        alast_tune.register_method(Other)

    class Lora(Norms):
        """Of the name of ours."""

        name: Literal["lora"] = "lora"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"lora: is the name of alast_tune\.methods\.lora:LoraConfig; choose"):
        alast_tune.register_method(Lora)


def test_what_is_no_method_is_refused() -> None:
    class Silent(MethodConfig):
        """Says nothing of what trains."""

        name: Literal["silent"] = "silent"

    class Nameless(Norms):
        """Has no name."""

        name: str  # type: ignore[assignment]

    class Lacking(Norms):
        """Has no such setting."""

        foremost = "width"

    for wrong, text in (
        (Lacking, "register_method = Lacking: has no field width, which is its foremost"),
        (Silent, "register_method = Silent: does not say what trains; give it trainable_parameters"),
        (Nameless, 'register_method = Nameless: has no name; write name: Literal["mine"]'),
        (dict, "is no class of alast_tune.MethodConfig"),
    ):
        with pytest.raises(ConfigError) as caught:
            alast_tune.register_method(wrong)  # type: ignore[type-var]
        assert text in str(caught.value)


def test_settings_that_cannot_be_hashed_are_refused() -> None:
    @alast_tune.register_method
    class Listed(Norms):
        """Has a list."""

        name: Literal["listed"] = "listed"  # type: ignore[assignment]
        which: list[int] = Field(default_factory=lambda: [1])

    assert refusal({"name": "listed"}) == (
        "method.which = [1]: cannot be hashed, which the meter needs; have Listed.which a tuple, no list"
    )


def test_what_cannot_train_is_refused_before_the_first_step() -> None:
    class Foreign(Norms):
        """Trains what the model does not have."""

        def trainable_parameters(self, model: Any) -> list[nn.Parameter]:
            return [nn.Parameter(torch.zeros(1))]

    class Nothing(Norms):
        """Trains nothing."""

        def trainable_parameters(self, model: Any) -> list[nn.Parameter]:
            return []

    class Twice(Norms):
        """Trains the classifier twice."""

        def trainable_parameters(self, model: Any) -> list[nn.Parameter]:
            return 2 * list(model.head.parameters())

    class Lazily(Norms):
        """Gives what trains one by one."""

        def trainable_parameters(self, model: Any) -> Any:
            return model.head.parameters()

    for wrong, text in (
        (Foreign, "trains a parameter that is no part of the model"),
        (Nothing, "trains nothing"),
        (Twice, "lists a parameter twice"),
    ):
        with pytest.raises(ConfigError, match=f"^method.name = norms: {text}"):
            build_method(wrong(), vit())
    assert len(build_method(Lazily(), vit()).parameters()) == 2


def test_workers_of_ray_register_what_their_driver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    alast_tune.register_method(Norms)
    sent = cloudpickle.dumps(_worker_setup())
    monkeypatch.setattr(plugins, "_HERE", {})
    assert _worker_setup() is None
    pickle.loads(sent)()
    assert parse(TrialConfig, {"method": {"name": "norms"}}).method == Norms()


MODULE = """
from typing import Literal
from alast_tune import MethodConfig

class Plugged(MethodConfig):
    name: Literal["plugged"] = "plugged"
    share: float = 0.5
    def trainable_parameters(self, model):
        return list(model.head.parameters())

class Misnamed(Plugged):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As pip leaves a package with entry points: a module, and a folder that says so."""
    (tmp_path / "plugged_methods.py").write_text(MODULE)
    info = tmp_path / "plugged_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-methods\nVersion: 1.0\n")
    points = {"plugged": "Plugged", "other": "Misnamed", "broken": "Nothing", "lora": "Plugged"}
    lines = [f"{name} = plugged_methods:{what}" for name, what in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[alast_tune.methods]", *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_registers_it_for_every_process(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(TrialConfig, {"method": {"name": "plugged"}}).method.share == 0.5  # type: ignore[attr-defined]
    assert refusal({"name": "other"}) == (
        "method.name = other: is called plugged in plugged_methods:Misnamed; make them agree"
    )
    assert refusal({"name": "broken"}).startswith(
        "method.name = broken: cannot be imported from plugged_methods:Nothing (AttributeError: "
    )
    assert refusal({"name": "lora"}) == (
        "method.name = lora: is the name of two methods, alast_tune.methods.lora:LoraConfig and "
        "plugged_methods:Plugged; rename or uninstall one"
    )
    assert list(known_methods()) == [*(name for name in OURS if name != "lora"), "plugged"]
    assert machine()["method other"] == refusal({"name": "other"})  # doctor says which cannot be used


def test_the_command_line_has_its_options(package: Path) -> None:
    """In a process of its own, as a person runs it."""
    (package / "mine.yaml").write_text(write_yaml({"method": {"name": "plugged"}}))
    code = "from alast_tune.cli import main; main(['train', '--help-all'])"
    paths = {"PYTHONPATH": f"{package}:{Path(alast_tune.__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True)
    assert "--method.share float" in done.stdout
    assert "alast,apla,bsr,full,head,plugged,reader,tome,top_k" in done.stdout


def test_settings_need_no_torch_until_a_method_is_named() -> None:
    code = "import sys, alast_tune.config; print('torch' in sys.modules); alast_tune.config.HeadConfig()"
    paths = {"PYTHONPATH": str(Path(alast_tune.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True)
    assert done.stdout == "False\n"


def test_an_option_of_a_registered_method_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    alast_tune.register_method(Norms)
    with pytest.raises(SystemExit):
        main(["train", "--method.name", "norms", "--method.depth", "0"])
    assert "error: method.depth = 0: Input should be greater than or equal to 1" in capsys.readouterr().err
