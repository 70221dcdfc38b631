"""A multi-objective search: what varies, and how long to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ByteSize, Field, field_validator, model_validator

from alast_tune.config.amounts import budget_of_flops, seconds_of
from alast_tune.config.record import Record, SweepName, flatten, parse, read_mapping
from alast_tune.config.space import (
    Distribution,
    FloatRange,
    check_names,
    check_point,
    combinations,
    ends_of,
    parameters,
    settings_of,
    size_of,
)
from alast_tune.config.trial import TrialConfig, apply_params, without_places
from alast_tune.errors import ConfigError
from alast_tune.storage import Place, address_of, fetch, names_with

INCOMPARABLE = (
    "data/dataset",
    "data/root",
    "data/split_seed",
    "data/test_fraction",
    "data/train_images",
    "data/validation_fraction",
    "train/epochs",
    "train/score",
    "train/seed",
)
"""Trials that differ in these do not compare: the luckiest or the longest would lie on the front."""


class Limits(Record):
    """What a configuration must keep to, to be of use; unset: anything goes."""

    max_memory: ByteSize | None = Field(None, gt=0, description="largest peak memory of training, as 6GiB")
    max_flops: float | None = Field(None, gt=0, description="most FLOPs of training")
    min_accuracy: float | None = Field(None, ge=0, le=1, description="least validation accuracy (of train.score)")

    def excess(
        self, *, accuracy: float | None = None, train_flops: float | None = None, peak_bytes: float | None = None
    ) -> dict[str, float]:
        """Measure by how much each limit is broken: above 0 it is, at or below 0 it is kept.

        Costs as a share of their limit, accuracy in its own unit; without an entry for what is not limited or not
        given. Optuna's constraints are made of these.
        """
        found = {}
        if self.max_memory is not None and peak_bytes is not None:
            found["max_memory"] = peak_bytes / self.max_memory - 1
        if self.max_flops is not None and train_flops is not None:
            found["max_flops"] = train_flops / self.max_flops - 1
        if self.min_accuracy is not None and accuracy is not None:
            found["min_accuracy"] = self.min_accuracy - accuracy
        return found

    def allow(self, **objectives: float) -> bool:
        """Whether measured objectives break no limit."""
        return all(excess <= 0 for excess in self.excess(**objectives).values())


_FREE = {
    "trials",
    "time_budget",
    "flops_budget",
    "min_gain",
    "reseed",
    "storage",
    "concurrent",
    "cpus_per_trial",
    "gpus_per_trial",
    "retries",
}
_FREE |= {"epoch_timeout", "keep"}
"""What may change when a sweep is resumed: it changes no result, save by how threads and cards round."""

AUTO = "auto"
"""What people write for the space that follows from the model."""


def _space_of(given: object) -> object:
    """Read ``auto`` as a space that is not made out yet, which is empty; nobody else's may be.

    Raises:
        ConfigError: a space in which nothing varies.
    """
    if given == {}:
        raise ConfigError("space", "{}", "nothing varies; give parameters, or auto")
    return {} if given == AUTO else given


def _points_or_place(given: object) -> object:
    """Take the place out of the list of one that the command line makes of it."""
    return given[0] if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str) else given


class SweepConfig(Limits):
    """A multi-objective search: a base trial, what varies in it, what it must keep to, and how long to look."""

    name: SweepName = Field("sweep", description="folder under storage")
    storage: Place = Field(Path("runs"), description="every sweep is a folder in here; also s3://... or gs://...")
    study: str | None = Field(
        None,
        description="where trials are recorded: sqlite, or journal for network drives, a file in the sweep's folder; "
        "or postgresql://USER@HOST/DATABASE, the password in PGPASSWORD or ~/.pgpass; default: sqlite, on s3 journal",
    )
    experiment: str | None = Field(
        None,
        min_length=1,
        description="MLflow's, one a project; unset: $MLFLOW_EXPERIMENT_NAME, else alast-tune",
    )
    trials: int = Field(16, ge=1, description="how many trials beside the baselines; of a grid, all that there are")
    time_budget: Annotated[float, BeforeValidator(seconds_of)] | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="no trial starts after so long, as 2h or 30min; those that run are finished; a resumed sweep goes "
        "on counting, so that it wants a larger one",
    )
    flops_budget: Annotated[float | str, BeforeValidator(budget_of_flops)] | None = Field(
        None,
        description="no trial starts once the training FLOPs of all trials, stopped and failed ones included, reach "
        "this: a number, as 1e18, or a multiple of one full fine-tuning, as 20x; a resumed sweep goes on counting",
    )
    min_gain: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="no trial starts once the search expects of its next trials that each adds less than this share to "
        "the front's hypervolume, as 0.005; only sampler ehvi expects anything",
    )
    reseed: int | None = Field(
        None,
        ge=2,
        description="afterwards train the candidates, the front's members in the region and full fine-tuning, again "
        "with this many other seeds, and choose by the means; budgets of time and FLOPs hold for these runs too",
    )
    within: float | None = Field(
        0.05,
        ge=0,
        le=1,
        description="count what comes within so much accuracy of full fine-tuning, or keeps --min-accuracy if that is "
        "given: hypervolume, proposals, stopping and the knee look at nothing else; 1: at everything",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the sampler")
    sampler: Literal["ehvi", "tpe", "nsga2", "gp", "random", "grid"] = Field(
        "ehvi",
        description="ehvi: by expected hypervolume improvement per FLOP, costs being forecast; "
        "grid: every combination once, in order, and nothing else",
    )
    scheduler: Literal["moasha", "none"] | None = Field(
        None, description="moasha stops unpromising trials early; unset: moasha from 4 epochs on, none in a grid"
    )
    grace_epochs: int | None = Field(
        None, ge=1, description="no trial is stopped earlier; fewer save more, where accuracy is not noisy; unset: half"
    )
    warm_start: Place | None = Field(
        None, description="folder or front.json of an earlier sweep of the same space, whose results are fed in"
    )
    concurrent: int | None = Field(
        None,
        ge=1,
        description="trials at a time, on a cluster that grows as many as it shall grow to; unset: as many as fit",
    )
    cpus_per_trial: int = Field(1, ge=1, description="also the threads torch uses on a CPU")
    gpus_per_trial: float | None = Field(
        None,
        ge=0,
        description="a card or a share of one; unset: the share that its predicted peak needs, none without cards",
    )
    retries: int = Field(2, ge=0, description="restarts of a trial, from its last checkpoint, after a crash")
    epoch_timeout: float | None = Field(
        None, gt=0, description="seconds; a trial that reports no epoch for so long has failed"
    )
    keep: Literal["front", "all"] = Field(
        "front",
        description="checkpoints that stay when the sweep ends: the last of each of the front, or two of all trials",
    )
    trial: TrialConfig = Field(default_factory=TrialConfig, description="what every trial has in common")
    space: Annotated[dict[str, Distribution], BeforeValidator(_space_of)] = Field(
        default_factory=dict,
        description="what varies: path in the trial (method/alpha), or any name for variants -> distribution; a "
        "setting of a variant may be a distribution, which is in force when the variant is chosen; unset or auto: all "
        "methods that the model allows, each with its own ranges",
    )
    """Empty: auto, not made out yet."""
    begin_with: Annotated[
        tuple[dict[str, bool | int | float | str], ...] | Place | None, BeforeValidator(_points_or_place)
    ] = Field(
        None,
        description="points of the space to try first, after the baselines: parameter -> value, what a point leaves "
        "out is drawn; or folder or front.json of an earlier sweep, of other data too, whose best points are taken; "
        "they count among the trials; unset: with space auto four that are known to be good, else none",
    )

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(max_memory=self.max_memory, max_flops=self.max_flops, min_accuracy=self.min_accuracy)

    def given_values(self) -> dict[str, Any]:
        """All settings as plain values, from which it can be read again; of the trial only what was given."""
        values = self.model_dump(mode="json", include=set(SweepConfig.model_fields))
        return values | {"trial": self.trial.given_values(), "space": values["space"] or AUTO}

    def difference(self, other: SweepConfig) -> str | None:
        """Name a setting that another sweep has otherwise, by which it is not the same; None if it may go on with it.

        The number of trials may differ, where things lie and run, and how many at once and how often.
        """
        ours, theirs = (
            flatten(sweep.model_copy(update={"trial": without_places(sweep.trial)})) for sweep in (self, other)
        )
        may_differ = set(_FREE)
        if {self.study, other.study} <= {None, "sqlite", "journal"} and None in {self.study, other.study}:
            may_differ.add("study")  # the file that is there is gone on with
        paths = (path for path in ours | theirs if path not in may_differ)
        return next((path for path in paths if ours.get(path) != theirs.get(path)), None)

    def with_limit(self, trial: TrialConfig) -> TrialConfig:
        """Give a trial the sweep's limit of memory, if its micro-batches follow from one and it has none of its own.

        Raises:
            ConfigError: neither has one.
        """
        train = trial.train
        if train.accumulate != "auto" or train.max_memory is not None:
            return trial
        if self.max_memory is None:
            remedy = "there is no limit that it could keep; give --max-memory, or set trial.train.max_memory"
            raise ConfigError("train.accumulate", "auto", remedy)
        return trial.model_copy(update={"train": train.model_copy(update={"max_memory": self.max_memory})})

    @property
    def stops_early(self) -> bool:
        """Whether trials are stopped early."""
        by_default = self.sampler != "grid" and self.trial.train.epochs >= 4
        return self.scheduler == "moasha" or (self.scheduler is None and by_default)

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Turn a point of the space into the settings that it makes, by path in the trial."""
        return settings_of(self.space, params)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield every point of a space without real parameters, the last parameter varying fastest."""
        return combinations(self.space)

    @field_validator("study")
    @classmethod
    def _check_study(cls, study: str | None) -> str | None:
        if study is None:
            return None
        if study not in {"sqlite", "journal"} and not study.startswith("postgresql://"):
            raise ConfigError("study", study, "none of sqlite, journal and postgresql://USER@HOST/DATABASE")
        password = urlsplit(study).password
        if password is not None or "password=" in study:
            hidden = study.partition("?")[0].replace(f":{password}@", ":...@")
            raise ConfigError("study", hidden, "holds a password, which would be logged; put it in PGPASSWORD")
        return study

    @field_validator("gpus_per_trial")
    @classmethod
    def _check_cards(cls, cards: float | None) -> float | None:
        if cards is not None and cards > 1 and cards % 1:
            raise ConfigError(
                "gpus_per_trial", cards, "is above 1 and not whole; give a share of a card, or whole ones"
            )
        return cards

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        if self.trial.data.all_data or "data/all_data" in self.space:
            raise ConfigError("trial.data.all_data", True, "a sweep selects on validation images; leave it to training")
        check_names(self.space)
        if self.trial.train.eval_every > 1:
            raise ConfigError("trial.train.eval_every", "above 1", "a sweep compares after every epoch; leave it out")
        fixed = flatten(self.with_limit(self.trial))
        for name, one in parameters(self.space).items():
            chosen = dict([one.condition]) if one.condition else {}
            for value in ends_of(one.distribution):
                try:
                    found = flatten(self.with_limit(apply_params(self.trial, self.settings(chosen | {name: value}))))
                except ConfigError as error:
                    raise ConfigError(one.field, value, str(error)) from None
                if isinstance(value, str) and isinstance(found.get(one.path), float | int):
                    raise ConfigError(one.field, value, "is text where a number is meant; leave out the quotes")
                if found["data/all_data"]:
                    raise ConfigError(one.field, value, "sets data.all_data, and a sweep selects on validation images")
                if found["train/eval_every"] > 1:
                    raise ConfigError(one.field, value, "sets train.eval_every, and a sweep compares after every epoch")
                differ = [of for of in INCOMPARABLE if found.get(of) != fixed.get(of)]
                if "train/score" in differ:
                    raise ConfigError(one.field, value, "sets train.score, and a front has one; set it in trial")
                if differ and self.sampler != "grid":
                    remedy = f"trials that differ in {differ[0]} do not compare; set it in trial, or take sampler: grid"
                    raise ConfigError(one.field, value, remedy)
        return self

    @model_validator(mode="after")
    def _check_begin_with(self) -> Self:
        if self.begin_with and self.sampler == "grid":
            raise ConfigError("begin_with", "given", "a grid runs its combinations in order; leave it out")
        points = self.begin_with if self.space and isinstance(self.begin_with, tuple) else ()
        for place, given in enumerate(points):
            check_point(self.space, given, f"begin_with.{place}")
        return self

    @model_validator(mode="after")
    def _check_min_gain(self) -> Self:
        if self.min_gain is not None and self.sampler != "ehvi":
            remedy = f"sampler {self.sampler} does not say what it expects; leave one of the two out"
            raise ConfigError("min_gain", self.min_gain, remedy)
        return self

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.sampler != "grid":
            return self
        if not self.space:
            raise ConfigError("space", AUTO, "has real parameters, and a grid none; list the values of each parameter")
        for one in parameters(self.space).values():
            if isinstance(one.distribution, FloatRange):
                remedy = "a grid has no place for a real parameter; list values: {type: categorical, choices: [...]}"
                raise ConfigError(one.field, "float", remedy)
        size = int(size_of(self.space))
        if "trials" in self.model_fields_set and self.trials != size:
            raise ConfigError("trials", self.trials, f"the grid has {size} combinations, each once; leave it out")
        object.__setattr__(self, "trials", size)  # frozen from here on
        return self


def stored_sweep(folder: Path, field: str = "resume") -> SweepConfig:
    """Read the configuration with which a sweep was started; ``within`` is None in one of an older version.

    Its name and storage are those of the folder, which may have been renamed or moved since.

    Raises:
        ConfigError: no sweep there.
    """
    fetch(folder)
    if not (folder / "sweep.json").exists():
        known = ", ".join(names_with(folder.parent, "sweep.json"))
        remedy = f"no such sweep under {address_of(folder.parent)}; there are: {known}" if known else "holds no sweep"
        raise ConfigError(field, folder.name, remedy)
    # Before sweeps had this setting everything counted: an older one's numbers stay as they were measured.
    stored = parse(SweepConfig, {"within": None} | read_mapping(folder / "sweep.json"))
    folder = folder.absolute()
    return stored.model_copy(update={"name": folder.name, "storage": folder.parent})
