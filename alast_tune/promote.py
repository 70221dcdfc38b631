"""From a member of a front to a configuration for production: chosen, told where it comes from, registered."""

from __future__ import annotations

import platform
import shlex
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from alast_tune import __version__, checkpoint
from alast_tune.config import PromotedConfig, Provenance, stored_sweep, without_places
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints, fingerprints, read_fingerprints
from alast_tune.other_seeds import in_the_mean
from alast_tune.production import CONFIG, read_config, write_config
from alast_tune.results import FrontFile, FrontMember, Reseeded
from alast_tune.run import load_trial
from alast_tune.scores import Score
from alast_tune.storage import CHECKPOINTS, address_of, path_below
from alast_tune.summary import trial_id
from alast_tune.terminal import printer
from alast_tune.text import without_passwords
from alast_tune.tracking import COMPARED_DATA, SCORE, RegistryError, check_names, default_uri, register, same_images
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.trainable import finished_run
from alast_tune.verification import verify_member

_PACKAGES = ("torch", "torchvision", "timm", "peft", "numpy", "pillow", "safetensors", "scikit-learn")


@dataclass(frozen=True)
class Promotion:
    """What promoting a member leaves."""

    config: PromotedConfig
    """What it was trained with, and where it comes from."""
    output: Path
    """The file that has this, for ``alast-tune train --config``."""
    model: Path
    """Folder with the trained model as timm loads it."""
    registered: str
    """The model in MLflow's registry: ``models:/pets@champion``."""
    version: int
    """Of the registered model."""


def promote_member(
    member: FrontMember,
    sweep: str,
    folder: Path,
    output: Path,
    model_name: str,
    alias: str,
    verify: bool,
    console: Console,
) -> Promotion:
    """Verify a member if asked to, write its configuration, export its model, and register that in MLflow.

    Args:
        member: of the front.
        sweep: its name.
        folder: of the sweep.
        output: the configuration's file.
        model_name: of the registered model.
        alias: that the registered version gets.
        verify: train it again first.
        console: says what was written.

    Raises:
        ConfigError: what :func:`promoted_config`, :func:`check_output` and :func:`export_member` refuse.
        VerificationError: trained again, it does not come out the same.
        RegistryError: MLflow does not take it, in one line; all else is done, and this can be repeated.
    """
    uri, say = default_uri(folder.parent), printer(console)
    check_names(model_name, alias)
    check_output(output, sweep, member)
    model = path_below(folder, "promoted", member.trial_id)
    if verify:
        verify_member(member, folder, console)
    config = promoted_config(member, sweep, uri, model_name, verify, origin_of(member, folder))
    write_config(config, output)
    say(f"config: {output} (trial {member.trial_id} of {sweep})")
    export_member(member, folder, model)
    write_config(config, model / CONFIG)
    assert config.provenance
    tags = version_tags(config.provenance, config.train.score)
    try:
        if member.mlflow_run_id is None:
            raise RegistryError(f"it lacks the trial's run; first: alast-tune sync {shlex.quote(str(folder))}")
        run, files = member.mlflow_run_id, [model / CONFIG]
        version = register(uri, folder.parent, run, model, model_name, alias, tags, files).version
    except RegistryError as error:
        line = f"not registered in MLflow at {uri} ({error}); {output} is written, repeat this for the rest"
        raise RegistryError(line) from None
    registered = f"models:/{model_name}@{alias}"
    say(f"registered: {registered} (version {version})")
    return Promotion(config, output, model, registered, version)


def pick(front: FrontFile, choice: str, again: Reseeded | None = None) -> FrontMember:
    """Choose a member of a front: ``knee``, ``cheapest`` (least training FLOPs), ``best`` (accuracy), or a trial's id.

    The best one is chosen by means over other seeds, if ``again`` has them of all that counts, as the front's knee is.

    Raises:
        ConfigError: nobody is on the front, or the trial is not.
    """
    if not front.front:
        raise ConfigError("pick", choice, f"nobody on the front of {front.sweep} keeps the limits; loosen them")
    if choice == "cheapest":
        return _of_one_sweep(min(front.front, key=lambda member: member.objectives["train_flops"]))
    wanted: str | None = trial_id(int(choice)) if choice.isdecimal() else choice
    if choice in {"knee", "best"}:
        judged, seeds = in_the_mean(front, again)
        if not judged.front:
            remedy = f"in the mean of {len(seeds)} other seeds nobody keeps the limits; loosen them, or give a trial"
            raise ConfigError("pick", choice, remedy)
        best = max(judged.front, key=lambda member: member.objectives["accuracy"])
        wanted = front.knee if choice == "knee" else best.trial_id
    for member in front.front:
        if member.trial_id == wanted:
            return _of_one_sweep(member)
    there = ", ".join(member.trial_id for member in front.front)
    raise ConfigError("pick", choice, f"not on the front; give knee, cheapest, best or one of {there}")


