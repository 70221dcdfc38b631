"""timm Vision Transformers: by name, from a local checkpoint (``checkpoints.py``), or the embedded backbone.

Whatever cannot be fine-tuned here is refused before any weights are fetched; ``backbone.py`` says what is accepted.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from pathlib import Path
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models import is_model_in_modules
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from alast_tune.config import ModelConfig
from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone
from alast_tune.models.checkpoints import file_fingerprint, read_checkpoint, weights_file
from alast_tune.models.hub import cached, no_weights, weights_source
from alast_tune.models.inputs import InputSpec, Resizing, arguments_of, input_spec, inputs_of, resizer, size_of
from alast_tune.models.reading import PREFIX, attach_reader, read_of
from alast_tune.models.recognition import (
    architecture_name,
    candidates,
    check_labels,
    has_shapes_of,
    in_timms_names,
    named_by,
    pretrained_cfg,
    read_card,
    unknown,
)
from alast_tune.models.shapes import shapes_alone
from alast_tune.text import shorten_list

__all__ = [
    "EMBEDDED_MEAN",
    "EMBEDDED_STD",
    "EMBEDDED_WEIGHTS",
    "Backbone",
    "InputSpec",
    "Resizing",
    "architecture_name",
    "architecture_of",
    "check_labels",
    "check_weights",
    "create_model",
    "embedded_vit",
    "input_spec",
    "outline",
    "resizer",
    "skeleton",
    "timm_arguments",
    "weights_fingerprint",
]

_LOG = logging.getLogger(__name__)

EMBEDDED_MEAN = (0.5, 0.5, 0.5)
EMBEDDED_STD = (0.5, 0.5, 0.5)
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "embedded" / "backbone.safetensors"

EMBEDDED_SHAPE: dict[str, Any] = {"patch_size": 4, "embed_dim": 80, "depth": 12, "num_heads": 5}

TIMM_MODULES = ("vision_transformer", "deit", "eva")
"""Where timm's Vision Transformers live."""


def embedded_vit(num_classes: int, image_size: int = 32, **options: Any) -> VisionTransformer:
    """Build the embedded architecture, weights at random: 12 blocks, 32x32 input, patch 4."""
    return VisionTransformer(img_size=image_size, num_classes=num_classes, **EMBEDDED_SHAPE, **options)


def timm_arguments(config: ModelConfig, image_size: int) -> tuple[str, dict[str, Any]]:
    """Say what builds a model's architecture by ``timm.create_model`` alone: a name, and arguments besides.

    timm does not know the embedded backbone, but any of its plain ViTs takes another shape.
    """
    shape = EMBEDDED_SHAPE if config.name == "embedded" else {}
    name = "vit_tiny_patch16_224" if config.name == "embedded" else config.name.partition(".")[0]
    return name, {"img_size": image_size, **shape, **_arguments(config)}


def create_model(config: ModelConfig) -> Backbone:
    """Build a Vision Transformer and load its weights, float32 on the CPU.

    A ``checkpoint`` takes precedence over ``pretrained``. Without ``num_classes`` the model keeps its own
    classifier (the embedded one has none); with it, only if ``keep_classifier`` asks for that, since one of as many
    classes may be another dataset's. A new classifier is drawn from torch's global generator.

    Raises:
        ConfigError: an unknown or unsuitable model, an impossible image size, a checkpoint that does not
            fit, or weights that would need a network there is not.
    """
    model, weights = _build(config), config.checkpoint
    if weights is None and config.name == "embedded" and config.pretrained:
        weights = EMBEDDED_WEIGHTS
    if weights is not None:
        _load_weights(model, config, weights)
    return model


def _build(config: ModelConfig) -> Backbone:
    """Build a model without local weights, for images as the folder of its checkpoint says, if there is one."""
    size = config.image_size or (size_of(config.checkpoint) if config.checkpoint else None)
    if config.name == "embedded":
        size = size or 32
        _check_image_size(size, patch_size=4)
        arguments = _arguments(config) | {"drop_path_rate": config.drop_path}
        model: Backbone = embedded_vit(config.num_classes or 0, size, **arguments)
        pretrained_cfg(model).update(mean=EMBEDDED_MEAN, std=EMBEDDED_STD)
    else:
        model = _create_timm(config, size)
    if config.checkpoint is not None:
        pretrained_cfg(model).update(inputs_of(config.checkpoint))
    return model


def architecture_of(checkpoint: Path, key: str | None = None) -> str:
    """Name the architecture that a local checkpoint belongs to, as ``model.name`` takes it.

    Args:
        checkpoint: a file, or a folder that has one.
        key: which of the weights in it, as ``model.checkpoint_key``.

    Raises:
        ConfigError: no weights there, or weights of no model that is known here.
    """
    state, name = read_checkpoint(checkpoint, key), named_by(checkpoint)
    if name is None or not has_shapes_of(skeleton(name), state):
        name = _recognised(state)
    if name is None:
        raise unknown(checkpoint, state)
    return name


