"""The training loop's settings, and the recipes that set what was left open."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import ByteSize, Field, field_validator, model_validator

from alast_tune.config.record import Record
from alast_tune.errors import ConfigError
from alast_tune.scores import Score

if TYPE_CHECKING:
    from alast_tune.config.methods import MethodConfig

Recipe = Literal["paper", "modern"]
Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal[
    "adam", "adamw", "sgd", "adamw8bit",
    "adabelief", "adan", "adoptw", "lamb", "laprop", "lion", "nadamw", "radamw", "sgdw",
]  # fmt: skip
"""What updates the weights: the first four are torch's and bitsandbytes', the others timm's. All are metered."""

RECIPES: dict[Recipe, dict[str, Any]] = {
    "paper": {},
    "modern": {
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "schedule": "cosine",
        "clip_grad": 1.0,
        "label_smoothing": 0.1,
        "precision": "auto",
        "tf32": True,
    },
}
"""What each recipe sets of the training loop; everything that it leaves out is the field's default."""
WARMUP = 0.1
"""Share of the epochs in which the learning rate of the modern recipe rises,"""
LAYER_DECAY = 0.75
"""and its layer decay, where the blocks' own weights train."""


L2: tuple[OptimizerName, ...] = ("adam", "sgd")
"""Optimizers that add weight decay to the gradient, as an L2 penalty: the modern recipe's 0.05 is for the others."""


class TrainConfig(Record):
    """The training loop. Defaults are the paper's (appendix E) where it has one."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1)
    accumulate: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1,
        description="number of micro-batches that each batch is split into, for less memory; auto: the fewest that "
        "keep max_memory",
    )
    max_memory: ByteSize | None = Field(
        None,
        gt=0,
        description="limit of the predicted peak of the training steps, as 2GiB; with accumulate auto, in a sweep, "
        "unset: the sweep's",
    )
    checkpoint_blocks: bool = Field(
        False,
        description="keep of each block's forward only the tokens that enter, and run it again in the backward: a "
        "quarter to a half more FLOPs, a fraction of the activations",
    )
    activations: Literal["exact", "approximate"] = Field(
        "exact", description="approximate: GELU keeps 4 bits an element for its backward, whose derivative is rounded"
    )
    token_keep: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each image's patch tokens, drawn at random at each step, that training goes on with; "
        "evaluation takes all (PatchDropout)",
    )
    token_keep_last: float | None = Field(
        None, gt=0, le=1, description="the share in the last epoch, to which it changes evenly; unset: it stays"
    )
    image_size_first: int | None = Field(
        None,
        ge=1,
        description="side of the training images in the first epoch, pixels; grows evenly, patch by patch, to the "
        "model's own image size in the last epoch, at which all evaluation is; unset: always the model's own",
    )
    score: Score = Field(
        "accuracy",
        description="measure of quality on the validation images: which epoch is the best, and what a sweep maximizes, "
        "its limits of accuracy included; balanced_accuracy (mean recall of the classes) and macro_f1 (mean F1) count "
        "rare classes as much as others",
    )
    learning_rate: float = Field(1e-4, gt=0, description="unset: 1e-4, with adapters 1e-3, as in the paper")
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each block to the one below; the classifier has the full rate",
    )
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up of the learning rate, to its full value")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; cosine: down to 0 at the end of the last epoch"
    )
    optimizer: OptimizerName = Field(
        "adam",
        description="torch's adam, adamw and sgd; adamw8bit, which keeps moments in 8 bits (install "
        "'<wheel>[8bit]'); the others are timm's",
    )
    weight_decay: float = Field(0.0, ge=0, description="of matrices; biases, norms, positions and tokens are spared")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of all gradients together; unset: any")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the truth that is spread over all classes")
    mixup: float = Field(
        0.0, ge=0, description="mix the images of pairs, and their labels: alpha of the Beta distribution of the shares"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="the same by a box that comes from the other image; with mixup, each in half of the steps",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an average of the weights, which is what is evaluated and kept; rises to it from 0",
    )
    eval_every: int = Field(
        1, ge=1, description="number of epochs from one validation to the next; the last epoch always has one"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="early stopping: number of epochs without a better validation result after which the run ends; "
        "unset: train all epochs",
    )
    precision: Precision | Literal["auto"] = Field(
        "fp32",
        description="autocast type; fp16 scales the loss; auto: bf16 on a GPU that computes in it, else fp32",
    )
    tf32: bool = Field(False, description="let GPUs round the factors of fp32 matrix products to 10 bits (TF32)")
    compile: bool = Field(False, description="compile the blocks with torch.compile")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs > self.epochs:
            remedy = f"is beyond train.epochs = {self.epochs}: the full rate would never be reached; give less"
            raise ConfigError("train.warmup_epochs", self.warmup_epochs, remedy)
        return self

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        for name in ("token_keep_last", "image_size_first"):
            if getattr(self, name) is not None and self.epochs == 1:
                remedy = "one epoch is the first and the last; leave it out, or set train.epochs to 2 or more"
                raise ConfigError(f"train.{name}", getattr(self, name), remedy)
        return self

    @field_validator("optimizer", mode="before")
    @classmethod
    def _check_optimizer(cls, name: object) -> object:
        known = get_args(OptimizerName)
        if isinstance(name, str) and name not in known:
            near = get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(
                "train.optimizer", name, f"is none that is metered here; {hint}known are {', '.join(known)}"
            )
        return name


def with_recipe(train: TrainConfig, recipe: Recipe, method: MethodConfig) -> TrainConfig:
    """Set what was left open of a training loop as a recipe has it; it still counts as not set.

    A method's own learning rate goes before the recipe's.
    """
    filled = dict(RECIPES[recipe])
    if recipe == "modern":
        filled["warmup_epochs"] = WARMUP * train.epochs
        filled["layer_decay"] = LAYER_DECAY if method.trains_backbone() else 1.0
        if "optimizer" in train.model_fields_set and train.optimizer in L2:
            filled["weight_decay"] = 0.0
    if (rate := method.default_learning_rate()) is not None:
        filled["learning_rate"] = rate
    given = train.model_fields_set
    left = {name: filled.get(name, field.default) for name, field in TrainConfig.model_fields.items()}
    update = {name: value for name, value in left.items() if name not in given and value != getattr(train, name)}
    if not update:
        return train
    found = train.model_copy(update=update)
    found.model_fields_set.intersection_update(given)  # filled in: another recipe or method may still replace it
    return found
