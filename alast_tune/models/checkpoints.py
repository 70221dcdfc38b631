"""Other people's checkpoints: which file, which of the weights in it, and whose prefixes around their names.

The order is that of ``timm.models.load_state_dict``: averaged weights (EMA) first, since published accuracies are
theirs. Nothing in a file is ever run: objects beside the weights are read as inert placeholders.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from alast_tune.errors import ConfigError
from alast_tune.text import shorten_list

_LOG = logging.getLogger(__name__)

WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher"),
    *("state_dict", "model", "module", "model_state_dict", "model_state", "net", "weights", "student", "encoder"),
)
"""Under which names training programs keep weights: averaged ones first, as a teacher's, which are its student's."""
_AVERAGED = WRAPPERS[: WRAPPERS.index("state_dict")]

FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""What a folder's weights are called, as timm and the hub write them."""

_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ANCHORS = ("patch_embed.proj.weight", "visual.class_embedding")
"""Names of which a model has one: what stands before it stands before all the names of that model."""


class _Inert:
    """Stands for an object that is no weight: takes whatever its pickle wants to put into it, and forgets it."""

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """Stands for a mapping of a kind of its own, a defaultdict say; torch puts things into its own kinds only."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return OrderedDict()


def weights_file(path: Path) -> Path:
    """Find the file that a checkpoint is: itself, or the weights in a folder.

    Raises:
        ConfigError: there is none.
    """
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            remedy = f"this folder has neither {FILES[0]} nor {FILES[1]}; give the file that has the weights"
            raise ConfigError("model.checkpoint", path, remedy)
        return found
    if not path.is_file():
        raise ConfigError("model.checkpoint", path, "no such file; give one of safetensors or torch.save, or a folder")
    return path


def file_fingerprint(file: Path) -> str:
    """Hash a file's bytes, wherever it lies, to 16 hexadecimal digits (of SHA-256)."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict out of whatever training programs put around it, and log what was chosen and left out.

    Args:
        path: of the file or its folder.
        key: which of the weights in it, where the file has several: names of wrappers and prefixes, dots between.

    Raises:
        ConfigError: no weights, not such that can be read safely, or several of equal right.
    """
    loaded = _load(weights_file(path), path)
    if key is None:
        name, found = _choose(loaded, path)
    else:
        name, found = key, _follow(loaded, key, path)
    state = {_plain(name): value for name, value in found.items() if _is_weight(value)}
    if not state:
        raise ConfigError("model.checkpoint", path, "holds no state dict; save model.state_dict()")
    wrapped = sum(name in WRAPPERS and _holds_weights(value) for name, value in loaded.items())
    if key is not None or wrapped > 1 or _is_averaged(name):
        _LOG.info("model.checkpoint = %s: took %s, of %s", path, name, shorten_list([str(entry) for entry in loaded]))
    state = _without_prefix(clean_state_dict(state), path)
    decoder = [name for name in state if name.startswith("decoder_")]
    if decoder:
        decoder += state.keys() & {"mask_token"}
        _LOG.info("model.checkpoint = %s: left out the decoder of pre-training (%s)", path, shorten_list(decoder))
    return {name: value for name, value in state.items() if name not in decoder}


def _load(file: Path, path: Path) -> Mapping[str, Any]:
    """Read a file of safetensors, told by its header, or of ``torch.save``."""
    try:
        with file.open("rb") as opened:
            header = opened.read(9)
        if header[8:] == b"{":
            return load_file(file)
        loaded = _load_pickle(file)
    except Exception as error:  # unpickling rubbish raises nearly anything
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # torch says much before
        reason = said.partition("\n")[0][:200] or type(error).__name__
        remedy = f"cannot be read as plain weights ({reason}); give an intact state dict"
        raise ConfigError("model.checkpoint", path, remedy) from error
    if not isinstance(loaded, Mapping):
        raise ConfigError("model.checkpoint", path, "holds no state dict; save model.state_dict()")
    return loaded


def _load_pickle(file: Path) -> Any:
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # the format before torch 1.6
        strange = ["argparse.Namespace"]
    with torch.serialization.safe_globals(
        [(_InertDict if "dict" in name.lower() else _Inert, name) for name in strange]
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _choose(loaded: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any]]:
    """Unwrap weights, averaged ones first; returns the names of the wrappers, dots between, too."""
    names: list[str] = []
    while True:
        inside = {name: value for name, value in loaded.items() if _holds_weights(value)}
        name = next((name for name in WRAPPERS if name in inside), None)
        if name is None and not any(_is_weight(value) for value in loaded.values()):
            if len(inside) > 1:
                remedy = f"holds {shorten_list(list(inside))}; say which by model.checkpoint_key"
                raise ConfigError("model.checkpoint", path, remedy)
            name = next(iter(inside), None)
        if name is None:
            return ".".join(names), loaded
        names.append(name)
        loaded = inside[name]


def _follow(loaded: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    """Go by a key through wrappers, and then prefixes."""
    rest = key
    while rest:
        inside = [n for n, value in loaded.items() if isinstance(value, Mapping) and f"{rest}.".startswith(f"{n}.")]
        if inside:
            loaded, rest = loaded[inside[0]], rest.removeprefix(inside[0]).removeprefix(".")
            continue
        found = {n.removeprefix(f"{rest}."): value for n, value in loaded.items() if str(n).startswith(f"{rest}.")}
        if not found:
            there = shorten_list(sorted({str(name).partition(".")[0] for name in loaded}), 8)
            raise ConfigError("model.checkpoint_key", key, f"{path} has no such weights; it has {there}")
        return found
    return _choose(loaded, path)[1]


def _is_weight(value: Any) -> bool:
    """Whether a value is a tensor with dimensions; those without any are counters and scores."""
    return isinstance(value, Tensor) and value.ndim > 0


def _holds_weights(value: Any) -> bool:
    """Whether there is a mapping with named weights in it; an optimizer's moments have numbers for names."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and "optim" not in name and (_is_weight(item) or _holds_weights(item))
        for name, item in value.items()
    )


def _is_averaged(name: str) -> bool:
    return any(part in _AVERAGED for part in name.split("."))


def _plain(name: str) -> str:
    """Take away what compiling and sharding put into a name, wherever it is."""
    for infix in _INFIXES:
        name = name.replace(infix, "")
    return name


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take off the prefix of the model's own names; what stands outside of it belongs to something else."""
    prefixes = {name.removesuffix(anchor) for name in state for anchor in _ANCHORS if name.endswith(anchor)}
    averaged = {prefix for prefix in prefixes if _is_averaged(prefix)}
    chosen = averaged if len(prefixes) > 1 and len(averaged) == 1 else prefixes
    if len(chosen) > 1:
        remedy = f"holds several models: {shorten_list(sorted(chosen))}; say which by model.checkpoint_key"
        raise ConfigError("model.checkpoint", path, remedy)
    prefix = next(iter(chosen), "")
    if not prefix:
        return state
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        _LOG.info("model.checkpoint = %s: took %s, left out %s", path, prefix.rstrip("."), shorten_list(others))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
