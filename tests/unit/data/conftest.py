"""Folders of made-up pictures."""

import pytest

from tests.pictures import write_images


@pytest.fixture
def flat(tmp_path):
    """An image folder that nobody has split: three classes of 10, 15 and 20."""
    root = tmp_path / "flat"
    for name, count in (("ant", 10), ("bee", 15), ("cat", 20)):
        write_images(root / name, count)
    return root


@pytest.fixture
def divided(tmp_path):
    """An image folder with train, val and test."""
    root = tmp_path / "divided"
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        for seed, name in enumerate(("ant", "bee")):
            write_images(root / part / name, count, seed=seed)
    return root
