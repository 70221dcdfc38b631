"""What a setting is where nobody gives it: pure functions of numbers of images, of the model and of the machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from alast_tune.data import batch_count

LARGEST_SIDE = 224
"""Pixels that images get at most: backbones of larger ones take smaller ones for a fraction of the cost."""
LEAST_PATCHES = 4
"""Of an image's side: with fewer there is hardly a token to drop."""

BATCHES = (8, 128)
"""The smallest and the largest batch; the largest is the paper's."""
STEPS_PER_EPOCH = 32
"""Training steps that an epoch should have: the batch is made small enough, down to the smallest allowed."""

EPOCHS = (4, 20)
"""The fewest, from which on trials are stopped early, and the most, which is the paper's."""
STEPS = {True: 1000, False: 300}
"""Training steps that a trial gets about: on a card, and on CPUs, where they take some ten times as long."""

HEADROOM = 0.75
"""Of a card's or the machine's memory, what the peak of full fine-tuning may take: allocators waste some."""

LOADERS = 4
"""Processes that decode images for a card at most; on CPUs threads do."""


@dataclass(frozen=True)
class Machine:
    """What trials run on."""

    cpus: int
    memory_bytes: int
    """Main memory that is free; 0: nobody knows."""
    card_bytes: int = 0
    """Memory of the smallest CUDA device; 0: there is none."""
    bf16: bool = False
    """Whether that device computes in bfloat16."""

    @property
    def limit_bytes(self) -> float:
        """What a trial's peak may take here."""
        return HEADROOM * (self.card_bytes or self.memory_bytes) or math.inf


def image_side(own: int, patch: int, side: int) -> int:
    """Choose the side of the images that the model gets, pixels, a multiple of ``patch``.

    Args:
        own: the model's own side.
        patch: side of its patches.
        side: median of the images' shorter sides.
    """
    most = own if own <= LARGEST_SIDE else max(1, LARGEST_SIDE // patch) * patch
    return min(most, max(LEAST_PATCHES, -(-side // patch)) * patch)


def batch_size(images: int, peak_bytes: Callable[[int], float], limit_bytes: float) -> int:
    """Choose a batch: a power of two that leaves an epoch enough steps, and full fine-tuning enough memory.

    Args:
        images: to train on.
        peak_bytes: of full fine-tuning, by batch.
        limit_bytes: that the peak may reach; a batch is not made smaller than the smallest for it.
    """
    least, most = BATCHES
    batch = min(most, max(least, 1 << max(0, int(math.log2(max(1, images / STEPS_PER_EPOCH))))))
    while batch > least and peak_bytes(batch) > limit_bytes:
        batch //= 2
    return batch


def epoch_count(images: int, batch: int, steps: int) -> int:
    """Choose the number of epochs whose training steps come to about ``steps``."""
    least, most = EPOCHS
    return min(most, max(least, -(-steps // batch_count(images, batch))))


def loader_count(machine: Machine) -> int:
    """Choose how many processes decode images for a trial."""
    return min(LOADERS, machine.cpus // 2) if machine.card_bytes else 0
