"""Models without memory: shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset(
    {Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_, init.uniform_, init.kaiming_uniform_}
)
"""What torch and timm draw weights by. Where these have no memory, torch works each of them out in Python."""


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Build models on the meta device, and draw nothing for them, which takes most of the time otherwise."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]  # as torch.nn.init hands it on
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
