"""Data sets for the tests of data/: made-up pictures, and what is loaded from them."""

import pytest
import torch

from alast_tune.config import DataConfig
from alast_tune.data import load_splits, prepare
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec

SPEC = InputSpec(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def load(dataset, **fields):
    return load_splits(DataConfig(dataset=dataset, **fields), SPEC)


def all_of(split):
    return split.__getitems__(list(range(len(split))))[0]


def seen(loader):
    """A loader's batches as a model sees them."""
    return ((prepare(images, torch.device("cpu")), labels) for images, labels in loader)


def files_of(split):
    return [split.source.item(index) for index in split.indices]


def refusal(dataset, **fields):
    with pytest.raises(ConfigError) as caught:
        load(dataset, **fields)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{caught.value.field} = ")
    return text
