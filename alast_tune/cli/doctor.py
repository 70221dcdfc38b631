"""``alast-tune doctor``: the machine as this package sees it."""

from __future__ import annotations

import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel, Field
from rich.console import Console

from alast_tune.config import find_method, method_names
from alast_tune.errors import ConfigError
from alast_tune.plots import human_bytes
from alast_tune.terminal import describe


class Doctor(BaseModel):
    """Say what machine, devices and versions are seen.

    Example: alast-tune doctor
    """

    models: bool = Field(False, description="list instead which of timm's models can be fine-tuned, by which methods")

    def cli_cmd(self) -> None:
        """Print a table, or a line a model."""
        if self.models:
            list_models()
        else:
            Console().print(describe(machine(), "alast-tune doctor"))


def list_models() -> None:
    """Print a line a model, as soon as it has been looked at, and a count for each method."""
    from alast_tune.methods.support import all_support  # torch and timm take seconds to import

    count, accepted = 0, Counter[str]()
    for support in all_support():
        print(support, flush=True)
        count += 1
        accepted.update(support.methods)
    print(f"of {count} models: {', '.join(f'{method} {models}' for method, models in accepted.items())}")


def machine() -> dict[str, object]:
    """Collect versions, processors, memory and devices, without starting or connecting to anything."""
    import torch

    from alast_tune.data import known_datasets
    from alast_tune.data.machine import available_bytes, cpu_count, limit_threads, memory_bytes

    seen: dict[str, object] = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("alast-tune", "torch", "torchvision", "timm", "ray", "optuna", "mlflow", "datasets"):
        try:
            seen[package] = version(package)
        except PackageNotFoundError:
            seen[package] = "not installed"
    seen["data sets"] = ", ".join(known_datasets())
    seen["methods"] = ", ".join(method_names())
    for method in method_names():
        try:
            find_method(method)
        except ConfigError as error:
            seen[f"method {method}"] = str(error)
    seen["CPUs"] = cpu_count()
    seen["torch threads"] = limit_threads()
    seen["memory"] = f"{human_bytes(memory_bytes())}, {human_bytes(available_bytes())} of it available"
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    seen["GPUs"] = ", ".join(f"{d.name} ({human_bytes(d.total_memory)})" for d in devices) or "none"
    for name in (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "HF_HOME",
        "HF_HUB_OFFLINE",
    ):
        seen[name] = os.environ.get(name, "not set")
    return seen
