"""Data parallelism: every rank takes its share of each batch, and all of them hold the same plan.

A host that waits for its device lets this run dry: here are the two things for which a step would wait, and how not to.
Numbers are fetched late (:class:`LateTotals`); gradients are added up while the backward goes on (:func:`summed`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

BUCKET_BYTES = 25 * 2**20
"""Of gradients that are added up in one go, as in torch's DistributedDataParallel."""


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside of a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def ranks_on_this_machine() -> int:
    """How many ranks share this machine, by what launchers of process groups set; 1 outside of one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world()[1] > 1 else 1


def total_over_ranks(sums: Tensor, count: int) -> tuple[Tensor, int]:
    """Add up sums over images, and how many images they are over; unchanged with one rank."""
    if world()[1] == 1:
        return sums, count
    total = _added_up(sums, count)
    return total[:-1].reshape(sums.shape).to(sums.dtype), int(total[-1])


def _added_up(sums: Tensor, count: int) -> Tensor:
    """Give the totals over ranks, and behind them the count's, (n + 1,) float64; the host does not wait."""
    total = torch.cat([sums.reshape(-1).double(), sums.new_full((1,), count, dtype=torch.float64)])
    if world()[1] > 1:
        distributed.all_reduce(total)
    return total


class LateTotals:
    """Sums over the images of all ranks, on their way to the host, which waits for them only where it reads them.

    They arrive once the device has done what was queued before them. On a CPU they are there at once.

    Args:
        sums: (n,) over this rank's images.
        count: of these.
    """

    def __init__(self, sums: Tensor, count: int) -> None:
        self._dtype = sums.dtype
        self._totals = _added_up(sums, count)
        self._arrival: torch.cuda.Event | None = None
        if self._totals.is_cuda:
            host = torch.empty(self._totals.shape, dtype=torch.float64, pin_memory=True)
            self._totals = host.copy_(self._totals, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def read(self) -> tuple[Tensor, int]:
        """Give the totals, (n,) on the CPU, and the number of images."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._totals[:-1].to(self._dtype), int(self._totals[-1])


def largest_over_ranks(*values: int) -> tuple[int, ...]:
    """Take the largest of each value over all ranks; unchanged with one rank."""
    if world()[1] == 1:
        return values
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(values, dtype=torch.int64, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return tuple(largest.tolist())


@contextmanager
def summed(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run a step's last backward inside; on leaving, gradients are the sums of all ranks'.

    Each is queued as soon as the backward has it, in buckets, and the backward goes on meanwhile: what
    DistributedDataParallel does, without a search for the blocks that do not train at this step. Frozen parameters,
    which have no gradient, cost no traffic. All ranks hold the same plan, and so fill the same buckets. Gradients are
    added up where they are, without a copy.
    """
    if world()[1] == 1:
        yield
        return
    group, parameters = distributed.group.WORLD, list(parameters)
    assert group is not None
    bucket: list[Tensor] = []
    pending: list[distributed.Work] = []
    queued: set[int] = set()

    def send() -> None:
        pending.append(group.allreduce_coalesced([*bucket]))
        bucket.clear()

    def take(parameter: Tensor) -> None:
        if parameter.grad is not None and id(parameter) not in queued:
            queued.add(id(parameter))
            bucket.append(parameter.grad)
            if sum(gradient.nbytes for gradient in bucket) >= BUCKET_BYTES:
                send()

    hooks = [p.register_post_accumulate_grad_hook(take) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for parameter in parameters:
        take(parameter)  # what an earlier micro-batch alone has reached
    if bucket:
        send()
    for work in pending:
        work.wait()
