"""A sweep on somebody's own image folder: looks at the folder, the model and the machine, and says what it chose."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alast_tune.choices.settings import (
    LARGEST_SIDE,
    STEPS,
    Machine,
    batch_size,
    epoch_count,
    image_side,
    loader_count,
)
from alast_tune.choices.space import (
    auto_space,
    features_of,
    first_points,
    given_paths,
    has_layer_decay,
    rate_of,
    space_of_method,
    space_words,
)
from alast_tune.config import (
    AUTO,
    DataConfig,
    FullConfig,
    Limits,
    ModelConfig,
    SweepConfig,
    TrialConfig,
    parse,
)
from alast_tune.cost import step_peak_bytes
from alast_tune.data import Splits, batch_count, load_splits
from alast_tune.data.huggingface import PREFIX
from alast_tune.data.machine import available_bytes, cpu_count, smallest_card
from alast_tune.data.opening import open_sources
from alast_tune.data.tables import SUFFIXES
from alast_tune.device import precision_of
from alast_tune.errors import ConfigError
from alast_tune.methods import build_method
from alast_tune.models import architecture_of, check_weights, input_spec, outline
from alast_tune.models.backbone import Backbone
from alast_tune.optimizers import build_optimizer

MODEL = "deit_small_patch16_224"
"""What is fine-tuned where nobody says: 22 million parameters, of ImageNet; the smaller of the paper's good ones."""

TRIALS = 24
"""Beside the baselines: about one for each method that is tried."""

RECIPE = "AdamW, cosine, layer decay, label smoothing, timm's transforms; --trial.recipe paper has none of it"

SAMPLED = 64
"""Images whose sizes are looked at."""


@dataclass(frozen=True)
class Chosen:
    """One setting that was chosen, or one fact that others follow from."""

    what: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.what:14}{self.value}: {self.why}"


@dataclass(frozen=True)
class Choices:
    """A sweep, and what in it was chosen."""

    sweep: SweepConfig
    lines: tuple[Chosen, ...]
    """A line each, in the order in which they follow from one another."""


def name_of(place: str | Path) -> str:
    """Name a sweep after a folder, a table without its suffix, or a data set of Hugging Face's hub without its user."""
    path = Path(str(place).removeprefix(PREFIX).partition(":")[0] if is_named(place) else place).absolute()
    name = path.stem if path.suffix.lower() in SUFFIXES and not path.is_dir() else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:200].strip("-._") or "sweep"


def is_named(place: str | Path) -> bool:
    """Whether a place is the name of a data set on Hugging Face's hub."""
    return str(place).startswith(PREFIX)


def this_machine(device: str = "auto") -> Machine:
    """Say what there is for trials here; ``device`` as in ``train.device``."""
    return Machine(cpu_count(), available_bytes(), *(smallest_card() if device != "cpu" else ()))


def model_settings(model: str | Path | None, own: ModelConfig) -> dict[str, Any]:
    """Read ``--model``: a name, or a local checkpoint, whose architecture is then found out.

    Args:
        model: as it was given; None: not at all.
        own: the trial's other settings of the model, which come first.

    Raises:
        ConfigError: no such file, or weights whose architecture cannot be told.
    """
    given, text = own.model_fields_set, str(model or "")
    if model is None:
        name = MODEL if not given & {"name", "checkpoint"} else None
        file = own.checkpoint
    elif Path(text).suffix in {".safetensors", ".pth", ".pt", ".bin", ".ckpt"} or Path(text).expanduser().exists():
        name, file = None, parse(ModelConfig, {"checkpoint": text}).checkpoint
    else:
        name, file = text, None
    found: dict[str, Any] = {} if file is None else {"checkpoint": str(file)}
    if file is not None and "name" not in given:
        name = architecture_of(file, own.checkpoint_key)
    return found | ({} if name is None or "name" in given else {"name": name})


def _check_weights(model: ModelConfig) -> None:
    try:
        check_weights(model)
    except ConfigError as error:
        if error.field != "model.pretrained":
            raise
        remedy = (
            "its weights are not on this machine, and the hub does not answer; give --model FILE, local weights "
            "(.safetensors or .pth), or --model embedded, a small model that comes with alast-tune"
        )
        raise ConfigError("model", model.name, remedy) from error


