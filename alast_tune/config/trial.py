"""What determines one fine-tuning run: data, model, method, training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, SerializeAsAny, model_validator

from alast_tune.config.methods import MethodConfig, find_method
from alast_tune.config.record import Record, parse
from alast_tune.config.train import Recipe, TrainConfig, with_recipe
from alast_tune.errors import ConfigError


class Columns(Record):
    """Which columns of a table, or of a data set of Hugging Face; unset: found by their usual names, or by type."""

    image: str | None = Field(None, description="of paths in the table's folder, or of images")
    label: str | None = None
    split: str | None = Field(None, description="train, validation or test; a table need not have it")


class DataConfig(Record):
    """Which images, and how they are split and augmented."""

    dataset: str = Field(
        "digits",
        description="digits comes with scikit-learn; cifar100, flowers102 and food101 are torchvision's; folder, which "
        "is also meant where there is a root alone, is your own (see root); hf:user/name is on Hugging Face's hub; or "
        "a name that is registered",
    )
    root: Path | None = Field(
        None,
        description="where the files lie, or are downloaded to; for folder: <root>/{train,val,test}/<class>/* "
        "or <root>/<class>/*, which is then split by a hash of split_seed and each image's path; or a .csv or .parquet "
        "file of paths or images and their labels; or a folder of Hugging Face's save_to_disk",
    )
    columns: Columns = Field(default_factory=Columns)
    download: bool = Field(True, description="fetch a torchvision dataset that is not under root yet")
    transforms: Literal["paper", "timm"] = Field(
        "paper",
        description="how pictures come to the model's size: paper squashes them, bilinear; timm resizes and crops as "
        "the model's own config says, in training as in evaluation. Digits are only enlarged",
    )
    augment: Literal["none", "paper", "crop", "trivial", "rand"] = Field(
        "none",
        description="paper: two of horizontal flip, vertical flip and random crop (appendix E); crop: a random part, "
        "enlarged, and horizontal flip, as timm trains; trivial: crop, then TrivialAugment; rand: crop, then "
        "RandAugment",
    )
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="chance of a training image to have a random rectangle blanked out"
    )
    features: Literal["none", "cache", "auto"] = Field(
        "none",
        description="cache: compute once, for all images, what enters the first block that trains, into a file that "
        "processes share; steps begin there. Needs blocks that never train below (method.from_block, say); "
        "auto: wherever that is possible",
    )
    views: int = Field(
        1, ge=1, description="with features cached: number of fixed augmentations of each image; epochs take turns"
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="balanced: as many images an epoch, each class as often as the others, so that images of rare "
        "classes come several times",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: in the loss, each class weighs as much as the others, however rare it is"
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the images held out for validation where the dataset has no such split"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share held out for testing where the dataset has no splits at all; 0: no test"
    )
    split_seed: int = Field(0, ge=0, description="seed of these splits")
    train_images: int | None = Field(None, ge=1, description="use only so many training images, classes balanced")
    all_data: bool = Field(
        False,
        description="for production: train on all training and validation images, whatever train_images says; "
        "validation is then no measure of quality, test images are",
    )
    verify: bool = Field(
        True,
        description="before anything trains, read every image file that is new or has changed; false: one that is "
        "damaged ends the run when it is met",
    )
    cache: Literal["auto", "memory", "none"] = Field(
        "auto",
        description="memory: decode and resize each image once a machine, into a file that all its processes share; "
        "none: decode it whenever it is needed; auto: memory, if that takes at most a quarter of what is available",
    )
    workers: int = Field(0, ge=0, description="loader processes that decode; 0: threads of the training process do")

    @model_validator(mode="before")
    @classmethod
    def _take_what_lies_there(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("root") is not None and "dataset" not in values:
            return values | {"dataset": "folder"}
        return values

    @property
    def is_augmented(self) -> bool:
        """Whether training images differ from epoch to epoch."""
        return self.augment != "none" or self.random_erasing > 0

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        cached = self.features != "none"
        if cached and self.is_augmented and self.views == 1:
            name, none = ("augment", "none") if self.augment != "none" else ("random_erasing", 0)
            remedy = (
                f"features that are cached are augmented once and for all; set data.views, 4 say, or {name}: {none}"
            )
            raise ConfigError(f"data.{name}", getattr(self, name), remedy)
        if self.views > 1 and not (cached and self.is_augmented):
            missing = "data.augment: paper" if cached else "data.features: cache"
            raise ConfigError("data.views", self.views, f"there is nothing to have views of without {missing}; add it")
        return self

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            remedy = f"leaves nothing to train on beside data.test_fraction = {self.test_fraction}; lower one of them"
            raise ConfigError("data.validation_fraction", self.validation_fraction, remedy)
        return self


class ModelConfig(Record):
    """Which Vision Transformer, and where its weights come from."""

    name: str = Field(
        "embedded",
        description="embedded, or a timm Vision Transformer (deit_small_patch16_224); doctor --models lists all",
    )
    pretrained: bool = Field(True, description="start from pretrained weights (timm's hub, unless checkpoint is set)")
    checkpoint: Path | None = Field(
        None, description="local weights instead: a file of safetensors or of torch.save, or a folder that has one"
    )
    checkpoint_key: str | None = Field(
        None,
        description="which of the weights in it (state_dict, teacher.backbone); unset: averaged ones (EMA) first",
    )
    keep_classifier: bool = Field(
        False,
        description="keep the classifier of the weights, which must be that of this very dataset: of the same classes "
        "in the same order",
    )
    num_classes: int | None = Field(None, ge=2, description="size of the classifier; unset: the dataset's classes")
    image_size: int | None = Field(
        None,
        ge=8,
        description="input side, pixels; unset: as config.json beside the weights says, else the model's own",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="chance that an image skips half of the last block while training; falls evenly to 0 in the first",
    )

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.keep_classifier and self.checkpoint is None and not self.pretrained:
            raise ConfigError("model.keep_classifier", True, "there are no weights to keep it from; leave it out")
        if self.checkpoint_key is not None and self.checkpoint is None:
            raise ConfigError("model.checkpoint_key", self.checkpoint_key, "there is no model.checkpoint; give one")
        return self


def _alast() -> MethodConfig:
    return find_method("alast").model_validate({})


class TrialConfig(Record):
    """Everything that determines one fine-tuning run."""

    recipe: Recipe = Field(
        "paper",
        description="defaults of the training loop: the paper's, or today's: AdamW, weight decay 0.05, cosine "
        "with warm-up, layer decay 0.75 where blocks train, clipping, label smoothing, bf16 on a GPU that has it, and "
        "pictures resized as the model's config says",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    method: SerializeAsAny[MethodConfig] = Field(default_factory=_alast)
    train: TrainConfig = Field(default_factory=TrainConfig)

    def given_values(self) -> dict[str, Any]:
        """What was given, as plain values: read again it is this trial, of which a reading may still be replaced."""
        values = self.model_dump(mode="json", exclude_unset=True)
        return values | {"method": values.get("method", {}) | {"name": self.method.name}}

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        if self.data.features != "none" and (reason := self.why_no_features()):
            field, value, why = reason
            raise ConfigError(field, value, f"{why}; leave it out, or set data.features: none")
        return self

    def why_no_features(self) -> tuple[str, object, str] | None:
        """Name a setting, its value and why features cannot be kept beside it; None if there is none."""
        for group, name, what in (
            ("model", "drop_path", "whole paths"),
            ("train", "image_size_first", "images of one size"),
            ("train", "mixup", "whole images"),
            ("train", "cutmix", "whole images"),
        ):
            if value := getattr(getattr(self, group), name):
                return f"{group}.{name}", value, f"features are kept of {what}"
        return None

    @model_validator(mode="wrap")
    @classmethod
    def _fill_recipe(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        config = handler(values)
        train, data = with_recipe(config.train, config.recipe, config.method), config.data
        transforms = "timm" if config.recipe == "modern" else "paper"
        if "transforms" not in data.model_fields_set and data.transforms != transforms:
            data = data.model_copy(update={"transforms": transforms})
        if train is config.train and data is config.data:
            return config
        filled = config.model_copy(update={"train": train, "data": data})
        filled.model_fields_set.intersection_update(config.model_fields_set)
        return filled


_SHORTCUTS = {"data": ("features", "views"), "train": ("token_keep", "token_keep_last", "image_size_first")}


def with_whole_images(trial: TrialConfig) -> TrialConfig:
    """Let all tokens of images at the model's own size train, no features, as what others are compared with does."""
    for group, names in _SHORTCUTS.items():
        record = getattr(trial, group)
        fields = type(record).model_fields
        whole = {name: fields[name].default for name in names if name in record.model_fields_set}
        trial = trial.model_copy(update={group: record.model_copy(update=whole)})
    return trial


