"""Fine-tuning methods, one a file, behind one protocol."""

from alast_tune.config import (
    AlastConfig,
    AplaConfig,
    BsrConfig,
    FullConfig,
    HeadConfig,
    LoraConfig,
    MethodConfig,
    TomeConfig,
    TopKConfig,
    TrainConfig,
)
from alast_tune.errors import ConfigError
from alast_tune.methods.alast import Alast, AlastFlow, drawable_blocks
from alast_tune.methods.apla import Apla
from alast_tune.methods.base import Flow, Method, StepPlan
from alast_tune.methods.bsr import Bsr
from alast_tune.methods.dropping import Dropping
from alast_tune.methods.freezing import Full, Head, TopK, most_influential, with_blocks_chosen
from alast_tune.methods.lora import Lora
from alast_tune.methods.tome import Merging, Tome
from alast_tune.models.backbone import Backbone, blocks_of

__all__ = [
    "Alast",
    "Apla",
    "Bsr",
    "Full",
    "Head",
    "Lora",
    "Method",
    "StepPlan",
    "Tome",
    "TopK",
    "budget_rate",
    "build_method",
    "compile_blocks",
    "drawable_blocks",
    "flow_of",
    "most_influential",
    "with_blocks_chosen",
]


def build_method(config: MethodConfig, model: Backbone, train: TrainConfig | None = None) -> Method:
    """Wrap a model for fine-tuning; ``train`` gives alpha's default (its learning rate) and the seed.

    Raises:
        ConfigError: settings that do not fit the model, blocks that are still to be explored, or micro-batches where
            budgets learn within a forward, which would see but the first.
    """
    train = train or TrainConfig()
    match config:
        case AlastConfig():
            return Alast(config, model, budget_rate(config, train), train.seed)
        case FullConfig():
            return Full(config, model)
        case HeadConfig():
            return Head(config, model)
        case TopKConfig():
            return TopK(config, model)
        case BsrConfig():
            return Bsr(config, model)
        case TomeConfig():
            return Tome(config, model)
        case LoraConfig():
            return Lora(config, model)
        case AplaConfig():
            return Apla(config, model, train.seed)


def flow_of(config: MethodConfig, model: Backbone) -> Flow:
    """Give the training forward of a method on a model that the method has prepared."""
    match config:
        case AlastConfig():
            return AlastFlow(config, model)
        case BsrConfig():
            return Dropping(config, model)
        case TomeConfig():
            return Merging(config, model)
        case _:
            return Flow(config, model)


def budget_rate(config: AlastConfig, train: TrainConfig) -> float:
    """Give alpha, by default the learning rate.

    Raises:
        ConfigError: micro-batches where budgets learn within a forward, which would see but the first.
    """
    alpha = train.learning_rate if config.alpha is None else config.alpha
    if train.accumulate > 1 and alpha and config.budget_timing == "same_step":
        remedy = "same-step budgets learn from the whole batch; leave it out, or set method.budget_timing: next_step"
        raise ConfigError("train.accumulate", train.accumulate, remedy)
    return alpha


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
        for module in (block.attn, block.mlp) if isinstance(method, Tome) else (block,):
            module.compile(dynamic=True)