def data_settings(folder: str | Path) -> dict[str, str]:
    """Say where images are: a folder or a table, or the name of a data set on Hugging Face's hub."""
    return {"dataset": str(folder)} if is_named(folder) else {"dataset": "folder", "root": str(folder)}


def sweep_of_folder(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    methods: Sequence[str] = (),
    machine: Machine | None = None,
    **settings: Any,
) -> Choices:
    """Make a whole sweep on an image folder, a table or a data set of Hugging Face's, choosing what is left open.

    Args:
        folder: ``<folder>/{train,val,test}/<class>/*``, ``<folder>/<class>/*``, or whatever else ``data.root`` may be;
            or ``hf:user/name``.
        model: a timm name, ``embedded``, or a local checkpoint; None: :data:`MODEL`.
        methods: that are searched, by name; none: all that the model allows but ``top_k`` and ``bsr``.
        machine: what trials run on; None: this one.
        settings: of :class:`~alast_tune.config.SweepConfig`, as plain values (``trials=8``,
            ``trial={"train": {"epochs": 3}}``): taken as they are.

    Raises:
        ConfigError: no image folder of two or more classes, no such model, or none whose weights are here; or a given
            setting that cannot work.
    """
    trial = _merged({"data": data_settings(folder)}, dict(settings.get("trial", {})))
    if "method" in trial:
        trial["method"] = {"name": "alast"} | trial["method"]
    own = parse(TrialConfig, trial)
    given = given_paths(own)
    open_sources(own.data)  # says what is wrong with it before anything else is looked at
    limit_bytes = _bytes(settings.get("max_memory"))
    recipe_given, trial = "recipe" in own.model_fields_set, {"recipe": "modern"} | trial
    trial = _merged(trial, {"model": model_settings(model, own.model)})
    own = parse(TrialConfig, trial)
    _check_weights(own.model)
    sketch, chosen = outline(own.model.model_copy(update={"num_classes": 2})), []
    machine = machine or this_machine(own.train.device)
    splits = load_splits(own.data.model_copy(update={"cache": "none"}), input_spec(sketch), verify=False)
    chosen += [*_images_lines(splits, own.data), _model_line(own.model, model, input_spec(sketch).mean)]
    if not recipe_given:
        chosen.append(Chosen("recipe", "modern", RECIPE))

    def choose(path: str, value: object, shown: str, why: str) -> None:
        """Take a value for a path in the trial that was left open, and say so."""
        group, name = path.split("/")
        if name not in trial.get(group, {}):
            trial.setdefault(group, {})[name] = value
            chosen.append(Chosen(_NAMES[name], shown, why))

    spec, patch, images = input_spec(sketch), int(sketch.patch_embed.patch_size[0]), len(splits.train)
    smaller = median_side(splits)
    side = image_side(spec.image_size, patch, smaller)
    choose("model/image_size", side, f"{side} pixels", _side_reason(side, spec.image_size, smaller))
    precision = "bf16" if machine.bf16 else "fp32"
    card = "the GPU here computes in it" if machine.bf16 else "the GPU here has no bf16"
    choose("train/precision", precision, precision, card if machine.card_bytes else "there is no CUDA device here")
    own = parse(TrialConfig, trial)
    peak = _full_peak(own)
    batch = batch_size(images, peak, min(machine.limit_bytes, limit_bytes))
    lowered = batch < batch_size(images, peak, math.inf)
    why = "so that full fine-tuning fits into memory" if lowered else f"{batch_count(images, batch)} steps an epoch"
    choose("train/batch_size", batch, str(batch), why)
    batch, steps = trial["train"]["batch_size"], STEPS[bool(machine.card_bytes)]
    epochs = epoch_count(images, int(batch), steps)
    total = epochs * batch_count(images, int(batch))
    choose("train/epochs", epochs, str(epochs), f"{total} training steps a trial")
    workers = loader_count(machine)
    shown = f"{workers} processes" if workers else "threads"
    choose("data/workers", workers, shown, "decode the images, once if they fit into memory")
    choose("data/augment", "none", "none", "a flip may make another class; --trial.data.augment paper flips and crops")
    sketch = outline(parse(TrialConfig, trial).model.model_copy(update={"num_classes": 2}))  # at its image size
    features = features_of(own, sketch, images + len(splits.validation))
    why = "wherever blocks below never change, images pass them once" if features == "auto" else "see --help-all"
    choose("data/features", features, features, why)
    rate = rate_of(own.model.name, has_layer_decay(own))
    choose("train/learning_rate", rate, f"{rate:g}", "of the baselines; the space has those that are searched")
    if own.recipe == "paper":
        warm = min(1.0, int(trial["train"]["epochs"]) / 10)
        choose("train/warmup_epochs", warm, f"{warm:g} epochs", "high learning rates diverge without")
    values = settings | {"trial": trial}
    if "name" not in values:
        values["name"] = name_of(folder)
    if values.get("space", AUTO) == AUTO:
        if "method" not in trial:
            values["space"] = auto_space(sketch, own.model.name, methods, given, has_layer_decay(own))
            if values.get("begin_with") is None and values.get("sampler") != "grid":  # which the space refuses
                values["begin_with"] = first_points(values["space"])
            trial["method"] = {"name": "full"}
        elif methods:
            raise ConfigError("methods", ",".join(methods), "trial.method says which; leave out one of the two")
        else:
            values["space"] = space_of_method(sketch, own.model.name, own.method, has_layer_decay(own))
        words, why = space_words(values["space"])
        chosen.append(Chosen("space", words, f"{why}; --dry-run shows them"))
    elif methods:
        raise ConfigError("methods", ",".join(methods), "the space says which; leave out one of the two")
    if "trials" not in values and values.get("sampler") != "grid":
        values["trials"] = TRIALS
        chosen.append(Chosen("trials", str(TRIALS), "beside the baselines; --trials"))
    return Choices(parse(SweepConfig, values), tuple(chosen))


