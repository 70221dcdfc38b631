"""How training changes from epoch to epoch: the share of tokens that enter, and the size of the images."""

from __future__ import annotations

from dataclasses import dataclass

from alast_tune.config import TrainConfig


@dataclass(frozen=True)
class Phase:
    """What the steps of an epoch get of each image; epochs that get the same are one phase."""

    token_keep: float = 1.0
    """Share of the patch tokens that enter the first block."""


def phases_of(train: TrainConfig) -> tuple[Phase, ...]:
    """Give the phase of each epoch."""
    return tuple(Phase(_share(train, epoch)) for epoch in range(train.epochs))


def _share(train: TrainConfig, epoch: int) -> float:
    if train.token_keep_last is None:
        return train.token_keep
    done = epoch / (train.epochs - 1)
    return train.token_keep * (1 - done) + train.token_keep_last * done