def _recognised(state: dict[str, Tensor]) -> str | None:
    """Name the likeliest architecture that has weights of such shapes."""
    if has_shapes_of(outline(ModelConfig(pretrained=False)), state):
        return "embedded"
    for name in candidates(state, TIMM_MODULES):
        try:
            if has_shapes_of(skeleton(name), state):
                return name
        except ConfigError:  # one that cannot be fine-tuned here
            continue
    return None


def outline(config: ModelConfig) -> Backbone:
    """Build a model on the meta device: its shapes, without memory or weights.

    Raises:
        ConfigError: an unknown or unsuitable model, or an impossible image size.
    """
    with shapes_alone():
        return _build(config.model_copy(update={"pretrained": False}))


def check_weights(config: ModelConfig) -> None:
    """Refuse pretrained weights that are neither on this machine nor to be had from the hub, before anything is built.

    Raises:
        ConfigError: an unknown or unsuitable model, or one whose weights cannot be had.
    """
    if config.name != "embedded" and config.checkpoint is None and config.pretrained:
        weights_source(config.name, pretrained_cfg(skeleton(config.name)))


def weights_fingerprint(config: ModelConfig) -> str | None:
    """Hash the file that a model's weights come from; None if they are drawn at random, or not on this machine.

    What a checkpoint's folder says of images and arguments counts too where it is not what the model's name stands for,
    which versions that did not read it have taken.
    """
    if config.checkpoint is not None:
        found = file_fingerprint(weights_file(config.checkpoint))
        if not read_card(config.checkpoint):
            return found
        own = config.model_copy(update={"checkpoint": None})
        spec, named, arguments = input_spec(outline(config)), input_spec(outline(own)), _arguments(config)
        if spec == named and not arguments:
            return found
        sized = {"image_size": spec.image_size} if spec.image_size != named.image_size else {}
        said = repr(inputs_of(config.checkpoint) | sized | arguments)
        return f"{found} and config.json {hashlib.sha256(said.encode()).hexdigest()[:8]}"
    if not config.pretrained:
        return None
    file = EMBEDDED_WEIGHTS if config.name == "embedded" else cached(pretrained_cfg(skeleton(config.name)))
    return None if file is None else file_fingerprint(file)