PLACES = (
    "data/root",
    "data/download",
    "data/verify",
    "data/workers",
    "data/cache",
    "model/checkpoint",
    "train/device",
)
"""Where things lie and run: may change while a fingerprint says that data and weights are the same."""


def without_places(trial: TrialConfig) -> TrialConfig:
    """Leave out where things lie and run, which does not change the results."""
    for path in PLACES:
        group, name = path.split("/")
        record = getattr(trial, group)
        default = type(record).model_fields[name].default
        trial = trial.model_copy(update={group: record.model_copy(update={name: default})})
    return trial


def with_absolute_paths(trial: TrialConfig) -> TrialConfig:
    """Replace relative paths, which mean the folder of the process that was given them; workers have another."""
    data = trial.data.model_copy(update={"root": trial.data.root and trial.data.root.absolute()})
    model = trial.model.model_copy(update={"checkpoint": trial.model.checkpoint and trial.model.checkpoint.absolute()})
    return trial.model_copy(update={"data": data, "model": model})


def apply_params(trial: TrialConfig, params: dict[str, Any]) -> TrialConfig:
    """Set paths such as ``method/floors/early`` in a trial, validating the result.

    A path without a slash (``method``) replaces the whole record; what else is set then goes on top of that.

    Raises:
        ConfigError: a path that the trial does not have, or a value that its field refuses.
    """
    whole = {path: value for path, value in params.items() if path in TrialConfig.model_fields}
    params = {path: value for path, value in params.items() if path not in whole}
    if whole:
        trial = parse(TrialConfig, trial.given_values() | whole)
    values = trial.given_values()
    for path, value in params.items():
        *parents, leaf = path.split("/")
        owner: Any = trial
        target = values
        for key in parents:
            if not isinstance(owner, BaseModel) or key not in type(owner).model_fields:
                raise ConfigError(path, value, "a trial has no such setting; paths look like method/alpha")
            owner = getattr(owner, key)
            target = target.setdefault(key, {})
        if not isinstance(owner, BaseModel) or leaf not in type(owner).model_fields:
            raise ConfigError(path, value, "a trial has no such setting; paths look like method/alpha")
        target[leaf] = value
    return parse(TrialConfig, values)
