"""Pretrain the embedded backbone on Fashion-MNIST: ``python -m alast_tune.embedded.pretrain``.

Writes ``backbone.safetensors`` (half precision, no classifier) and ``CARD.md`` next to this
file. Data: Debian's package ``dataset-fashion-mnist``, or any folder with its four files.
Resumable: ``--work`` keeps one checkpoint an epoch. About 25 minutes on two CPU cores.
"""

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from alast_tune.models import EMBEDDED_MEAN, EMBEDDED_STD, embedded_vit
from alast_tune.storage import atomic_write

HERE = Path(__file__).parent
BATCH, PEAK_RATE, WEIGHT_DECAY, SMOOTHING = 256, 1.5e-3, 0.05, 0.1
MASKED_EPOCHS, FULL_EPOCHS = 12, 3  # half of the patches dropped, then all kept
MASKED_RATE = 0.5

CARD = """\
# Embedded backbone

A small Vision Transformer that makes `just demo` work without a network: 12 blocks, width 80,
5 heads, patch 4, 32x32 RGB input, class token; {parameters:,} parameters without the classifier,
stored in half precision (`backbone.safetensors`, {size:.1f} MB). A plain timm `VisionTransformer`.

| | |
| --- | --- |
| data | Fashion-MNIST, 60,000 training images, 28x28 grey, repeated to three channels and padded to 32x32 |
| data licence | MIT (Zalando SE), as packaged by Debian's `dataset-fashion-mnist` |
| licence of the weights | Apache-2.0, as the rest of this package |
| normalisation | mean {mean}, standard deviation {std}, every channel |
| recipe | {masked} epochs with half of the patch tokens dropped at random, then {full} with all of them; AdamW, peak rate {rate}, weight decay {decay}, cosine with one warm-up epoch, batch {batch}, label smoothing {smoothing}, random crop and horizontal flip, seed {seed} |
| accuracy | {accuracy:.4f} on the 10,000 test images (all tokens; classifier then discarded) |
| time | {minutes:.0f} minutes, {threads} CPU threads |
| made by | `python -m alast_tune.embedded.pretrain` |

It knows clothes at low resolution and little else: a vehicle for tests, demonstrations and search
benchmarks, not a model to deploy.
"""


def read_idx(path: Path) -> Tensor:
    """Read one gzipped IDX file of bytes: images (n, 28, 28) or labels (n,), uint8."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    return torch.from_numpy(data.copy())


def to_input(images: Tensor) -> Tensor:
    """Normalise grey bytes (B, H, W) to three channels (B, 3, H, W), float32."""
    grey = (images.float() / 255 - EMBEDDED_MEAN[0]) / EMBEDDED_STD[0]
    return grey[:, None].expand(-1, 3, -1, -1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crop 32x32 at random from images (B, 28, 28) padded to 36x36, and flip half of them."""
    batch = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 5, (2, batch), generator=generator)
    rows = top[:, None] + torch.arange(32)
    columns = left[:, None] + torch.arange(32)
    flip = torch.rand(batch, generator=generator) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    return padded[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of correct answers on images (n, 28, 28), all tokens."""
    model.eval()
    padded = F.pad(images, (2, 2, 2, 2))
    right = sum(
        int((model(to_input(x)).argmax(1) == y).sum())
        for x, y in zip(padded.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


def main() -> None:
    """Train, resuming from ``--work`` where there is something, and write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder (apt install dataset-fashion-mnist)")
    images, labels, test_images, test_labels = (
        read_idx(options.data / f"{part}-ubyte.gz")
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    )
    labels, test_labels = labels.long(), test_labels.long()

    torch.manual_seed(options.seed)
    model = embedded_vit(num_classes=10, patch_drop_rate=MASKED_RATE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, lr=PEAK_RATE)
    epochs, steps = MASKED_EPOCHS + FULL_EPOCHS, len(labels) // BATCH

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / steps)
        return warm * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, first, seconds = options.work / "pretrain.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first, seconds = state["epoch"], state["seconds"]

    for epoch in range(first, epochs):
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        torch.manual_seed(options.seed * 1000 + epoch)  # timm's patch dropout draws from the global one
        if epoch >= MASKED_EPOCHS:
            model.patch_drop = nn.Identity()  # type: ignore[assignment]
        model.train()
        started = time.monotonic()
        order = torch.randperm(len(labels), generator=generator)[: steps * BATCH]
        for batch in order.split(BATCH):
            logits = model(to_input(augment(images[batch], generator)))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        seconds += time.monotonic() - started
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"scheduler": scheduler.state_dict(), "epoch": epoch + 1, "seconds": seconds}
        with atomic_write(checkpoint) as scratch:
            torch.save(state, scratch)
        print(json.dumps({"epoch": epoch + 1, "loss": round(loss.item(), 4), "seconds": round(seconds)}), flush=True)

    model.patch_drop = nn.Identity()  # type: ignore[assignment]
    score = accuracy(model, test_images, test_labels)
    model.reset_classifier(0)
    target = HERE / "backbone.safetensors"
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, target)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        size=target.stat().st_size / 1e6,
        mean=EMBEDDED_MEAN[0],
        std=EMBEDDED_STD[0],
        masked=MASKED_EPOCHS,
        full=FULL_EPOCHS,
        rate=PEAK_RATE,
        decay=WEIGHT_DECAY,
        batch=BATCH,
        smoothing=SMOOTHING,
        seed=options.seed,
        accuracy=score,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
    )
    (HERE / "CARD.md").write_text(card)
    print(json.dumps({"test_accuracy": score, "written": str(target)}))


if __name__ == "__main__":
    main()
