"""What autograd keeps for the backward, as it says itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Kept:
    """Storages saved for the backward, parameters and inputs left out, by the place where they were saved first."""

    def __init__(self, *left_out: Tensor) -> None:
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in left_out}
        self._held: list[Tensor] = []  # or an address could come again
        self._seen: set[int] = set()
        self.place = "outside"
        self.bytes: dict[str, int] = {}

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._left_out | self._seen:
            self._seen.add(storage.data_ptr())
            self._held.append(tensor.detach())
            self.bytes[self.place] = self.bytes.get(self.place, 0) + storage.nbytes()
        return tensor


@contextmanager
def watch(model: Any, *inputs: Tensor) -> Iterator[Kept]:
    """Count what is saved inside, and in which block."""
    kept = Kept(*model.parameters(), *model.buffers(), *inputs)

    def at(place: str) -> Any:
        return lambda *_: setattr(kept, "place", place)

    # The last block may not be called as a whole: it ends where the final norm begins.
    begins = [(getattr(block, "norm1", block), index) for index, block in enumerate(model.blocks)]
    handles = [module.register_forward_pre_hook(at(f"block {index}")) for module, index in begins]
    handles += [block.register_forward_hook(at("outside")) for block in model.blocks]
    handles.append(model.norm.register_forward_pre_hook(at("outside")))
    with torch.autograd.graph.saved_tensors_hooks(kept.save, lambda tensor: tensor):
        yield kept
    for handle in handles:
        handle.remove()
