"""Fine-tuning methods, one a file, behind one protocol."""

from timm.models.vision_transformer import VisionTransformer

from alast_tune.config import AlastConfig, MethodConfig, TrainConfig
from alast_tune.methods.alast import Alast
from alast_tune.methods.base import Method, StepPlan
from alast_tune.methods.freezing import Fixed

__all__ = ["Alast", "Fixed", "Method", "StepPlan", "build_method"]


def build_method(config: MethodConfig, model: VisionTransformer, train: TrainConfig | None = None) -> Method:
    """Wrap a model for fine-tuning; ``train`` gives alpha's default (its learning rate) and the seed.

    Raises:
        ConfigError: settings that do not fit the model.
    """
    train = train or TrainConfig()
    if isinstance(config, AlastConfig):
        alpha = train.learning_rate if config.alpha is None else config.alpha
        return Alast(config, model, alpha, train.seed)
    return Fixed(model, head_only=config.name == "head")