def _of_one_sweep(member: FrontMember) -> FrontMember:
    sweep, joint, _ = member.trial_id.rpartition("/")
    if joint:
        raise ConfigError("pick", member.trial_id, f"this is a joint front; promote it from that of sweep {sweep}")
    return member


def promoted_config(
    member: FrontMember,
    sweep: str,
    tracking_uri: str,
    model_name: str,
    verified: bool = False,
    origin: Fingerprints | None = None,
) -> PromotedConfig:
    """Complete a member's configuration by where it comes from.

    Args:
        member: of the front.
        sweep: its name.
        tracking_uri: of the store that has its run.
        model_name: under which it is registered, and so is what will be trained by the configuration.
        verified: whether a repetition came out the same.
        origin: what the sweep started from, if that is known.

    Raises:
        ConfigError: its data are not there, or other data or starting weights than it was measured with.
    """
    _, splits = load_trial(member.config)
    found = fingerprints(splits, member.config.model)
    found = found.model_copy(update={"meter": origin.meter}) if origin else found  # however its costs were counted
    if origin and (differences := origin.differences(found)):
        raise ConfigError("pick", member.trial_id, f"was measured otherwise: here are {differences}; put them back")
    versions = {"python": platform.python_version(), "alast-tune": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    provenance = Provenance(
        sweep=sweep,
        trial_id=member.trial_id,
        mlflow_run_id=member.mlflow_run_id,
        tracking_uri=without_passwords(tracking_uri),
        model_name=model_name,
        objectives=member.objectives,
        test_accuracy=member.test_accuracy,
        epochs=member.epochs,
        seed=member.config.train.seed,
        data_fingerprint=found.data,
        weights_fingerprint=found.weights,
        versions=versions,
        verified=verified,
        git_commit=_git_commit(Path(__file__).parents[1]),
        promoted_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return PromotedConfig.model_validate({**member.config.model_dump(), "provenance": provenance})


def origin_of(member: FrontMember, folder: Path) -> Fingerprints | None:
    """Look up what a trial of a sweep started from; None if that is not known, or was searched over."""
    base = stored_sweep(folder, "sweep").trial if (folder / "sweep.json").exists() else None
    if base is None or base.model.name != member.config.model.name:
        return None
    same = same_images(without_places(base).data, without_places(member.config).data)
    return read_fingerprints(folder) if same else None


def export_member(member: FrontMember, sweep: Path, folder: Path) -> None:
    """Leave the model that a trial has trained in a folder, as timm loads it; adapters are merged, and there alone too.

    Args:
        member: of the front.
        sweep: folder of the sweep, which keeps the checkpoints of its front.
        folder: gets ``model.safetensors``, timm's ``config.json``, and ``adapter`` as peft loads it, if it has any.

    Raises:
        ConfigError: there is no checkpoint of the epoch that the front shows, or it is damaged.
    """
    if member.origin:
        raise ConfigError("pick", member.trial_id, f"was run by sweep {member.origin}; promote it from there")
    there = checkpoints(sweep, int(member.trial_id))
    if not there:
        raise ConfigError(
            "pick", member.trial_id, f"no checkpoint of it under {address_of(sweep / CHECKPOINTS)}; train its config"
        )
    try:
        run, _ = finished_run(member.config, there)
    except ConfigError as error:
        raise ConfigError("pick", member.trial_id, f"{error}; train its config") from None
    _, splits = load_trial(member.config, verify=False)
    with run.averaged():
        checkpoint.save_model(run.method, folder)
    checkpoint.save_model_card(member.config.model, splits.spec, splits.classes, folder)


def version_tags(origin: Provenance, score: Score) -> dict[str, str]:
    """Tag a registered version with what its trial has measured, ``score`` being the measure of quality."""
    objectives = {score if name == "accuracy" else name: value for name, value in origin.objectives.items()}
    test = {} if origin.test_accuracy is None else {f"test_{score}": origin.test_accuracy}
    values = {"sweep": origin.sweep, "trial": origin.trial_id, "verified": str(origin.verified).lower()}
    tags = {f"alast.{name}": str(value) for name, value in {**values, **objectives, **test}.items()}
    return tags | {COMPARED_DATA: origin.data_fingerprint, SCORE: score}


def check_output(file: Path, sweep: str, member: FrontMember) -> None:
    """Refuse to write over anything but what promotion of the same trial has written.

    Raises:
        ConfigError: the file is something else.
    """
    if not file.exists():
        return
    try:
        origin = read_config(file).provenance
    except ConfigError:
        origin = None
    if origin is None or (origin.sweep, origin.trial_id) != (sweep, member.trial_id):
        raise ConfigError("output", file, "exists, and is not of this trial; give another file, or remove it")


def _git_commit(root: Path) -> str | None:
    """Name the commit of a checkout, with ``-dirty`` behind it if files differ from it; None if it is none."""
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout that is not ours to read
        return None
    return commit + ("-dirty" if changes else "")
