"""Fine-tuning methods, one a file, behind one protocol."""

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.alast import Alast
from alast_tune.methods.apla import Apla
from alast_tune.methods.base import Constant, Flow, Method, Stage, StepPlan
from alast_tune.methods.bsr import Bsr
from alast_tune.methods.freezing import most_influential, with_blocks_chosen
from alast_tune.methods.lora import Lora
from alast_tune.methods.tome import Tome
from alast_tune.models.backbone import Backbone, blocks_of

__all__ = [
    "Alast",
    "Apla",
    "Bsr",
    "Constant",
    "Flow",
    "Lora",
    "Method",
    "Stage",
    "StepPlan",
    "Tome",
    "build_method",
    "compile_blocks",
    "most_influential",
    "with_blocks_chosen",
]


def build_method(config: MethodConfig, model: Backbone, train: TrainConfig | None = None) -> Method:
    """Wrap a model for fine-tuning; ``train`` gives alpha's default (its learning rate) and the seed.

    Raises:
        ConfigError: a model or settings that do not fit, blocks that are still to be explored, or micro-batches where
            budgets learn within a forward, which would see but the first.
    """
    if why := config.why_not(model):
        remedy = f"the model {why}; take another method or another model (alast-tune doctor --models lists them)"
        raise ConfigError("method.name", config.name, remedy)
    return config.build(model, train or TrainConfig())


def compile_blocks(method: Method) -> None:
    """Compile a method's blocks with torch.compile, whatever number of tokens they get.

    A block trains or not, a gradient has to pass it or not, its attention is listened to or not: some
    dozen variants, shared by all blocks, all of them met in the first steps and in the first evaluation.
    """
    import torch._dynamo  # a second to import, and only this needs it

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in blocks_of(method.model):
        # ToMe goes between a block's halves, so these are compiled one by one.
        for module in (block.attn, block.mlp) if method.config.splits_blocks else (block,):
            module.compile(dynamic=True)
