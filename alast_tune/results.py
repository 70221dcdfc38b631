"""What comes out of a trial and of a sweep: frozen records, and ``front.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError, model_validator

from alast_tune.config import FrontName, Limits, Record, RunId, SweepName, TrialConfig, TrialId, flatten, setting_of
from alast_tune.errors import ConfigError, explain
from alast_tune.failpoints import failpoint
from alast_tune.objectives import DIRECTIONS as DIRECTIONS
from alast_tune.objectives import OBJECTIVES as OBJECTIVES
from alast_tune.objectives import Objective as Objective
from alast_tune.objectives import objective_values
from alast_tune.scores import SCORES, Score
from alast_tune.storage import atomic_write

T = TypeVar("T", bound=Record)


@dataclass(frozen=True)
class Measurements:
    """What training has cost so far, in a run."""

    train_flops: int
    """Forward and backward of the tokens and blocks used; a multiply-add is 2."""
    peak_bytes: int
    """Largest live memory of any step."""
    steady_peak_bytes: int
    """Median of the steps' peaks."""
    wall_seconds: float
    """Since the run began, validation and measuring included; resumed runs add up."""
    train_seconds: float
    """Of which in training steps, loading of their batches included."""
    exploration_flops: int = 0
    """Of ``train_flops``: spent on finding out which blocks shall train."""


@dataclass(frozen=True)
class EpochReport:
    """One epoch of a run: quality on the validation images, and the cost so far."""

    epoch: int
    """Epochs finished, from 1."""
    train_loss: float
    validation_loss: float
    accuracy: float
    """Validation accuracy in [0, 1]; NaN after an epoch that was not evaluated (``train.eval_every``)."""
    cost: Measurements
    budgets: tuple[float, ...] = ()
    """Compute budget of each block after the epoch; empty for methods that have none."""
    trained: tuple[int, ...] = ()
    """Steps of this epoch in which each block trained."""
    tokens: tuple[float, ...] = ()
    """Mean number of tokens each block processed in this epoch."""
    balanced_accuracy: float | None = None
    """Mean recall of the classes on the validation images, in [0, 1]; None in checkpoints of older versions."""
    macro_f1: float | None = None
    """Mean F1 of the classes on them, in [0, 1]; None as well there."""
    top5: float | None = None
    """Share of them whose class is among the five most probable ones; None too if there are no more than five."""
    score: Score = "accuracy"
    """Which of the first three counts: ``train.score``."""

    @property
    def quality(self) -> float:
        """The measure that counts, in [0, 1]: what a sweep maximizes, and by which epochs compare; NaN as accuracy."""
        return objective_values(self.metrics(), self.score)["accuracy"]

    def metrics(self) -> dict[str, float]:
        """Flatten to plain numbers, as Tune and MLflow take them."""
        flat = {"epoch": float(self.epoch), "accuracy": self.accuracy}
        measures = {name: getattr(self, name) for name in ("balanced_accuracy", "macro_f1", "top5")}
        flat |= {name: value for name, value in measures.items() if value is not None}
        flat |= {"train_loss": self.train_loss, "validation_loss": self.validation_loss}
        if math.isnan(self.accuracy):  # an epoch after which nobody has looked at the validation images
            del flat["accuracy"], flat["validation_loss"]
        flat |= {name: float(value) for name, value in asdict(self.cost).items()}
        for name, values in (("budget", self.budgets), ("trained", self.trained), ("tokens", self.tokens)):
            flat |= {f"{name}/block_{block:02d}": float(value) for block, value in enumerate(values)}
        return flat


def _complete(values: dict[str, float]) -> dict[str, float]:
    if values.keys() != {objective.name for objective in OBJECTIVES}:
        raise ValueError(f"needs {', '.join(objective.name for objective in OBJECTIVES)}, and nothing else")
    return values


ObjectiveValues = Annotated[dict[str, FiniteFloat], AfterValidator(_complete)]
"""A number for each of :data:`OBJECTIVES`, by its name."""

