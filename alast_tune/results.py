"""What comes out of a trial and of a sweep: frozen records, and ``front.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from alast_tune.config import Record, TrialConfig


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


@dataclass(frozen=True)
class EpochReport:
    """One epoch of a run: quality on the validation images, and the cost so far."""

    epoch: int
    """Epochs finished, from 1."""
    train_loss: float
    validation_loss: float
    accuracy: float
    """Validation accuracy in [0, 1]."""
    cost: Measurements
    budgets: tuple[float, ...] = ()
    """Compute budget of each block after the epoch; empty for methods that have none."""
    trained: tuple[int, ...] = ()
    """Steps of this epoch in which each block trained."""
    tokens: tuple[float, ...] = ()
    """Mean number of tokens each block processed in this epoch."""

    def metrics(self) -> dict[str, float]:
        """Flatten to plain numbers, as Tune and MLflow take them."""
        flat = {"epoch": float(self.epoch), "accuracy": self.accuracy}
        flat |= {"train_loss": self.train_loss, "validation_loss": self.validation_loss}
        flat |= {name: float(value) for name, value in asdict(self.cost).items()}
        for name, values in (("budget", self.budgets), ("trained", self.trained), ("tokens", self.tokens)):
            flat |= {f"{name}/block_{block:02d}": float(value) for block, value in enumerate(values)}
        return flat


class Objective(Record):
    """One axis of the front."""

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str


OBJECTIVES = (
    Objective(name="accuracy", direction="maximize", unit="share of validation images"),
    Objective(name="train_flops", direction="minimize", unit="FLOP"),
    Objective(name="peak_bytes", direction="minimize", unit="byte"),
)
"""What every sweep searches: names are those of the epoch metrics."""

DIRECTIONS = tuple(objective.direction for objective in OBJECTIVES)


@dataclass(frozen=True)
class TrialResult:
    """One trial of a sweep, as the study has it."""

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    config: TrialConfig
    params: dict[str, Any]
    values: tuple[float, ...] | None
    """In the order of :data:`OBJECTIVES`; only a complete trial has them."""
    epochs: int
    mlflow_run_id: str | None = None
    reason: str | None = None
    """Why it failed or was pruned."""


class FrontMember(Record):
    """A trial that no other complete trial dominates."""

    trial_id: str
    mlflow_run_id: str | None
    objectives: dict[str, float]
    test_accuracy: float | None
    epochs: int
    config: TrialConfig


class TrialCounts(Record):
    """How the trials of a sweep ended."""

    total: int
    complete: int
    pruned: int
    failed: int

    @property
    def finished(self) -> int:
        """Those that have ended, however."""
        return self.complete + self.pruned + self.failed


class FrontFile(Record):
    """``front.json``: the front of a sweep's complete trials."""

    schema_: Literal[1] = Field(1, alias="schema")
    sweep: str
    objectives: tuple[Objective, ...]
    reference_point: tuple[float, ...]
    """What hypervolume is measured from: accuracy 0, and the cost of `full` fine-tuning for as many epochs."""
    hypervolume: float
    """In the objectives' own units."""
    hypervolume_share: float
    """The same as a share of the box between the reference point and the ideal (accuracy 1, cost 0)."""
    trials: TrialCounts
    knee: str | None
    """Trial id of the compromise nearest the ideal."""
    front: tuple[FrontMember, ...]

    @property
    def best_accuracy(self) -> float:
        """Of the front's members; 0 without any."""
        return max((member.objectives["accuracy"] for member in self.front), default=0.0)

    @classmethod
    def read(cls, path: Path) -> FrontFile:
        """Read a front.json."""
        return cls.model_validate_json(path.read_text())

    def write(self, path: Path) -> None:
        """Write a front.json, atomically."""
        scratch = path.with_suffix(".tmp")
        scratch.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n")
        scratch.replace(path)
