"""A configuration that a sweep has found, and where it comes from."""

from __future__ import annotations

from pydantic import Field

from alast_tune.config.record import Record, RunId, SweepName, TrialId
from alast_tune.config.trial import TrialConfig


class Provenance(Record):
    """Where a promoted configuration comes from, and what was measured there."""

    sweep: SweepName
    trial_id: TrialId
    mlflow_run_id: RunId | None
    tracking_uri: str
    """Of the store that has the run, without a password."""
    model_name: str
    """Registered under it is the trial's model, and so is what will be trained by this configuration."""
    objectives: dict[str, float]
    """Measured by the trial: validation accuracy (what ``train.score`` names), training FLOPs, peak bytes."""
    test_accuracy: float | None
    epochs: int
    seed: int
    data_fingerprint: str
    """Of the content of the splits, wherever they lie."""
    weights_fingerprint: str | None
    """Of the file that training started from; None if its weights were drawn at random."""
    verified: bool
    """Whether the trial was repeated before promotion, with the same outcome."""
    versions: dict[str, str]
    """Of Python and of the packages that training rests on, at promotion."""
    git_commit: str | None
    """Of alast-tune's checkout at promotion, if it is one; ends in ``-dirty`` if files differ from the commit."""
    promoted_at: str
    """ISO 8601, UTC."""


class PromotedConfig(TrialConfig):
    """What ``alast-tune promote`` writes and ``alast-tune train`` reads; of anybody's own it has no provenance."""

    provenance: Provenance | None = Field(None, description="where the configuration comes from; promote fills it in")

    @property
    def trial(self) -> TrialConfig:
        """The configuration alone."""
        return TrialConfig.model_validate(self.model_dump(exclude={"provenance"}))
