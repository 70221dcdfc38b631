"""Real modules run on tensors that have a shape, a type and a storage, but whose numbers nobody computes.

torch itself decides what is allocated, saved for the backward and freed again: autograd, autocast and the choice of a
fused attention are its own, on CPU tensors. Only the kernels are left out. What an operation would return is asked of
torch's meta device, once for each combination of shapes.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from alast_tune.config import MethodConfig
from alast_tune.methods.parameters import parameters_to_train
from alast_tune.models.backbone import Backbone, blocks_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_results: dict[object, tuple[Any, int]] = {}
"""What an operation returns and its FLOPs, by operation, shapes and other arguments."""
_aliasing: set[object] = set()
"""Operations that return a view, though their schema does not say so."""


class Hollow(TorchDispatchMode):
    """Leaves out the kernels of what runs inside; notes FLOPs (as torch's counter does), allocations and frees."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: list[int] = []
        """Of every storage, in order: positive as it is allocated, negative as it is freed."""
        self.flops: list[int] = []
        """Of every operation that torch's counter counts."""
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.is_mutable:
            return next(a for a, given in zip(args, schema.arguments, strict=False) if _is_written(given))
        if func in _aliasing or any(one.alias_info is not None for one in schema.returns):
            return func(*args, **kwargs)
        key = func, _described(args), _described(tuple(kwargs.items()))
        if key not in _results:
            made = _on_meta(func, args, kwargs)
            if func in _aliasing:
                return func(*args, **kwargs)
            _results[key] = made
        made, flops = _results[key]
        if flops:
            self.flops.append(flops)
        return tuple(map(self._new, made)) if isinstance(made, list) else self._new(made)

    def _new(self, like: tuple[Any, ...] | None) -> Tensor | None:
        if like is None:
            return None
        shape, stride, dtype = like
        tensor = torch.empty_strided(shape, stride, dtype=dtype)
        storage = tensor.untyped_storage()
        self.bytes.append(storage.nbytes())
        reference = weakref.ref(storage, self._freed)
        self._live[id(reference)] = reference, storage.nbytes()
        return tensor

    def _freed(self, reference: weakref.ref[Any]) -> None:
        self.bytes.append(-self._live.pop(id(reference))[1])


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _described(value: Any) -> Any:
    """Give what of an argument decides the results: of tensors all but the numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value


def _on_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
    """Ask the meta device what an operation returns; remember the operation if that is a view."""
    given: set[int] = set()

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            given.add(moved.untyped_storage()._cdata)
            return moved
        if isinstance(value, list | tuple):
            return type(value)(map(move, value))
        return torch.device("meta") if isinstance(value, torch.device) else value

    args, kwargs = move(args), {name: move(value) for name, value in kwargs.items()}
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs["device"] = torch.device("meta")
    out = func(*args, **kwargs)
    many = isinstance(out, list | tuple)
    outputs = list(out) if many else [out]
    if any(isinstance(one, Tensor) and one.untyped_storage()._cdata in given for one in outputs):
        _aliasing.add(func)
    made = [(tuple(o.shape), o.stride(), o.dtype) if isinstance(o, Tensor) else None for o in outputs]
    formula = flop_registry.get(func._overloadpacket)
    return made if many else made[0], int(formula(*args, **kwargs, out_val=out)) if formula else 0


class HollowModel:
    """A copy of a model without its numbers, on which its method's training forward can be run.

    Blocks that are alike, in their modules, shapes and which of their parameters may train, are one and the same here.

    Args:
        config: of the method.
        model: as the method has prepared it; stays as it is.
        image_size: side of the images, pixels.
    """

    def __init__(self, config: MethodConfig, model: Backbone, image_size: int) -> None:
        may = {id(p) for p in parameters_to_train(config, model)}
        memo: dict[int, Any] = {}
        for module in model.modules():
            memo |= {id(getattr(module, hooks)): OrderedDict() for hooks in _HOOKS}
            for p in module.parameters(recurse=False):
                memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), False)
            for b in module.buffers(recurse=False):
                memo[id(b)] = torch.empty(b.shape, dtype=b.dtype)
        alike: dict[object, nn.Module] = {}
        for block in blocks_of(model):
            kind = tuple(
                (name, type(module), *((of, p.shape, id(p) in may) for of, p in module.named_parameters(recurse=False)))
                for name, module in block.named_modules()
            )
            if kind not in alike:
                alike[kind] = copy.deepcopy(block, memo)
            memo[id(block)] = alike[kind]
        self.model: Backbone = copy.deepcopy(model, memo)
        self.flow = config.flow(self.model)
        rope: Any = getattr(self.model, "rope", None)
        buffers = rope.named_buffers() if rope is not None else ()
        count = (math.prod(rope.feat_shape),) if rope is not None else ()
        self._positions = [(rope, name, each.shape[1:]) for name, each in buffers if each.shape[:1] == count]
        if rope is not None:
            rope.feat_shape = model.patch_embed.dynamic_feat_size((image_size, image_size))
        used = {id(p) for p in self.model.parameters()}
        self._trainable = [p for p in map(memo.__getitem__, may) if id(p) in used]

    def prepare(self, block: nn.Module | None, trains: bool, accumulating: bool, patches: int) -> None:
        """Let train what may train, a frozen block left out.

        Args:
            block: the one that runs next.
            trains: whether it does.
            accumulating: gradients are there already.
            patches: of an image, by which rotary positions are made.
        """
        for rope, name, rest in self._positions:
            setattr(rope, name, torch.empty(patches, *rest))
        frozen = set() if block is None or trains else {id(p) for p in block.parameters()}
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) not in frozen)
            parameter.grad = torch.empty_like(parameter) if accumulating and parameter.requires_grad else None


class _Arrive(torch.autograd.Function):
    """Forward: a new tensor. Backward: says that its gradient has come."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, shape: Sequence[int], dtype: torch.dtype, came: Callable[[], None]) -> Tensor:
        ctx.came = came
        return torch.empty(tuple(shape), dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.came()
        return None, None, None, None


class _Depart(torch.autograd.Function):
    """Forward: nothing. Backward: makes the gradient that the rest of the step would send, and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: Callable[[], None]) -> Tensor:
        ctx.shape, ctx.dtype, ctx.sent = x.shape, x.dtype, sent
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = torch.empty(ctx.shape, dtype=ctx.dtype)
        ctx.sent()
        return gradient, None


def arrive(shape: Sequence[int], dtype: torch.dtype, requires_grad: bool, came: Callable[[], None]) -> Tensor:
    """Make what comes into a part of a step; ``came`` is called in the backward, as soon as its gradient is there."""
    if not requires_grad:
        return torch.empty(tuple(shape), dtype=dtype)
    arrived: Tensor = _Arrive.apply(torch.zeros((), requires_grad=True), shape, dtype, came)
    return arrived


def depart(x: Tensor, sent: Callable[[], None]) -> Tensor:
    """End a part of a step: the backward of what is returned begins with a gradient of x, and a call of ``sent``."""
    departed: Tensor = _Depart.apply(x, sent)
    return departed
