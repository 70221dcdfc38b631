"""Every setting of a trial and of a sweep, as frozen records that refuse unknown keys.

YAML or JSON in, JSON out. A path into a record, as the command line (``--trial.train.epochs``)
and the search space (``method/alpha``) write it, is the chain of field names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alast_tune.config.amounts import flops_of, seconds_of
from alast_tune.config.effects import check_effects, check_sweep_effects
from alast_tune.config.methods import MethodConfig, find_method, known_methods, method_names, register_method
from alast_tune.config.promoted import PromotedConfig, Provenance
from alast_tune.config.record import (
    FrontName,
    Record,
    RunId,
    SweepName,
    TrialId,
    as_config_error,
    as_plain_values,
    flatten,
    given_file,
    parse,
    read_mapping,
    write_yaml,
)
from alast_tune.config.space import (
    Choice,
    Distribution,
    FloatRange,
    IntRange,
    Parameter,
    Variants,
    check_point,
    choices_of,
    combinations,
    ends_of,
    in_force,
    is_conditional,
    parameters,
    point_of,
    setting_of,
    size_of,
)
from alast_tune.config.sweep import AUTO, Limits, SweepConfig, stored_sweep
from alast_tune.config.train import Precision, TrainConfig
from alast_tune.config.trial import (
    PLACES,
    DataConfig,
    ModelConfig,
    TrialConfig,
    apply_params,
    with_absolute_paths,
    with_whole_images,
    without_places,
)

if TYPE_CHECKING:
    from alast_tune.methods.alast import READINGS, AlastConfig, Floors
    from alast_tune.methods.apla import AplaConfig
    from alast_tune.methods.bsr import BsrConfig
    from alast_tune.methods.freezing import BlockChoice, FullConfig, HeadConfig, TopKConfig
    from alast_tune.methods.lora import Adapters, LoraConfig
    from alast_tune.methods.reader import ReaderConfig
    from alast_tune.methods.tome import TomeConfig

__all__ = [
    "AUTO",
    "PLACES",
    "READINGS",
    "Adapters",
    "AlastConfig",
    "AplaConfig",
    "BlockChoice",
    "BsrConfig",
    "Choice",
    "DataConfig",
    "Distribution",
    "FloatRange",
    "Floors",
    "FrontName",
    "FullConfig",
    "HeadConfig",
    "IntRange",
    "Limits",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "Parameter",
    "Precision",
    "PromotedConfig",
    "Provenance",
    "ReaderConfig",
    "Record",
    "RunId",
    "SweepConfig",
    "SweepName",
    "TomeConfig",
    "TopKConfig",
    "TrainConfig",
    "TrialConfig",
    "TrialId",
    "Variants",
    "apply_params",
    "as_config_error",
    "as_plain_values",
    "check_effects",
    "check_point",
    "check_sweep_effects",
    "choices_of",
    "combinations",
    "ends_of",
    "find_method",
    "flatten",
    "flops_of",
    "given_file",
    "in_force",
    "is_conditional",
    "known_methods",
    "method_names",
    "parameters",
    "parse",
    "point_of",
    "read_mapping",
    "register_method",
    "seconds_of",
    "setting_of",
    "size_of",
    "stored_sweep",
    "with_absolute_paths",
    "with_whole_images",
    "without_places",
    "write_yaml",
]

_OF_METHODS = {
    "alast": ("READINGS", "AlastConfig", "Floors"),
    "apla": ("AplaConfig",),
    "bsr": ("BsrConfig",),
    "freezing": ("BlockChoice", "FullConfig", "HeadConfig", "TopKConfig"),
    "lora": ("Adapters", "LoraConfig"),
    "reader": ("ReaderConfig",),
    "tome": ("TomeConfig",),
}
"""Our methods' files, which import torch -> what of theirs can be had here, once somebody asks for it."""


def __getattr__(name: str) -> Any:
    for module, names in _OF_METHODS.items():
        if name in names:
            return getattr(import_module(f"alast_tune.methods.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
