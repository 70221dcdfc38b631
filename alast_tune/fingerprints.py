"""What a sweep or a training started from: fingerprints of its images and of its weights, and who measures it.

Kept in its folder. Places of files may change, and what lies there may not: results of other images or weights do not
compare, and neither do those of another meter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from alast_tune.config import ModelConfig, Record, parse, read_mapping
from alast_tune.data import Splits, fingerprint
from alast_tune.errors import ConfigError
from alast_tune.models import weights_fingerprint
from alast_tune.storage import atomic_write

FILE = "fingerprints.json"
METER = 2
"""Raised whenever the same step is counted otherwise. 2: the last block computes the class token alone."""
_LOG = logging.getLogger(__name__)


class Fingerprints(Record):
    """Of what training starts from."""

    data: str
    """Of the splits."""
    weights: str | None
    """Of the file with the weights; None if they are drawn at random."""
    meter: int = METER
    """Version of the meter that counts its FLOPs and peaks."""

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


def keep_fingerprints(
    found: Fingerprints, folder: Path, field: str, say: Callable[[str], None] = _LOG.warning, *, new: bool = False
) -> None:
    """Write down what a sweep or training starts from, or refuse to go on with other images or weights.

    Args:
        found: here and now.
        folder: of the sweep or training.
        field: setting to name in a refusal.
        say: prints a line: where nothing was written down by then, nobody knows.
        new: nothing has been trained in the folder yet.

    Raises:
        ConfigError: something is different.
    """
    before = None if new else read_fingerprints(folder)
    if before is None:
        if not new:
            say(f"note: {folder.name} has no {FILE}; whether data and starting weights are the same is not known")
        with atomic_write(folder / FILE) as scratch:
            scratch.write_text(found.model_dump_json(indent=2) + "\n")
    elif differences := before.differences(found):
        raise ConfigError(field, folder, f"was begun otherwise: here are {differences}; put them back, or start anew")