Baseline = Literal["full", "paper"]
BASELINES: dict[str, str] = {"full": "full fine-tuning", "paper": "ALaST as in the paper"}
"""The trials that every sweep starts with, as people read them."""


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep, as the study has it."""

    number: int
    state: Literal["complete", "infeasible", "pruned", "failed", "running"]
    """Complete: ran its whole budget and keeps the limits. Infeasible: breaks one, measured or foreseen."""
    config: TrialConfig
    params: dict[str, Any]
    values: tuple[float, ...] | None
    """In the order of :data:`OBJECTIVES`; only a trial that ran its whole budget has them."""
    epochs: int
    mlflow_run_id: str | None = None
    reason: str | None = None
    """Why it failed, was pruned or is infeasible."""
    baseline: Baseline | None = None
    """``full`` or ``paper``, for the two that every sweep starts with."""
    origin: str | None = None
    """Name of the earlier sweep that ran it; None for this sweep's own."""
    launched: bool = True
    """False for one that was foreseen to break a limit, and for one of an earlier sweep."""
    excess: float = 0.0
    """By how much it breaks a limit, measured or foreseen: see :meth:`~alast_tune.config.Limits.excess`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last epoch, as :meth:`EpochReport.metrics` names them, those of single blocks left out; only of complete
    trials, and of this sweep's own."""
    test_accuracy: float | None = None
    """What ``train.score`` names, on the test images, which only members of the front and a grid's trials are shown."""
    device: str | None = None
    """The kind of device it trained on; None if there were several, or nobody knows."""

    @property
    def timing(self) -> Timing | None:
        """How long it trained, if it is complete and this sweep's own, and trained on one kind of device."""
        seconds = self.metrics.get("train_seconds", 0.0)
        known = self.device is not None and 0 < seconds < math.inf
        return Timing(train_seconds=seconds, device=(self.device or "")[:200]) if known else None

    @property
    def searched(self) -> dict[str, Any]:
        """What varies, by path, as the trial really had it: a baseline's method is its own, whatever ``params`` are."""
        if self.baseline is None:
            return {setting_of(name): value for name, value in self.params.items()}
        own = flatten(self.config)
        return {path: own[path] for path in map(setting_of, self.params) if own.get(path) is not None}


class Timing(Record):
    """How long a trial trained, and on what kind of device: times of different kinds do not compare."""

    train_seconds: FiniteFloat = Field(gt=0)
    """In training steps, loading of their batches included."""
    device: str = Field(max_length=200)


class FrontMember(Record):
    """A trial that no other complete trial dominates."""

    trial_id: TrialId
    mlflow_run_id: RunId | None
    objectives: ObjectiveValues
    test_accuracy: FiniteFloat | None
    epochs: int
    config: TrialConfig
    params: dict[str, Any] = Field(default_factory=dict)
    """What the sweep varied, variants by their names; empty in files of version 0.1."""
    baseline: Baseline | None = None
    """``full`` or ``paper``, if it is one of the two that every sweep starts with."""
    origin: SweepName | None = None
    """Name of the earlier sweep that ran it; None for this sweep's own."""
    timing: Timing | None = None
    """None in older files, and for a trial that trained on several kinds of devices."""

    @model_validator(mode="before")
    @classmethod
    def _rename_baseline(cls, values: Any) -> Any:
        """Read files of before, in which ``baseline`` was called ``landmark``."""
        if isinstance(values, dict) and "landmark" in values and "baseline" not in values:
            values = {("baseline" if name == "landmark" else name): value for name, value in values.items()}
        return values


class TrialCounts(Record):
    """How the trials of a sweep ended; those of an earlier sweep that it was started with are counted apart."""

    total: int
    complete: int
    infeasible: int = 0
    pruned: int
    failed: int
    earlier: int = 0
    """Complete trials of earlier sweeps, which stand beside them."""

    @property
    def finished(self) -> int:
        """Those that have ended, however."""
        return self.complete + self.infeasible + self.pruned + self.failed


RESEEDED = "reseeded.json"
"""In a sweep's folder: see :class:`Reseeded`."""


class SeedRun(Record):
    """A front member, run once more with another seed."""

    seed: int
    objectives: ObjectiveValues
    test_accuracy: FiniteFloat | None


class ReseededMember(Record):
    """What a front member comes to, whatever the seed."""

    trial_id: TrialId
    found: ObjectiveValues
    """The objectives that put it on the front: of several good ones the luckiest, so that the mean may lie lower."""
    runs: tuple[SeedRun, ...]
    """The new ones alone."""
    mean: ObjectiveValues
    spread: ObjectiveValues
    """Standard deviation between seeds."""
    front_probability: FiniteFloat
    """That no other member's true values dominate its own, in [0, 1]."""
    baseline: Baseline | None = None
    """``full`` for full fine-tuning, which need not be on the front."""


