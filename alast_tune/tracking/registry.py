"""MLflow's model registry: a folder with a timm model becomes a version that can be loaded and served."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_alias_name_reserved,
    _validate_model_name,
)
from safetensors import safe_open

from alast_tune.checkpoint import BEST, MODEL_CARD
from alast_tune.errors import ConfigError
from alast_tune.models import reading
from alast_tune.scores import score_label
from alast_tune.tracking.store import connect, reason

ARTIFACT = "model"
"""Where in its run a registered model lies."""

REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "timm", "torch")
"""What serving takes; neither Ray nor Optuna, nor alast-tune itself."""

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
)


COMPARED_DATA = "alast.data_fingerprint"
"""Tag of a version: fingerprint of the images that its accuracies are of, whether it trains on all of them or not."""
ALL_DATA = "alast.all_data"
"""Tag of a version that has trained on the validation images as well."""
SCORE = "alast.score"
"""Tag of a version: by which measure of quality it was chosen; older ones by their accuracy."""


class RegistryError(RuntimeError):
    """The registry does not have all it should, said in a few words."""


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    version: int
    kept: str | None = None
    """Which version keeps the alias, and why; None if this version has it."""


def save_served(model: Path, path: Path) -> None:
    """Write an MLflow model: what ``mlflow.pyfunc.load_model`` loads and ``mlflow models serve`` serves.

    Args:
        model: folder with ``model.safetensors`` and timm's ``config.json``.
        path: the MLflow model's folder, which must not exist yet.
    """
    classes = json.loads((model / MODEL_CARD).read_text())["label_names"]
    with warnings.catch_warnings(), TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # about MLflow's own type hints, and that no example was given
        import mlflow.pyfunc  # seconds, and only this needs it

        mlflow.pyfunc.save_model(
            path,
            python_model=str(Path(__file__).parent / "served.py"),
            code_paths=_reader_code(model / BEST, Path(scratch)),
            artifacts={"weights": str(model / BEST), "card": str(model / MODEL_CARD)},
            signature=SIGNATURE,
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            metadata={"classes": classes},
        )


def _reader_code(weights: Path, folder: Path) -> list[str] | None:
    """Copy what a model with a reader needs besides timm into a folder; None for any other model."""
    with safe_open(weights, "pt") as file:
        if not any(name.startswith(reading.PREFIX) for name in file.keys()):  # noqa: SIM118  # it is no mapping
            return None
    return [str(copyfile(str(reading.__file__), folder / "alast_reading.py"))]


def check_names(name: str, alias: str) -> None:
    """Refuse names that the registry would refuse, before anything is trained for them.

    Raises:
        ConfigError: MLflow's own words about a name.
    """
    checks: list[tuple[str, str, Callable[[str], None]]] = [
        ("model_name", name, _validate_model_name),
        ("alias", alias, _validate_model_alias_name),
        ("alias", alias, _validate_model_alias_name_reserved),
    ]
    for field, value, validate in checks:
        try:
            validate(value)
        except MlflowException as error:
            raise ConfigError(field, value, f"MLflow refuses it ({error.message}); give another name") from None


def register(
    uri: str,
    storage: Path,
    run_id: str,
    model: Path,
    name: str,
    alias: str,
    tags: Mapping[str, str],
    files: Sequence[Path] = (),
    *,
    keep_better: bool = False,
) -> Registered:
    """Make a model a version of a registered one, with its run as the source.

    A run's model is registered once under a name: again it keeps its number, and gets alias and tags anew.

    Args:
        uri: of the store or server.
        storage: folder of the sweeps, as :func:`connect` takes it.
        run_id: the run that has trained the model; gets the MLflow model as artifact ``model``.
        model: folder with ``model.safetensors`` and timm's ``config.json``.
        name: of the registered model, which is made if it is not there.
        alias: that the version gets.
        tags: of the version.
        files: uploaded to the run besides.
        keep_better: another version keeps the alias unless this one is known to be as accurate on the same images.

    Raises:
        RegistryError: the store is away, or refuses.
    """
    try:
        client = connect(uri, storage)
        with TemporaryDirectory() as scratch:
            save_served(model, Path(scratch) / ARTIFACT)
            client.log_artifacts(run_id, scratch)
        for file in files:
            client.log_artifact(run_id, str(file))
        number = _version(client, name, run_id)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        client.set_tag(run_id, "alast.registered", f"models:/{name}/{number}")
        holder = client.get_registered_model(name).aliases.get(alias) if keep_better else None
        if holder not in {None, number}:
            better = why_not_better(client.get_model_version(name, str(holder)).tags, tags)
            if better:
                return Registered(int(number), f"version {holder}: {better}")
        client.set_registered_model_alias(name, alias, number)
    except (MlflowException, ConfigError, OSError) as error:
        raise RegistryError(reason(error)) from error
    return Registered(int(number))


def why_not_better(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say why a version does not take the place of another; empty if it is at least as accurate on the same images.

    Compared are accuracies, or what ``train.score`` names if both have the same, on the validation images, or on the
    test images if either trained on the others as well.

    Args:
        old: tags of the version that has the place.
        new: tags of the other one.
    """
    if COMPARED_DATA not in old or old[COMPARED_DATA] != new.get(COMPARED_DATA):
        return "its accuracy is not known to be on the same images"
    seen = "true" in {old.get(ALL_DATA), new.get(ALL_DATA)}
    score = new.get(SCORE, "accuracy")
    if (other := old.get(SCORE, "accuracy")) != score:
        return f"it was chosen by its {score_label(other)}, not by its {score_label(score)}"
    tag, words = (f"alast.test_{score}", "test") if seen else (f"alast.{score}", "validation")
    try:
        before, now = float(old[tag]), float(new[tag])
    except (KeyError, ValueError):
        return f"there is no {words} {score_label(score)} of both to compare"
    return "" if now >= before else f"its {words} {score_label(score)} is {before:.4f}, not {now:.4f}"


def tag_run(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run, if the store has it.

    Raises:
        RegistryError: the store is away, or refuses.
    """
    try:
        for key, value in tags.items():
            MlflowClient(uri).set_tag(run_id, key, value)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise RegistryError(reason(error)) from error


def _version(client: MlflowClient, name: str, run_id: str) -> str:
    """Find the version that a run has already, or make it."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    for found in client.search_model_versions(f"run_id = '{run_id}'"):
        if found.name == name:  # not part of the filter, which has no way to write a quote
            return str(found.version)
    source = f"runs:/{run_id}/{ARTIFACT}"
    return str(client.create_model_version(name, source, run_id, await_creation_for=0).version)  # else it says so
