"""Pretrained weights: in a cache on this machine, or from the hub if that answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache

from alast_tune.errors import ConfigError

HUB_TIMEOUT = 5.0
"""Seconds the hub may take to answer before it counts as out of reach."""


def no_weights(name: str, what: str) -> ConfigError:
    """Make the error of weights that cannot be had."""
    return ConfigError(
        "model.pretrained",
        True,
        f"the weights of {name} {what}; set model.checkpoint to a local .safetensors or .pth file, "
        "or HF_HOME to a Hugging Face cache that has them",
    )


def weights_source(name: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Find pretrained weights in the hub's cache, or make sure that the hub answers.

    Returns:
        An overlay of timm's ``pretrained_cfg``: the cached file, or nothing where timm must download.

    The hub's client retries for most of a minute when there is no network, and asks it even for files it
    has in its cache; so it is called only after one short question has been answered.
    """
    if not (cfg.get("hf_hub_id") or cfg.get("url")):
        remedy = f"timm has no weights of {name}; set model.checkpoint, or model.pretrained to false"
        raise ConfigError("model.pretrained", True, remedy)
    if not cfg.get("hf_hub_id"):
        return {}
    if file := cached(cfg):
        # custom_load is about the original .npz files, which the hub's are not
        return {"file": str(file), "custom_load": False}
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception as error:  # requests, httpx or offline mode, depending on the hub's version
        where = constants.ENDPOINT
        raise no_weights(name, f"are not in the cache, and {where} is out of reach ({error})") from error
    return {}


def cached(cfg: Mapping[str, Any]) -> Path | None:
    """Find the file of pretrained weights on this machine, in the hub's cache or torch's; None if it is not there."""
    if not cfg.get("hf_hub_id"):
        file = Path(torch.hub.get_dir(), "checkpoints", cfg["url"].rpartition("/")[2]) if cfg.get("url") else None
        return file if file and file.is_file() else None
    repository, _, revision = cfg["hf_hub_id"].partition("@")
    chosen = cfg.get("hf_hub_filename")
    for filename in [chosen] if chosen else ["model.safetensors", "pytorch_model.bin"]:
        found = try_to_load_from_cache(repository, filename, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    return None
