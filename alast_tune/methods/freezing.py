"""Methods that fix once and for all what trains: everything, or the classifier alone."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from alast_tune.methods.base import StepPlan, set_trainable, token_count


class Fixed:
    """The model's own forward, all tokens; either all parameters train or the classifier's only."""

    def __init__(self, model: VisionTransformer, *, head_only: bool) -> None:
        self.model = model
        self._trained = list(model.head.parameters() if head_only else model.parameters())
        depth = len(model.blocks)
        self._plan = StepPlan((token_count(model),) * depth, (not head_only,) * depth)
        set_trainable(model.parameters(), False)
        set_trainable(self._trained, True)

    @property
    def plan(self) -> StepPlan:
        """The same for every step."""
        return self._plan

    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return self._trained

    def begin_step(self, step: int) -> None:
        """Nothing to decide."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """timm's forward."""
        logits: Tensor = self.model(images_BCHW)
        return logits

    def end_step(self) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""
