"""Fine-tuning methods, one a file, behind one protocol."""

from alast_tune.config import MethodConfig, TrainConfig
from alast_tune.errors import ConfigError
from alast_tune.methods.activations import set_activations
from alast_tune.methods.adaptive import Alast
from alast_tune.methods.apla import Apla
from alast_tune.methods.base import Constant, Flow, Method, Stage, StepPlan
from alast_tune.methods.bsr import Bsr
from alast_tune.methods.freezing import most_influential, with_blocks_chosen
from alast_tune.methods.lora import Lora
from alast_tune.methods.tome import Tome
from alast_tune.models.backbone import Backbone, blocks_of
from alast_tune.models.reading import has_reader

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
        ConfigError: a model or settings that do not fit, blocks that are still to be explored, micro-batches where
            budgets learn within a forward, which would see but the first, or parameters that cannot be trained.
    """
    if has_reader(model):
        remedy = "the weights' classifier is a side reader, which cannot be trained further; leave it out"
        raise ConfigError("model.keep_classifier", True, remedy)
    if why := config.why_not(model):
        remedy = f"the model {why}; take another method or another model (alast-tune doctor --models lists them)"
        raise ConfigError("method.name", config.name, remedy)
    if config.from_block > (depth := len(blocks_of(model))):
        raise ConfigError("method.from_block", config.from_block, f"the model has {depth} blocks; give {depth} at most")
    train = train or TrainConfig()
    set_activations(model, train.activations)
    model.set_grad_checkpointing(train.checkpoint_blocks)  # run_block goes by it
    method = config.build(model, train)
    _check_parameters(method)
    return method


def _check_parameters(method: Method) -> None:
    """Refuse a method that trains nothing, something that the model does not have, or something twice.

    Raises:
        ConfigError: of these, the first that is met.
    """
    listed, has = [id(p) for p in method.parameters()], {id(p) for p in method.model.parameters()}
    if not listed:
        fault = "trains nothing: its trainable_parameters are none of this model's"
    elif not has.issuperset(listed):
        fault = "trains a parameter that is no part of the model; have it in one of the model's modules"
    elif len(set(listed)) < len(listed):
        fault = "lists a parameter twice, which would count twice; have trainable_parameters list each once"
    else:
        return
    raise ConfigError("method.name", method.config.name, fault)


def compile_blocks(method: Method) -> None:
    """Compile a method's blocks with torch.compile, whatever number of tokens they get.

    A block trains or not, a gradient has to pass it or not, its attention is listened to or not: some
    dozen variants, shared by all blocks, all of them met in the first steps and in the first evaluation.
    """
    import torch._dynamo  # a second to import, and only this needs it

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in blocks_of(method.model):
        for module in (block.attn, block.mlp) if method.config.splits_blocks() else (block,):
            module.compile(dynamic=True)