class Reseeded(Record):
    """``reseeded.json``: the members of a front, run again with other seeds."""

    schema_: Literal[1] = Field(1, alias="schema")
    sweep: SweepName
    seeds: tuple[int, ...]
    members: tuple[ReseededMember, ...]

    @classmethod
    def find(cls, folder: Path) -> Reseeded | None:
        """Read a sweep's reseeded.json; None if no other seeds were run.

        Raises:
            ConfigError: it is something else.
        """
        file = folder / RESEEDED
        return _read(cls, file, "reseeded", RESEEDED) if file.exists() else None

    def write(self, path: Path) -> None:
        """Write a reseeded.json, atomically."""
        _write(path, self)


class Region(Record):
    """From which accuracy on a front's hypervolume counts, and how that is known; the defaults are older files'."""

    source: Literal["full", "min_accuracy", "joint", "everything", "unknown", "pending"] = "everything"
    """``full``: so far below full fine-tuning. ``min_accuracy``: the sweep's limit. ``joint``: the lowest of several
    sweeps'. ``everything``: the sweep has no full fine-tuning to measure from. ``unknown``: its full fine-tuning breaks
    a limit, so that everything counts. ``pending``: full fine-tuning may yet have a result, before which hypervolume
    is not known."""
    floor: FiniteFloat = Field(0.0, ge=0, lt=1)
    within: FiniteFloat | None = Field(None, ge=0, le=1)
    """How far below full fine-tuning, where that is or will be the source."""


class FrontFile(Record):
    """``front.json``: the front of a sweep's complete trials."""

    schema_: Literal[1] = Field(1, alias="schema")
    sweep: FrontName
    objectives: tuple[Objective, ...]
    reference_point: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """What hypervolume is measured from: the region's accuracy, and 1.1 times the cost of `full` fine-tuning for as
    many epochs, training FLOPs and peak bytes."""
    region: Region = Region()
    """How that accuracy came about."""
    score: Score = "accuracy"
    """Measure of quality that ``accuracy`` stands for here; older files have no other."""
    hypervolume: FiniteFloat | None
    """In the objectives' own units; None while the region is pending."""
    hypervolume_share: FiniteFloat | None
    """The same as a share of the box between the reference point and the ideal (accuracy 1, cost 0)."""
    limits: Limits = Limits()
    """What every member keeps to."""
    trials: TrialCounts
    knee: TrialId | None
    """Trial id of the compromise nearest the ideal."""
    knee_within: float | None = Field(None, ge=0, le=1)
    """The knee was chosen among members so little below full fine-tuning's accuracy, in [0, 1]; None: among all."""
    knee_seeds: int = Field(0, ge=0)
    """So many other seeds were run, and the knee was chosen by the means over them; 0: by the front's objectives."""
    front: tuple[FrontMember, ...]
    full: ObjectiveValues | None = None
    """Of full fine-tuning, on the front or not; None before it has ended, and for several sweeps."""
    full_timing: Timing | None = None
    validation_images: int | None = Field(None, ge=1)
    """So many images every accuracy is of; None in older files, and for several sweeps of different numbers."""

    @property
    def hypervolumes(self) -> dict[str, float]:
        """Both by their names, as they are logged; none while the region is pending: a curve has one reference."""
        both = {"hypervolume": self.hypervolume, "hypervolume_share": self.hypervolume_share}
        return {name: value for name, value in both.items() if value is not None}

    @property
    def score_label(self) -> str:
        """Name the measure of quality to people: ``macro F1``."""
        return SCORES[self.score]

    @property
    def best_accuracy(self) -> float:
        """Of the front's members; 0 without any."""
        return max((member.objectives["accuracy"] for member in self.front), default=0.0)

    @property
    def candidates(self) -> str:
        """Say of whom this is the front."""
        own = self.trials.complete
        earlier = max(self.trials.earlier, sum(member.origin is not None for member in self.front))  # version 0.1: 0
        apart = f"{own + earlier} results ({own} complete trials, {earlier} earlier)"
        return apart if earlier else f"{own} complete trials"

    @classmethod
    def read(cls, path: Path, field: str = "sweep") -> FrontFile:
        """Read a front.json.

        Raises:
            ConfigError: there is none, or it is something else; about ``field``.
        """
        return _read(cls, path, field, "front.json")

    def write(self, path: Path) -> None:
        """Write a front.json, atomically."""
        _write(path, self)


def _read(kind: type[T], path: Path, field: str, name: str) -> T:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(field, path, f"cannot be read ({error.strerror}); give a {name}") from None
    except ValidationError as error:
        raise ConfigError(field, path, f"is not a {name}: {explain(error)}") from None


def _write(path: Path, record: Record) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(record.model_dump_json(indent=2, by_alias=True) + "\n")
        failpoint("while-front-is-written")