_NAMES = {
    "image_size": "image size",
    "precision": "precision",
    "batch_size": "batch",
    "epochs": "epochs",
    "workers": "loaders",
    "augment": "augmentation",
    "learning_rate": "learning rate",
    "warmup_epochs": "warm-up",
    "features": "features",
}


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Put nested settings over others."""
    found = dict(values)
    for name, value in over.items():
        below = found.get(name)
        found[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def _bytes(given: Any) -> float:
    limits = parse(Limits, {"max_memory": given})
    return math.inf if limits.max_memory is None else float(limits.max_memory)


def _full_peak(trial: TrialConfig) -> Callable[[int], float]:
    """Predict the peak of full fine-tuning by batch, bytes; from shapes alone."""
    model: Backbone = outline(trial.model.model_copy(update={"num_classes": trial.model.num_classes or 100}))
    full = build_method(FullConfig(), model, trial.train)
    optimizer = build_optimizer(trial.train, full)
    side = input_spec(model).image_size

    def peak(batch: int) -> float:
        return step_peak_bytes(
            model, FullConfig(), full.plan, side, batch, optimizer, precision_of(trial.train), train=trial.train
        )

    return peak


def median_side(splits: Splits) -> int:
    """Look up the median of the images' shorter sides, pixels, from the headers of a few."""
    source, indices = splits.train.source, splits.train.indices
    sides = []
    for index in indices[:: max(1, len(indices) // SAMPLED)]:
        try:
            with source.open(index) as image:
                sides.append(min(image.size))
        except Exception:  # what is wrong with it is said when all are looked at
            continue
    return sorted(sides)[len(sides) // 2] if sides else LARGEST_SIDE


def _images_lines(splits: Splits, data: DataConfig) -> list[Chosen]:
    parts = {"to train on": splits.train, "to validate": splits.validation, "to test": splits.test}
    counts = ", ".join(f"{len(part)} {use}" for use, part in parts.items() if part)
    drawn = splits.validation.source is splits.train.source
    why = "divided by a hash of each path" if drawn else "as they come divided"
    names = ", ".join(splits.classes[:3]) + (", ..." if len(splits.classes) > 3 else "")
    return [Chosen("classes", str(splits.num_classes), names), Chosen("images", counts, why)]


def _model_line(model: ModelConfig, given: str | Path | None, mean: tuple[float, ...]) -> Chosen:
    if model.checkpoint:
        of = f"the architecture of {model.checkpoint}, for images of mean {', '.join(map(str, mean))}"
        return Chosen("model", model.name, of)
    why = "as given" if given or model.name != MODEL else "a good small one, 22 million parameters; --model"
    return Chosen("model", model.name, why)


def _side_reason(side: int, own: int, smaller: int) -> str:
    if side == own:
        return "the model's own"
    return f"the model's own is {own}, " + (f"the images are {smaller}" if smaller < LARGEST_SIDE else "at more cost")
