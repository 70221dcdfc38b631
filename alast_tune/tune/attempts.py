"""Where the drivers that work on a sweep, one after the other, leave its trials' checkpoints."""

from __future__ import annotations

from pathlib import Path

from alast_tune import checkpoint
from alast_tune.storage import CHECKPOINTS, address_of, listing
from alast_tune.summary import trial_id


def checkpoints(folder: Path, number: int) -> list[str]:
    """List the addresses of a trial's checkpoints, newest first, over all the drivers that have worked on the sweep.

    The numbers of driver and checkpoint tell, not the time: a worker that the network has parted from the sweep may
    write an old one when its trial has long been ended by another.
    """

    def newest_first(place: Path, prefix: str) -> list[Path]:
        named = [entry.base_name for entry in listing(place) if entry.base_name.startswith(prefix)]
        return [place / name for name in sorted(named, key=lambda name: int(name.removeprefix(prefix)), reverse=True)]

    return [
        address_of(place)
        for driver in newest_first(folder / CHECKPOINTS, "driver-")
        for place in newest_first(driver / trial_id(number), "checkpoint_")
        if any(file.base_name == checkpoint.FILE for file in listing(place))
    ]


def next_attempt(folder: Path) -> str:
    """Name a driver's folder for checkpoints: above all that are there, so that of two the later is the newer."""
    taken = [entry.base_name.removeprefix("driver-") for entry in listing(folder / CHECKPOINTS)]
    return f"driver-{max((int(number) for number in taken if number.isdecimal()), default=-1) + 1:02d}"
