"""Data sets for the tests of data/: made-up pictures, and what is loaded from them."""

import numpy as np
import pytest
from PIL import Image

from alast_tune.config import DataConfig
from alast_tune.data import load_splits
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec

SPEC = InputSpec(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def load(dataset, **fields):
    return load_splits(DataConfig(dataset=dataset, **fields), SPEC)


def all_of(split):
    return split.__getitems__(list(range(len(split))))[0]


def refusal(dataset, **fields):
    with pytest.raises(ConfigError) as caught:
        load(dataset, **fields)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{caught.value.field} = ")
    return text


def write_images(folder, count, size=(20, 12), suffix=".jpg", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, count])
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index:03d}{suffix}")
