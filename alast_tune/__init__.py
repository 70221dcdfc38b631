"""ALaST fine-tuning of Vision Transformers, and the search for its best settings.

The training core needs neither Ray nor Optuna nor MLflow: ``run_sweep`` is loaded when asked for.
"""

from typing import TYPE_CHECKING, Any

from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.data import register_dataset
from alast_tune.methods import build_method
from alast_tune.models import create_model
from alast_tune.train import fit

if TYPE_CHECKING:
    from alast_tune.tune.study import run_sweep

__version__ = "0.1.0"

__all__ = ["SweepConfig", "TrialConfig", "build_method", "create_model", "fit", "register_dataset", "run_sweep"]


def __getattr__(name: str) -> Any:
    if name == "run_sweep":
        from alast_tune.tune.study import run_sweep

        return run_sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
