"""What people read of a run: numbers of six digits, units of theirs, and which images it was trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from alast_tune.config import DataConfig
from alast_tune.results import OBJECTIVES
from alast_tune.storage import display_path

FLOPS_PERCENT, MEMORY_PERCENT, PEAK_GIB = "flops_percent_of_full", "memory_percent_of_full", "peak_gib"
"""Metrics: costs beside those of full fine-tuning, and the peak in GiB."""

_DIGITS = 6
_LONGEST = 10
"""A number that takes more characters is written with ``_DIGITS``."""

_IMAGES = (
    "dataset",
    "root",
    "columns",
    "split_seed",
    "test_fraction",
    "train_images",
    "validation_fraction",
    "all_data",
)
"""Settings that say which images there are, and which of them are trained on."""


def readable_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Round metrics to six digits, and add the peak in GiB.

    Whole numbers, such as FLOPs and bytes, stay exact as far as a float is. What is not finite, which ruins MLflow's
    charts, is left out.
    """
    found = {name: _rounded(value) for name, value in metrics.items() if math.isfinite(value)}
    if "peak_bytes" in found:
        found[PEAK_GIB] = float(f"{found['peak_bytes'] / 2**30:.4g}")
    return found


def readable_param(value: object) -> str:
    """Write a parameter's value, a long real number with six digits."""
    text = str(value)
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) and len(text) > _LONGEST else text


def percent_of_full(values: Sequence[float], full: Sequence[float]) -> dict[str, float]:
    """Put a trial's costs in proportion to those of full fine-tuning, in percent.

    Args:
        values: of the trial, in the order of ``OBJECTIVES``.
        full: of full fine-tuning.
    """
    names = [objective.name for objective in OBJECTIVES]
    metrics = {"train_flops": FLOPS_PERCENT, "peak_bytes": MEMORY_PERCENT}
    return {
        metrics[name]: round(100 * value / whole, 1)
        for name, value, whole in zip(names, values, full, strict=True)
        if name in metrics and whole > 0
    }


def dataset_of(data: DataConfig, fingerprint: str | None) -> dict[str, str]:
    """Describe the images of a run as MLflow lists data sets; empty where their fingerprint is not known."""
    if fingerprint is None:
        return {}
    found = {"name": data.root.name if data.dataset == "folder" and data.root else data.dataset, "digest": fingerprint}
    if data.root is None:
        package = {"digits": "scikit-learn"}.get(data.dataset, data.dataset)  # torchvision's have a root
        return found | {"source_type": "code", "source": json.dumps({"tags": {"mlflow.source.name": package}})}
    return found | {"source_type": "local", "source": json.dumps({"uri": display_path(data.root)})}


def same_images(data: DataConfig, other: DataConfig) -> bool:
    """Whether two configurations mean the same images, divided in the same way: then one fingerprint is both's."""
    return all(getattr(data, name) == getattr(other, name) for name in _IMAGES)


def _rounded(value: float) -> float:
    return float(value) if float(value).is_integer() and abs(value) < 2**53 else float(f"{value:.{_DIGITS}g}")
