"""What a sweep or a training started from: fingerprints of its images and of its weights, and who measures it.

Kept in its folder. Places of files may change, and what lies there may not: results of other images or weights do not
compare, and neither do those of another meter.
"""

from __future__ import annotations

from pathlib import Path

from alast_tune.config import ModelConfig, Record, parse, read_mapping
from alast_tune.data import Splits, fingerprint
from alast_tune.errors import ConfigError
from alast_tune.models import weights_fingerprint
from alast_tune.storage import atomic_write

FILE = "fingerprints.json"
METER = 2
"""Raised whenever the same step is counted otherwise. 2: the last block computes the class token alone."""


class Fingerprints(Record):
    """Of what training starts from."""

    data: str
    """Of the splits."""
    weights: str | None
    """Of the file with the weights; None if they are drawn at random."""
    meter: int = METER
    """Version of the meter that counts its FLOPs and peaks."""

    def remedy(self, found: Fingerprints) -> str:
        """Say what to do about differences: images and weights can be put back, and a meter cannot."""
        if (self.data, self.weights) == (found.data, found.weights):
            return "use the version of alast-tune that counted so"
        return "put them back"

    def differences(self, found: Fingerprints) -> str:
        """Say what of these is something else now, with both fingerprints; empty if nothing is."""
        pairs = {"data": (self.data, found.data), "starting weights": (self.weights, found.weights)}
        return ", ".join(
            f"other {what} (fingerprint {now or 'none'}, not {then or 'none'})"
            for what, (then, now) in pairs.items()
            if now != then
        ) or (
            f"FLOPs counted in another way (meter {found.meter}, not {self.meter})" if found.meter != self.meter else ""
        )


def fingerprints(splits: Splits, model: ModelConfig) -> Fingerprints:
    """Take the fingerprints of a run's images and weights."""
    return Fingerprints(data=fingerprint(splits), weights=weights_fingerprint(model))


def read_fingerprints(folder: Path) -> Fingerprints | None:
    """Read what a folder's sweep or training started from; None if it was begun before that was kept."""
    file = folder / FILE
    return parse(Fingerprints, {"meter": 1} | read_mapping(file)) if file.exists() else None


def keep_fingerprints(found: Fingerprints, folder: Path, field: str, *, new: bool = False) -> None:
    """Write down what a sweep or training starts from, or refuse to go on with other images, weights or another meter.

    Args:
        found: here and now.
        folder: of the sweep or training.
        field: setting to name in a refusal.
        new: nothing has been trained in the folder yet.

    Raises:
        ConfigError: something is different, or nobody knows what it was begun with.
    """
    if new:
        with atomic_write(folder / FILE) as scratch:
            scratch.write_text(found.model_dump_json(indent=2) + "\n")
        return
    before = read_fingerprints(folder)
    if before is None:  # all versions that left it out had the first meter
        why = f"has no {FILE}: the version of alast-tune that began it counted FLOPs in another way"
        raise ConfigError(field, folder, f"{why}; use that version, or start anew")
    if differences := before.differences(found):
        remedy = f"{before.remedy(found)}, or start anew"
        raise ConfigError(field, folder, f"was begun otherwise: here are {differences}; {remedy}")
