"""Data parallelism: every rank takes its share of each batch, and all of them hold the same plan."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed


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
    total = torch.cat([sums.reshape(-1).double(), sums.new_tensor([count], dtype=torch.float64)])
    distributed.all_reduce(total)
    return total[:-1].reshape(sums.shape).to(sums.dtype), int(total[-1])


def largest_over_ranks(*values: int) -> tuple[int, ...]:
    """Take the largest of each value over all ranks; unchanged with one rank."""
    if world()[1] == 1:
        return values
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(values, dtype=torch.int64, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return tuple(largest.tolist())


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all ranks in place; frozen parameters, which have none, cost no traffic."""
    if world()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for pending in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
        pending.wait()
