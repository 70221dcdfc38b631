"""What a finished run did with its blocks, and what they do now: read from its checkpoint."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alast_tune.config import TrialConfig
from alast_tune.cost import STEPS
from alast_tune.errors import ConfigError
from alast_tune.methods.summary import scores_of, summary_updates, why_no_scores
from alast_tune.models import InputSpec, input_spec
from alast_tune.models.backbone import Backbone, embed, run_block, token_count
from alast_tune.run import Run, load_trial
from alast_tune.storage import atomic_write

COLUMNS = 200
"""Points in time at most that budgets are shown at; longer runs are averaged over equal stretches."""

SHOWN, MEASURED = 4, 64
"""Validation images whose attention is shown, and over which the relative magnitude is averaged."""


@dataclass(frozen=True)
class BlockReport:
    """A run, block by block: L blocks, S points in time, I images, A blocks whose attention is shown."""

    steps_S: NDArray[np.float64]
    """Middle of each stretch of steps, from 0."""
    budgets_SL: NDArray[np.float64]
    """Mean budget over each stretch; (0, L) for a method that has none."""
    trained_L: NDArray[np.float64]
    """Share of the steps in which each block trained."""
    tokens_L: NDArray[np.float64]
    """Mean number of tokens that each block processed."""
    all_tokens: int
    """Of an image, class token and registers counted."""
    before_L: NDArray[np.float64]
    """Relative magnitude |f(x)| / |f(x) + x| of the class token's update before fine-tuning (figure 2)."""
    after_L: NDArray[np.float64]
    """The same after it."""
    images_IHWC: NDArray[np.uint8]
    """Validation images of different classes, as far as there are."""
    attended: tuple[int, ...]
    """The A blocks: in the middle of the early, middle and late third; none where no attention scores tokens."""
    attention_AIhw: NDArray[np.float64]
    """Share of the class token's attention that each patch gets, mean over heads (figure 4)."""

    def write(self, path: Path) -> None:
        """Write it to a file, atomically."""
        with atomic_write(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> BlockReport:
        """Read what :meth:`write` has written."""
        with np.load(path) as arrays:
            values: dict[str, Any] = dict(arrays)
        return cls(**values | {"all_tokens": int(values["all_tokens"]), "attended": tuple(values["attended"].tolist())})


def report_blocks(config: TrialConfig, folder: Path) -> BlockReport:
    """Read a checkpoint's steps, and look at validation images with its weights and with those it began with.

    Args:
        config: of the run.
        folder: of its checkpoint.

    Raises:
        ConfigError: as :meth:`~alast_tune.run.Run.load`; the lines of some steps are lost.
    """
    before, splits = load_trial(config, verify=False)
    run = Run(config, verify=False)
    run.load(folder)
    with run.averaged():
        after = copy.deepcopy(run.method.export())
    spread = np.linspace(0, len(splits.validation) - 1, min(MEASURED, len(splits.validation)), dtype=int)
    images_BCHW, _ = splits.validation.__getitems__(spread.tolist())
    shown = _of_different_classes(splits.validation.labels)
    seen_BCHW, _ = splits.validation.__getitems__(shown)
    depth = len(before.blocks)
    middles = dict.fromkeys((2 * third + 1) * depth // 6 for third in range(3))
    attended = () if why_no_scores(after) else tuple(middles)
    if lost := run.meter.ledger.unknown:
        raise ConfigError("checkpoint", folder, f"its {STEPS} lacks the first {lost} steps; train anew to see blocks")
    records = [record for record in run.meter.ledger.read() if not record.probe]
    stretches = np.array_split(np.arange(len(records)), min(COLUMNS, len(records)))
    budgets = np.array([record.budgets_L for record in records], dtype=np.float64).reshape(len(records), -1)
    return BlockReport(
        steps_S=np.array([stretch.mean() for stretch in stretches]),
        budgets_SL=np.array([budgets[stretch].mean(axis=0) for stretch in stretches if budgets.size]).reshape(
            -1, depth
        ),
        trained_L=np.mean([record.trainable_L for record in records], axis=0),
        tokens_L=np.mean([record.tokens_L for record in records], axis=0),
        all_tokens=token_count(before),
        before_L=_magnitudes(before.to(run.device), images_BCHW.to(run.device)),
        after_L=_magnitudes(after, images_BCHW.to(run.device)),
        images_IHWC=_pixels(seen_BCHW, input_spec(before)),
        attended=attended,
        attention_AIhw=_attention(after, seen_BCHW.to(run.device), attended),
    )


def _pixels(images_BCHW: Tensor, spec: InputSpec) -> NDArray[np.uint8]:
    """Undo the normalisation."""
    mean_C, std_C = torch.tensor(spec.mean), torch.tensor(spec.std)
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1) * std_C + mean_C
    pixels: NDArray[np.uint8] = (255 * pixels_BHWC.clamp(0, 1)).round().to(torch.uint8).numpy()
    return pixels


def _of_different_classes(labels: Tensor) -> list[int]:
    """Choose a few images, the first of each class until there are enough."""
    _, first = np.unique(labels.numpy(), return_index=True)
    order = [*sorted(first.tolist()), *(index for index in range(len(labels)) if index not in first)]
    return order[:SHOWN]


@torch.no_grad()
def _magnitudes(model: Backbone, images_BCHW: Tensor) -> NDArray[np.float64]:
    model.eval()
    magnitudes: NDArray[np.float64] = summary_updates(model, embed(model, images_BCHW))[0].double().cpu().numpy()
    return magnitudes


@torch.no_grad()
def _attention(model: Backbone, images_BCHW: Tensor, attended: tuple[int, ...]) -> NDArray[np.float64]:
    """Give the patches' scores, all tokens flowing, (A, I, h, w)."""
    model.eval()
    scores = scores_of(model) if attended else None
    maps = []
    x_BND = embed(model, images_BCHW)
    for index in range(len(model.blocks)):
        listens = index in attended
        if scores:
            scores.listen(listens)
        x_BND = run_block(model, index, x_BND)
        if scores and listens:
            scores_BP = scores.patches(index, x_BND, None)
            maps.append(scores_BP.reshape(len(scores_BP), *model.patch_embed.grid_size).double().cpu().numpy())
    return np.stack(maps) if maps else np.empty((0, len(images_BCHW), *model.patch_embed.grid_size))
