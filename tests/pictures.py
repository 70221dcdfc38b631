"""Made-up pictures, for whatever needs an image folder."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    folder: Path, count: int, size: tuple[int, int] = (20, 12), suffix: str = ".jpg", seed: int = 0, top: int = 256
) -> None:
    """Write so many pictures of noise, 000, 001, ..., no channel of which reaches ``top``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, count])
    for index in range(count):
        Image.fromarray(generator.integers(0, top, (*size, 3), np.uint8)).save(folder / f"{index:03d}{suffix}")


def write_two_classes(root: Path) -> None:
    """Write a divided image folder of a dark and a light class: 16, 8 and 4 pictures of each."""
    for seed, (part, count) in enumerate((("train", 16), ("val", 8), ("test", 4))):
        for name, top in (("dark", 200), ("light", 256)):
            write_images(root / part / name, count, (16, 16), ".png", seed, top)