def _create_timm(config: ModelConfig, size: int | None) -> Backbone:
    arguments = _arguments(config)
    outlined = _with_arguments(config, arguments) if arguments else skeleton(config.name)
    options: dict[str, Any] = {"dynamic_img_size": False, **arguments}  # one size, whose positions are computed once
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    if config.num_classes is not None:
        options["num_classes"] = config.num_classes
    if size is not None:
        _check_image_size(size, outlined.patch_embed.patch_size[0])
        options["img_size"] = size
    if config.checkpoint is not None or not config.pretrained:
        model = timm.create_model(config.name, pretrained=False, **options)
    else:
        cfg = pretrained_cfg(outlined)
        overlay = weights_source(config.name, cfg)
        if config.num_classes == cfg["num_classes"] and not config.keep_classifier:
            overlay["num_classes"] = -1  # as if it had another number of classes: timm leaves its classifier out
        elif config.keep_classifier and config.num_classes not in {None, cfg["num_classes"]}:
            raise _other_classifier(config, cfg["num_classes"])
        try:
            model = timm.create_model(config.name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:  # whichever HTTP client, cache or file format failed, the remedy is the same
            raise no_weights(config.name, f"could not be loaded ({type(error).__name__}: {error})") from error
    assert isinstance(model, Backbone)
    rope: Any = getattr(model, "rope", None)
    if getattr(rope, "aug_active", False):
        rope.aug_active = False  # positions drawn anew in each block would fit no image
    return model


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """Get what timm builds a checkpoint's model with beside its name; the embedded one always has its own shape."""
    found = {} if config.checkpoint is None else arguments_of(config.checkpoint)
    if config.name != "embedded":
        return found
    if odd := {name: value for name, value in found.items() if EMBEDDED_SHAPE.get(name) != value}:
        remedy = f"its config.json has model_args = {odd}, and the embedded model none; set model.name to what it is of"
        raise ConfigError("model.checkpoint", config.checkpoint, remedy)
    return {}


def _with_arguments(config: ModelConfig, arguments: dict[str, Any]) -> Backbone:
    """Build a checkpoint's architecture without memory, with its arguments."""
    try:
        return skeleton(config.name, **arguments)
    except ConfigError:
        raise
    except Exception as error:  # whatever timm makes of what it does not know
        remedy = f"its config.json has model_args = {arguments}, with which timm builds no {config.name} ({error})"
        raise ConfigError("model.checkpoint", config.checkpoint, f"{remedy}; mend it, or set model.name") from error


def skeleton(name: str, **arguments: Any) -> Backbone:
    """Build a timm architecture without memory.

    Args:
        name: as timm has it.
        arguments: of timm's besides.

    Raises:
        ConfigError: an unknown model, or one that no method can work on.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = [model for module in TIMM_MODULES for model in timm.list_models(module=module)]
        close = difflib.get_close_matches(architecture, ["embedded", *known], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "deit_small_patch16_224 is one, embedded another"
        raise ConfigError("model.name", name, f"timm has no such model; {hint}")
    if not is_model_in_modules(architecture, TIMM_MODULES):
        raise ConfigError("model.name", name, "is no plain timm Vision Transformer; take deit_small_patch16_224, say")
    try:
        with shapes_alone():
            model = timm.create_model(name, pretrained=False, **arguments)
    except RuntimeError as error:
        tags = [model.partition(".")[2] for model in timm.list_models(f"{architecture}.*", pretrained=True)]
        if not tag or tag in tags:
            raise
        raise ConfigError("model.name", name, f"no such weights; after the dot goes {shorten_list(tags)}") from error
    assert isinstance(model, Backbone)

    def refuse(what: str, instead: str) -> ConfigError:
        return ConfigError("model.name", name, f"{what}; take {instead}")

    if isinstance(model, VisionTransformerDistilled):
        raise refuse("has a distillation token and two classifiers", architecture.replace("_distilled", ""))
    if type(model.patch_embed) is not PatchEmbed:
        raise refuse(f"embeds patches by {type(model.patch_embed).__name__}", "vit_base_patch16_224, say")
    if not model.global_pool:
        raise refuse("does not classify", "vit_base_patch16_224, say")
    return model


def _check_image_size(size: int, patch_size: int) -> None:
    if size % patch_size:
        low = size // patch_size * patch_size
        choice = f"{low} or {low + patch_size}" if low >= 8 else f"{low + patch_size}"
        raise ConfigError("model.image_size", size, f"is no multiple of the patch size {patch_size}; give {choice}")


def _other_classifier(config: ModelConfig, classes: int) -> ConfigError:
    theirs = f"a classifier of {classes} classes" if classes else "no classifier"
    remedy = f"the weights have {theirs}, and {config.num_classes} classes are wanted; leave it out"
    return ConfigError("model.keep_classifier", True, remedy)


def _load_weights(model: Backbone, config: ModelConfig, path: Path) -> None:
    """Load a local checkpoint strictly; only a classifier that is not to be kept may be missing or of another size."""
    name, given = config.name, read_checkpoint(path, config.checkpoint_key)
    try:
        state = in_timms_names(dict(given), model)
    except Exception as error:  # the conversions assume a family of models and fail in many ways on others
        other = _recognised(given)
        remedy = f"set model.name to {other}" if other else "give weights of it"
        raise ConfigError("model.checkpoint", path, f"does not fit {name} ({error}); {remedy}") from error
    reader = read_of(state)
    if reader and (config.num_classes is None or (config.keep_classifier and config.num_classes == reader[1])):
        attach_reader(model, *reader)
    expected = model.state_dict()
    classifier = {key: value for key, value in state.items() if key.startswith(("head.", PREFIX))}
    fits = bool(classifier) and all(
        key in expected and expected[key].shape == value.shape for key, value in classifier.items()
    )
    classes = reader[1] if reader else len(classifier.get("head.weight", ()))
    if config.keep_classifier and not fits:
        raise _other_classifier(config, classes)
    if classifier and not (fits and (config.keep_classifier or config.num_classes is None)):
        keeps = "; model.keep_classifier: true keeps it" if fits else ""
        _LOG.info("model.checkpoint = %s: its classifier of %d classes is left out%s", path, classes, keeps)
        state = {key: value for key, value in state.items() if key not in classifier}
    missing = [key for key in expected if key not in state and not key.startswith("head.")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    faults = {"lacks": missing, "has too many": unexpected, "has of another shape": misshapen}
    said = "; ".join(f"{fault} {shorten_list(keys)}" for fault, keys in faults.items() if keys)
    if said:
        raise ConfigError(
            "model.checkpoint", path, f"{said}; give weights of {name}, or set model.name to what they belong to"
        )
    if quantised := [f"{key} ({value.dtype})" for key, value in state.items() if not value.is_floating_point()]:
        remedy = f"has integers for {shorten_list(quantised)}; give the weights from before they were quantised"
        raise ConfigError("model.checkpoint", path, remedy)
    if broken := [key for key, value in state.items() if not value.float().isfinite().all()]:
        raise ConfigError(
            "model.checkpoint", path, f"is not finite in {shorten_list(broken)}; give an intact state dict"
        )
    model.load_state_dict(state, strict=False)
