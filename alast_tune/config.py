"""Every setting of a trial and of a sweep, as frozen records that refuse unknown keys.

YAML or JSON in, JSON out. A path into a record, as the command line (``--trial.train.epochs``)
and the search space (``method/alpha``) write it, is the chain of field names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from alast_tune.errors import ConfigError, explain

T = TypeVar("T", bound=BaseModel)


class Record(BaseModel):
    """A frozen record; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Record):
    """Which images, and how they are split and augmented."""

    dataset: Literal["digits", "cifar100", "flowers102", "food101", "folder"] = Field(
        "digits",
        description="digits comes with scikit-learn; folder is any image folder (see root)",
    )
    root: Path | None = Field(
        None,
        description="where the files lie, or are downloaded to; for folder: <root>/{train,val,test}/<class>/* "
        "or <root>/<class>/*, which is then split 60/20/20",
    )
    download: bool = Field(True, description="fetch a torchvision dataset that is not under root yet")
    augment: Literal["none", "paper"] = Field(
        "none", description="paper: two of horizontal flip, vertical flip and random crop (appendix E)"
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the training images held out where the dataset has no validation split"
    )
    split_seed: int = Field(0, description="seed of that split")
    train_images: int | None = Field(None, ge=1, description="use only so many training images, classes balanced")
    workers: int = Field(0, ge=0, description="loader processes")


class ModelConfig(Record):
    """Which Vision Transformer, and where its weights come from."""

    name: str = Field(
        "embedded", description="embedded, or any timm Vision Transformer with a class token (deit_small_patch16_224)"
    )
    pretrained: bool = Field(True, description="start from pretrained weights (timm's hub, unless checkpoint is set)")
    checkpoint: Path | None = Field(None, description="local weights instead: .safetensors, .pth, .pt or .bin")
    num_classes: int | None = Field(None, ge=2, description="size of the classifier; unset: the dataset's classes")
    image_size: int | None = Field(None, ge=8, description="input side, pixels; unset: the model's own")


class Floors(Record):
    """Smallest share of patch tokens that may be kept, one for each third of the depth, in (0, 1]."""

    early: float = Field(0.1, gt=0, le=1)
    middle: float = Field(0.1, gt=0, le=1)
    late: float = Field(0.1, gt=0, le=1)


class FullConfig(Record):
    """Fine-tune everything."""

    name: Literal["full"] = "full"


class HeadConfig(Record):
    """Train the classifier alone (linear probe)."""

    name: Literal["head"] = "head"


READINGS: dict[str, dict[str, Any]] = {
    "paper": {"floors": {"early": 0.01, "middle": 0.01, "late": 0.01}},
    "authors": {
        "delta_reduction": "batch_sum",
        "initial_budget": 0.9,
        "floors": {"early": 0.5, "middle": 0.5, "late": 0.5},
        "keep_reference": "incoming",
        "selection": "softmax",
        "first_delta": "zero",
        "train_embeddings": True,
    },
    "fast": {
        "initial_budget": "calibrate",
        "budget_timing": "next_step",
        "keep_multiple": 8,
    },
}
"""What each reading sets; everything it leaves out is the field's default."""


