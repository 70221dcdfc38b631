"""Processes that torchrun has started for one training: all share each batch, the first one prints and writes.

They meet at torchrun's store. What one process does before the others may begin (verify the images, say) may take as
long as it likes: the process group, whose collectives run into a timeout, is made when all of them are ready.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alast_tune.config import TrainConfig
from alast_tune.errors import ConfigError, WorkersError

_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
_FAILED, _READY = "failed", "ready"

PULSE = 0.1
"""Seconds between two looks at whether the first process is ready."""


def launched_rank() -> int | None:
    """Give this process's number among those that torchrun has started; None if it has not started this one."""
    return int(os.environ["RANK"]) if os.environ.keys() >= _VARIABLES else None


class Launched:
    """The processes that torchrun has started, or this one alone.

    Args:
        train: says on which device they train; each takes a card of its own.

    Raises:
        ConfigError: there are more processes on this machine than cards.
    """

    def __init__(self, train: TrainConfig) -> None:
        self.rank, self.size = 0, 1
        self._store: Any = None
        if launched_rank() is None:
            return
        import torch  # seconds, as what follows
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        from alast_tune.device import device_of

        store, self.rank, self.size = next(rendezvous("env://"))
        self._store, self._of_group = PrefixStore("alast-tune", store), PrefixStore("group", store)
        self._options: dict[str, Any] = {"backend": "gloo"}
        if device_of(train).type == "cuda":
            card, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if card >= cards:
                remedy = f"each process takes a GPU, and this machine has {cards}; start no more, or train.device cpu"
                raise ConfigError("nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", card + 1), remedy)
            torch.cuda.set_device(card)
            self._options = {"backend": "nccl", "device_id": torch.device("cuda", card)}

    @contextmanager
    def group(self) -> Iterator[None]:
        """Be a process group inside, as soon as the first process has come here."""
        if self._store is None:
            yield
            return
        from torch import distributed

        if self.rank == 0:
            self._store.set(_READY, "")
        while not self._store.check([_READY]):
            if self._store.check([_FAILED]):
                raise WorkersError("another process has failed")
            time.sleep(PULSE)
        distributed.init_process_group(**self._options, store=self._of_group, rank=self.rank, world_size=self.size)
        yield
        distributed.destroy_process_group()  # after an error this might wait for a process that has died

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Let the process that fails first say why; the others, which fail because of that, end without a word."""
        if self._store is None:
            yield
            return
        from torch.distributed import DistError

        try:
            yield
        except KeyboardInterrupt:
            if self.rank:
                raise SystemExit(130) from None
            raise
        except Exception as error:
            try:
                first = self._store.add(_FAILED, 1) == 1
            except DistError:  # the process that hosts the store has ended
                first = self.rank == 0
            if not first:
                raise SystemExit(1) from None
            if isinstance(error, DistError) or "gloo" in str(error):
                lost = "another process, or the way to it, was lost; the same command goes on from the last checkpoint"
                raise WorkersError(lost) from error
            raise
