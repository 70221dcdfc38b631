"""What a setting is where nobody gives it: pure functions of numbers of images, of the model and of the machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alast_tune.config import AlastConfig

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

RATES = {"embedded": (3e-4, 1e-3, 1e-2)}
PRETRAINED_RATES = (3e-5, 1e-4, 2e-3)
"""Learning rates: the least, that of the baselines, the highest, which adapters and classifiers want."""


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
    return min(most, max(least, -(-steps // -(-images // batch))))


def loader_count(machine: Machine) -> int:
    """Choose how many processes decode images for a trial."""
    return min(LOADERS, machine.cpus // 2) if machine.card_bytes else 0


def methods_to_try(blocks: int) -> dict[str, dict[str, Any]]:
    """Name the methods of a search over ALaST and its rivals, as ``variants``; full fine-tuning comes first.

    ALaST trains a quarter, half or three quarters of the blocks and lets 40, 60 or 80% of the tokens flow at first.
    """
    found: dict[str, dict[str, Any]] = {"full": {"name": "full"}}
    for count in sorted({max(1, blocks * quarters // 4) for quarters in (1, 2, 3)}):
        alast = {"name": "alast", "reading": "fast", "trainable_blocks": count}
        for keep in (0.4, 0.6, 0.8):
            found[f"alast K{count} keep {keep}"] = alast | {"target_budget": keep}
        found[f"alast K{count} keep 0.6 residual"] = alast | {"target_budget": 0.6, "frozen_backward": "residual"}
    most = {"name": "alast", "reading": "fast", "trainable_blocks": blocks, "target_budget": 0.6}
    found["alast lora keep 0.6"] = most | {"lora": {"rank": 8}}
    found["lora r8"] = {"name": "lora", "rank": 8}
    found["lora r32"] = {"name": "lora", "rank": 32, "lora_alpha": 64.0}
    found["apla"] = {"name": "apla"}
    found["tome 0.6"] = {"name": "tome", "target_flops": 0.6}
    found["top 3 blocks"] = {"name": "top_k", "count": min(3, blocks)}
    found["reader"] = {"name": "reader"}
    found["head"] = {"name": "head"}
    return found


def space_of(blocks: int, model_name: str, method: AlastConfig | None, any_method: bool) -> dict[str, Any]:
    """Choose what varies.

    Args:
        blocks: of the model.
        model_name: whose learning rates are searched.
        method: ALaST, if that was asked for: its own settings vary.
        any_method: no method was asked for: ALaST and its rivals are tried.
    """
    low, _, high = rates_of(model_name)
    rate = {"train/learning_rate": {"type": "float", "low": low, "high": high, "log": True}}
    if any_method:
        variants = {name: {"method": settings} for name, settings in methods_to_try(blocks).items()}
        return {"method": {"type": "variants", "variants": variants}} | rate
    if method is None:
        return rate
    return {
        "method/trainable_blocks": {"type": "int", "low": 1, "high": blocks},
        "method/target_budget": {"type": "float", "low": 0.3, "high": 1.0},
        "method/frozen_backward": {"type": "categorical", "choices": ["exact", "residual"]},
    } | rate


def rates_of(model_name: str) -> tuple[float, float, float]:
    """Choose learning rates for a model: see :data:`PRETRAINED_RATES`."""
    return RATES.get(model_name, PRETRAINED_RATES)
