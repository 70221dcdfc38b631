"""GELU that keeps 4 bits an element for its backward, in place of the element.

Its forward is exact. Its backward takes the derivative from one of 16 ranges of the input, in the manner of Approx-BP
(Yang et al. 2024), whose ReGELU2 has four.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alast_tune.errors import ConfigError
from alast_tune.models.backbone import Backbone, blocks_of

_LEVELS, _REACH = 16, 1.6
"""Ranges of one width in [-1.6, 1.6], where the derivative rises; what lies outside is in the first and the last."""


class ApproximateGelu(nn.GELU):
    """GELU whose backward knows the input to 4 bits; where nothing learns, GELU as it is."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as its parent calls it
        """Compute GELU."""
        if not (torch.is_grad_enabled() and input.requires_grad):
            return F.gelu(input)
        output: Tensor = _Gelu.apply(input)
        return output


class _Gelu(torch.autograd.Function):
    """Forward: GELU. Backward: the gradient times the mean derivative in the input's range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        code = x.mul(_LEVELS / (2 * _REACH)).add_(_LEVELS / 2).clamp_(0, _LEVELS - 1).to(torch.uint8).view(-1, 2)
        ctx.save_for_backward(code[:, 1].mul(_LEVELS).add_(code[:, 0]))
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (code,) = ctx.saved_tensors
        (gradient,) = gradients
        # Two numbers at a time, whose bits are looked up as one of twice the size.
        two = torch.float64 if gradient.element_size() == 4 else torch.float32
        pairs = _slopes().to(gradient.device, gradient.dtype).view(two).flatten()
        return pairs.index_select(0, code.int()).view(gradient.dtype).view(gradient.shape).mul_(gradient)


@cache
def _slopes() -> Tensor:
    """Give the derivatives of two elements for each byte, (256, 2): the mean over each element's range."""
    edges = torch.linspace(-_REACH, _REACH, _LEVELS + 1, dtype=torch.float64)
    slopes = F.gelu(edges).diff() / edges.diff()
    tail = F.gelu(torch.tensor([-3.0, -_REACH, _REACH, 3.0], dtype=torch.float64)).diff()[::2] / (3.0 - _REACH)
    slopes[0], slopes[-1] = (slopes[0] + tail[0]) / 2, (slopes[-1] + tail[1]) / 2
    byte = torch.arange(_LEVELS**2)
    return torch.stack([slopes[byte % _LEVELS], slopes[byte // _LEVELS]], dim=1)


def set_activations(model: Backbone, kind: Literal["exact", "approximate"]) -> None:
    """Put a GELU of a kind into every block's MLP, in place; weights and logits stay as they are.

    Raises:
        ConfigError: the model has no GELU there, or one of another kind.
    """
    for block in blocks_of(model):
        mlp: Any = getattr(block, "mlp", None)
        act = getattr(mlp, "act", None)
        if kind == "exact" and isinstance(act, ApproximateGelu):
            mlp.act = nn.GELU()
        if kind == "approximate":
            if not isinstance(act, nn.GELU) or act.approximate != "none" or mlp.fc1.out_features % 2:
                remedy = f"the model's blocks have {type(act).__name__} in their MLPs, no GELU; leave it out"
                raise ConfigError("train.activations", kind, remedy)
            mlp.act = ApproximateGelu()
