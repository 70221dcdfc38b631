"""From a member of a front to a configuration for production: chosen, told where it comes from, verified."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from alast_tune import __version__, checkpoint
from alast_tune.config import PromotedConfig, Provenance, stored_sweep, without_places
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints, fingerprints, read_fingerprints
from alast_tune.models import input_spec
from alast_tune.plots import human_bytes
from alast_tune.production import read_config
from alast_tune.results import RESEEDED, EpochReport, FrontFile, FrontMember, Reseeded
from alast_tune.storage import CHECKPOINTS, address_of, path_below
from alast_tune.summary import trial_id
from alast_tune.text import without_passwords
from alast_tune.train import fit, load_trial
from alast_tune.tune.attempts import checkpoints
from alast_tune.tune.trainable import finished_run

PEAK_TOLERANCE = 0.05
"""Share by which the peak memory of a repetition may differ: allocators and drivers do."""

_PACKAGES = ("torch", "torchvision", "timm", "peft", "numpy", "pillow", "safetensors", "scikit-learn")


def pick(front: FrontFile, choice: str) -> FrontMember:
    """Choose a member of a front: ``knee``, ``cheapest`` (least training FLOPs), ``best`` (accuracy), or a trial's id.

    Raises:
        ConfigError: nobody is on the front, or the trial is not.
    """
    if not front.front:
        raise ConfigError("pick", choice, f"nobody on the front of {front.sweep} keeps the limits; loosen them")
    if choice == "cheapest":
        return _of_one_sweep(min(front.front, key=lambda member: member.objectives["train_flops"]))
    if choice == "best":
        return _of_one_sweep(max(front.front, key=lambda member: member.objectives["accuracy"]))
    wanted = front.knee if choice == "knee" else trial_id(int(choice)) if choice.isdecimal() else choice
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
    same = base and without_places(base).data == without_places(member.config).data
    return read_fingerprints(folder) if same and base and base.model.name == member.config.model.name else None


def export_member(member: FrontMember, sweep: Path, folder: Path) -> None:
    """Leave the model that a trial has trained in a folder, as timm loads it; adapters are merged.

    Args:
        member: of the front.
        sweep: folder of the sweep, which keeps the checkpoints of its front.
        folder: gets ``model.safetensors`` and timm's ``config.json``.

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
    checkpoint.save_weights(run.method.export(), folder / checkpoint.BEST)
    checkpoint.save_model_card(member.config.model, input_spec(run.model), splits.classes, folder)


def version_tags(origin: Provenance) -> dict[str, str]:
    """Tag a registered version with what its trial has measured."""
    test = {} if origin.test_accuracy is None else {"test_accuracy": origin.test_accuracy}
    values = {"sweep": origin.sweep, "trial": origin.trial_id, "verified": str(origin.verified).lower()}
    return {f"alast.{name}": str(value) for name, value in {**values, **origin.objectives, **test}.items()}


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


@dataclass(frozen=True)
class Check:
    """One quantity of a repetition beside what the trial had measured."""

    quantity: str
    expected: str
    got: str
    allowed: str
    passed: bool


def spread_of(member: FrontMember, sweep: Path) -> float | None:
    """Look up the standard deviation of a member's accuracy between seeds; None if it was not run again."""
    file = sweep / RESEEDED
    found = Reseeded.read(file).members if file.exists() else ()
    return next((one.spread["accuracy"] for one in found if one.trial_id == member.trial_id), None)


def repeat(member: FrontMember, sweep: Path, on_step: Callable[[int], None] | None = None) -> Iterator[EpochReport]:
    """Train a member's configuration again from scratch, as the sweep did and ``train`` does.

    Args:
        member: of the front.
        sweep: folder of the sweep; the repetition is left in its ``verify/<trial id>``.
        on_step: called with the steps done in the running epoch.

    Raises:
        ConfigError: it cannot be trained here.
    """
    folder = path_below(sweep, "verify", member.trial_id)
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(stored_sweep(sweep, "sweep").cpus_per_trial)  # other numbers of threads round differently
    yield from fit(member.config, folder, on_step)


def compare(member: FrontMember, report: EpochReport, images: int, spread: float | None = None) -> list[Check]:
    """Compare a repetition with the trial: training FLOPs exactly, accuracy within chance, peak memory within 5%.

    On one machine a CPU repeats every bit; elsewhere sums come in another order, and accuracy may differ by what it
    differs by between seeds: twice its standard deviation, or while that is not known what 95% of samples of as many
    validation images do, 1.96 sqrt(p (1 - p) / n).

    Args:
        member: as measured by the sweep.
        report: of the repetition's last epoch.
        images: n, of the validation split.
        spread: standard deviation of its accuracy between seeds, where ``--reseed`` has measured it.
    """
    accuracy, flops, peak = (member.objectives[name] for name in ("accuracy", "train_flops", "peak_bytes"))
    sampling = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 1 / images) / images)
    chance = 2 * spread if spread else sampling
    apart = abs(report.accuracy - accuracy)
    cost = report.cost
    return [
        Check(
            "training FLOPs",
            f"{flops:,.0f}",
            f"{cost.train_flops:,}",
            "equal",
            float(cost.train_flops) == flops,
        ),
        Check(
            "validation accuracy",
            f"{accuracy:.4f}",
            f"{report.accuracy:.4f}",
            f"± {chance:.4f}",
            apart <= chance,
        ),
        Check(
            "peak memory",
            human_bytes(peak),
            human_bytes(cost.peak_bytes),
            f"± {PEAK_TOLERANCE:.0%}",
            abs(cost.peak_bytes - peak) <= PEAK_TOLERANCE * peak,
        ),
    ]


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