class AlastConfig(Record):
    """ALaST (Devoto et al. 2024), every ambiguity of the paper an option, three readings over them."""

    name: Literal["alast"] = "alast"
    reading: Literal["paper", "authors", "fast"] = Field(
        "fast", description="defaults of the options below: the paper's text, a co-author's code, or ours"
    )
    trainable_blocks: int = Field(9, ge=1, description="K, blocks that train at a step")
    alpha: float | None = Field(None, ge=0, description="budget learning rate; unset: the learning rate, as the paper")
    floors: Floors = Field(default_factory=Floors, description="token-keep floors: early, middle, late third")
    max_budget: float = Field(1.0, gt=0, le=1, description="budgets are clipped to [floor, max_budget]")
    initial_budget: Annotated[float, Field(gt=0, le=1)] | Literal["calibrate"] = Field(
        1.0, description="calibrate: from the relative magnitude of each block's class-token update"
    )
    target_budget: float = Field(0.6, gt=0, le=1, description="mean budget that calibrate aims at")
    delta_reduction: Literal["batch_mean", "batch_sum"] = Field(
        "batch_mean", description="class-token delta, equation 5"
    )
    first_delta: Literal["skip", "zero"] = Field(
        "skip", description="before the first step: no update, or a delta of 0"
    )
    budget_timing: Literal["same_step", "next_step"] = Field(
        "same_step", description="when a new budget counts; next_step needs no host synchronisation in the forward"
    )
    keep_reference: Literal["image", "incoming"] = Field(
        "image", description="share of the image's patch tokens, or of those that arrive (compounds over blocks)"
    )
    keep_multiple: int = Field(1, ge=1, description="round the number kept up to a multiple of this")
    selection: Literal["proportional", "softmax", "top_k"] = Field(
        "proportional", description="how the K blocks are drawn"
    )
    train_embeddings: bool = Field(False, description="train patch and position embeddings as well")
    frozen_backward: Literal["exact", "residual"] = Field(
        "exact", description="residual: gradients pass a frozen block by its skip connection alone (approximation)"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _fill_reading(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        preset = READINGS.get(values.get("reading", "fast"), {})
        own = _plain(values.get("floors", {}))
        floors = {**preset.get("floors", {}), **own} if isinstance(own, dict) else own
        config = handler({**preset, **values, "floors": floors})
        # What the reading filled in is not "set": another reading may still replace it (apply_params).
        config.model_fields_set.intersection_update(values)
        config.floors.model_fields_set.intersection_update(own)
        return config

    @model_validator(mode="after")
    def _check(self) -> Self:
        for third, floor in self.floors.model_dump().items():
            if floor > self.max_budget:
                raise ValueError(f"floors.{third} = {floor} is above max_budget = {self.max_budget}")
        return self


MethodConfig = Annotated[AlastConfig | FullConfig | HeadConfig, Field(discriminator="name")]
"""One fine-tuning method, tagged by ``name``."""


class TrainConfig(Record):
    """The training loop. Defaults are the paper's (appendix E) where it has one."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up of the learning rate")
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type; fp16 scales the loss")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0)


class TrialConfig(Record):
    """Everything that determines one fine-tuning run."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    method: MethodConfig = Field(default_factory=AlastConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


class FloatRange(Record):
    """A real parameter between two bounds, searched on a logarithmic scale if ``log``."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError(f"low = {self.low}, high = {self.high}: low must not exceed high, nor be <= 0 with log")
        return self


class IntRange(Record):
    """A whole parameter between two bounds, both possible."""

    type: Literal["int"] = "int"
    low: int
    high: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} exceeds high = {self.high}")
        return self


class Choice(Record):
    """One of several values."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)


Distribution = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]


class SweepConfig(Record):
    """A multi-objective search: a base trial, what varies in it, and how long to look."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder under storage")
    storage: Path = Field(Path("runs"), description="every sweep is a folder in here")
    trials: int = Field(16, ge=1, description="how many trials in all")
    seed: int = Field(0, ge=0, description="of the sampler")
    sampler: Literal["tpe", "nsga2", "gp", "random"] = "tpe"
    concurrent: int | None = Field(None, ge=1, description="trials at a time; unset: as many as fit")
    cpus_per_trial: int = Field(1, ge=1, description="also the threads torch uses on a CPU")
    gpus_per_trial: float | None = Field(None, ge=0, description="unset: 1 where the cluster has GPUs, else 0")
    retries: int = Field(2, ge=0, description="restarts of a trial, from its last checkpoint, after a crash")
    trial: TrialConfig = Field(default_factory=TrialConfig, description="what every trial has in common")
    space: dict[str, Distribution] = Field(
        min_length=1, description="what varies: path in the trial (method/alpha) -> distribution"
    )

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        for path, distribution in self.space.items():
            ends = distribution.choices if isinstance(distribution, Choice) else (distribution.low, distribution.high)
            for value in ends:
                try:
                    apply_params(self.trial, {path: value})
                except ConfigError as error:
                    raise ConfigError(f"space.{path}", value, str(error)) from None
        return self


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def apply_params(trial: TrialConfig, params: dict[str, Any]) -> TrialConfig:
    """Set paths such as ``method/floors/early`` in a trial, validating the result.

    Raises:
        ConfigError: a path that the trial does not have, or a value that its field refuses.
    """
    values = trial.model_dump(exclude_unset=True)
    for path, value in params.items():
        *parents, leaf = path.split("/")
        owner: Any = trial
        target = values
        for key in parents:
            if not isinstance(owner, BaseModel) or key not in type(owner).model_fields:
                raise ConfigError(path, value, "a trial has no such setting; paths look like method/alpha")
            owner = getattr(owner, key)
            target = target.setdefault(key, {})
            if isinstance(owner, (AlastConfig, FullConfig, HeadConfig)):
                target.setdefault("name", owner.name)
        if not isinstance(owner, BaseModel) or leaf not in type(owner).model_fields:
            raise ConfigError(path, value, "a trial has no such setting; paths look like method/alpha")
        target[leaf] = value
    return parse(TrialConfig, values)


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Turn a configuration into paths and plain values: ``method/floors/early`` -> 0.1."""
    flat: dict[str, Any] = {}
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, Record):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, dict):
            flat |= {f"{prefix}{name}/{key}": item for key, item in value.items()}
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parse(kind: type[T], values: Any) -> T:
    """Validate plain values into a record; a refusal comes as one :class:`ConfigError` line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        field, _, rest = explain(error).partition(" = ")
        value, _, remedy = rest.partition(": ")
        raise ConfigError(field, value, remedy) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file that holds one mapping.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            "config", path, f"cannot be read ({error.strerror}); give an existing YAML or JSON file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("config", path, f"is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("config", path, "holds no mapping; write it as 'key: value' lines")
    return values
