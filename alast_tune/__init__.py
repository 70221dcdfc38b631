"""ALaST fine-tuning of Vision Transformers, and the search for its best settings.

    sweep = alast_tune.sweep("/data/pets", max_memory="6GiB")
    sweep = alast_tune.open("runs/pets")

Every name is loaded when it is asked for: ``import alast_tune`` alone imports no torch, Ray, Optuna or MLflow.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alast_tune.api import Sweep, open_sweep, sweep
    from alast_tune.config import MethodConfig, SweepConfig, TrialConfig, register_method
    from alast_tune.data import register_dataset
    from alast_tune.methods import build_method
    from alast_tune.models import create_model
    from alast_tune.train import fit
    from alast_tune.tune.study import run_sweep

    open = open_sweep  # noqa: A001 alast_tune.open reads well, and hides nothing outside this module

__version__ = "0.1.0"

# bitsandbytes, which peft imports wherever it is installed, misses a kernel that nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "MethodConfig": "config.MethodConfig",
    "Sweep": "api.Sweep",
    "SweepConfig": "config.SweepConfig",
    "TrialConfig": "config.TrialConfig",
    "build_method": "methods.build_method",
    "create_model": "models.create_model",
    "fit": "train.fit",
    "open": "api.open_sweep",
    "register_dataset": "data.register_dataset",
    "register_method": "config.register_method",
    "run_sweep": "tune.study.run_sweep",
    "sweep": "api.sweep",
}
"""Each name -> module and name that it is loaded from."""

# Without open: `from alast_tune import *` would take the place of Python's own.
__all__ = [
    "MethodConfig",
    "Sweep",
    "SweepConfig",
    "TrialConfig",
    "build_method",
    "create_model",
    "fit",
    "register_dataset",
    "register_method",
    "run_sweep",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*_HOMES, "__version__"})
