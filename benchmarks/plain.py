"""One training step beside the loops that people would write instead: plain timm and torch, plain timm and peft.

    python benchmarks/plain.py --model deit_small_patch16_224 --batch 16

Both sides train the same weights on the same images with the same optimizer. Steps are interleaved, and the median of
each round's ratio counts. *Peak* is that of live tensors (MemTracker) on a CPU, the allocator's on a GPU, of one more
step; weights, moments and images are in it on both. *Losses differ by* is the most that the two sides' losses differ
over all steps: they do the same work. Needs neither Ray nor MLflow.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import peft
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from alast_tune.config import ModelConfig, TrainConfig, TrialConfig, parse
from alast_tune.cost.memory import track_live_bytes
from alast_tune.methods import build_method
from alast_tune.models import create_model

RANK = 8
CLASSES = 10


class Side:
    """One way to take a training step.

    Args:
        model: whose trainable parameters are updated.
        forward: images to logits.
        around: called before and after a step.
    """

    def __init__(
        self, model: nn.Module, forward: Callable[[Tensor], Tensor], around: tuple[Callable[[int], None], ...] = ()
    ) -> None:
        self._model, self._forward, self._around = model, forward, around
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, 1e-4, fused=True)
        self.losses: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Train a step; returns its seconds."""
        synchronise(images)
        started = time.perf_counter()
        if self._around:
            self._around[0](len(self.losses))
        loss = F.cross_entropy(self._forward(images), labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._around:
            self._around[1](len(self.losses))
        synchronise(images)
        seconds = time.perf_counter() - started
        self.losses.append(loss.item())
        return seconds

    def peak_bytes(self, images: Tensor, labels: Tensor) -> int:
        """Train a step and give its peak."""
        if images.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(images, labels)
            return torch.cuda.max_memory_allocated() - before + self.resident_bytes(images)
        with track_live_bytes(self._model, self._optimizer, images) as peak:
            self.step(images, labels)
        return peak[0]

    def resident_bytes(self, images: Tensor) -> int:
        """Bytes of weights, moments and images; the other side's are on the device, too."""
        moments = [value for state in self._optimizer.state.values() for value in state.values()]
        tensors = (*self._model.parameters(), *self._model.buffers(), *moments, images)
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def ours(name: str, method: dict[str, Any], device: str, size: int | None) -> Side:
    """This package's step."""
    torch.manual_seed(0)
    config = ModelConfig(name=name, pretrained=False, num_classes=CLASSES, image_size=size)
    built = build_method(parse(TrialConfig, {"method": method}).method, create_model(config), TrainConfig())
    built.model.to(device).train()
    return Side(built.model, built.forward, (built.begin_step, lambda step: built.end_step()))


def timm_model(name: str, size: int | None) -> nn.Module:
    """Build a model, weights at random."""
    options: dict[str, Any] = {"img_size": size} if size else {}
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
    return model


def plain_full(name: str, device: str, size: int | None) -> Side:
    """Full fine-tuning as timm's and torch's documentation has it."""
    torch.manual_seed(0)
    model = timm_model(name, size).to(device).train()
    return Side(model, model)


def plain_lora(name: str, device: str, size: int | None) -> Side:
    """LoRA as peft's documentation has it for image classification, on the layers that ours adapts."""
    torch.manual_seed(0)
    model = timm_model(name, size)
    targets = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    settings = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, modules_to_save=["head"])
    wrapped: Any = peft.get_peft_model(model, settings)
    return Side(wrapped.to(device).train(), wrapped)


def synchronise(images: Tensor) -> None:
    """Wait for the accelerator, if there is one."""
    if images.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm name (weights at random)")
    parser.add_argument("--image-size", type=int, help="pixels; default: the model's own")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="for torch")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    where = options.model, options.device, options.image_size
    lora = {"name": "lora", "rank": RANK, "lora_alpha": 2.0 * RANK}
    pairs = {
        "full": (ours(options.model, {"name": "full"}, *where[1:]), plain_full(*where)),
        "lora": (ours(options.model, lora, *where[1:]), plain_lora(*where)),
    }
    side = options.image_size or timm.get_pretrained_cfg(options.model).input_size[-1]  # type: ignore[union-attr]
    torch.manual_seed(1)
    images = torch.randn(options.batch, 3, side, side, device=options.device)
    labels = torch.randint(0, CLASSES, (options.batch,), device=options.device)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"{options.model}, batch {options.batch}, {device}", title_justify="left")
    for column in ("", "ours, ms", "plain, ms", "time, ours / plain", "peak, ours / plain", "losses differ by"):
        table.add_column(column, justify="left" if not column else "right")
    for name, sides in pairs.items():
        seconds: list[list[float]] = [[], []]
        for number in range(options.rounds + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                took = sides[which].step(images, labels)
                if number:  # the first one warms up
                    seconds[which].append(took)
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        peaks = [each.peak_bytes(images, labels) for each in sides]
        differ = max(abs(a - b) for a, b in zip(*(each.losses for each in sides), strict=True))
        medians = [f"{1e3 * statistics.median(each):.0f}" for each in seconds]
        table.add_row(name, *medians, f"{ratio:.3f}", f"{peaks[0] / peaks[1]:.3f}", f"{differ:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
