"""Every setting of a trial and of a sweep, as frozen records that refuse unknown keys.

YAML or JSON in, JSON out. A path into a record, as the command line (``--trial.train.epochs``)
and the search space (``method/alpha``) write it, is the chain of field names.
"""

from alast_tune.config.methods import (
    READINGS,
    Adapters,
    AlastConfig,
    AplaConfig,
    BlockChoice,
    BsrConfig,
    Floors,
    FullConfig,
    HeadConfig,
    LoraConfig,
    MethodConfig,
    TomeConfig,
    TopKConfig,
)
from alast_tune.config.promoted import PromotedConfig, Provenance
from alast_tune.config.record import Record, flatten, given_file, parse, read_mapping, write_yaml
from alast_tune.config.sweep import (
    Choice,
    Distribution,
    FloatRange,
    IntRange,
    Limits,
    SweepConfig,
    Variants,
    choices_of,
    stored_sweep,
)
from alast_tune.config.trial import (
    PLACES,
    DataConfig,
    ModelConfig,
    TrainConfig,
    TrialConfig,
    apply_params,
    with_absolute_paths,
    without_places,
)

__all__ = [
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
    "FullConfig",
    "HeadConfig",
    "IntRange",
    "Limits",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "PromotedConfig",
    "Provenance",
    "Record",
    "SweepConfig",
    "TomeConfig",
    "TopKConfig",
    "TrainConfig",
    "TrialConfig",
    "Variants",
    "apply_params",
    "choices_of",
    "flatten",
    "given_file",
    "parse",
    "read_mapping",
    "stored_sweep",
    "with_absolute_paths",
    "without_places",
    "write_yaml",
]
