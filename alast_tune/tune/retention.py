"""Which checkpoints a sweep keeps once it is over: those of its front, or all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from alast_tune.config import stored_sweep
from alast_tune.lease import exclusive_driver
from alast_tune.plots import human_bytes
from alast_tune.results import TrialResult
from alast_tune.storage import CHECKPOINTS, opened
from alast_tune.summary import summarise
from alast_tune.tune.trials import open_study, results

_DRIVER, _TRIAL, _CHECKPOINT = re.compile(r"driver-\d+"), re.compile(r"\d{4,}"), re.compile(r"checkpoint_\d+")


@dataclass(frozen=True)
class Freed:
    """What has been deleted, or would be."""

    checkpoints: int = 0
    size: int = 0
    """Bytes."""

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"{self.checkpoints} checkpoint{'' if self.checkpoints == 1 else 's'}, {human_bytes(self.size)}"


def clean(folder: Path, say: Callable[[str], None], *, dry_run: bool = False) -> Freed:
    """Delete the checkpoints of a sweep that nothing needs any more.

    Args:
        folder: of the sweep, which no driver may be running.
        say: prints a line, should somebody else be at work.
        dry_run: delete nothing.

    Raises:
        ConfigError: not the folder of a sweep, or its study is gone.
    """
    sweep = stored_sweep(folder, "sweep")
    with exclusive_driver(folder, "sweep", say):
        study = open_study(sweep, folder, there=True)
        trials = results(study, sweep)
        reference = study.user_attrs.get("reference_point")
        if reference is None:  # nothing has begun
            return Freed()
        ended = [trial for trial in trials if trial.state != "running"]
        front = summarise(sweep.name, ended, reference, limits=sweep.limits)
        return drop_checkpoints(folder, trials, {member.trial_id for member in front.front}, dry_run=dry_run)


def drop_checkpoints(folder: Path, trials: list[TrialResult], members: set[str], *, dry_run: bool = False) -> Freed:
    """Delete all checkpoints but the last one of each member of the front, and those of trials that are to go on.

    Killed in the middle, it leaves what a next time deletes. Links are not followed.

    Args:
        folder: of the sweep; nothing outside of its checkpoints is touched.
        trials: of the sweep.
        members: ids of those on the front.
        dry_run: delete nothing.
    """
    filesystem, root = opened(folder)
    unfinished = {trial.number for trial in trials if trial.state == "running"}
    found = list(_checkpoints(filesystem, root))
    last = {number: order for number, order, _ in found}  # in order: the last one stays
    freed = Freed()
    for number, order, path in found:
        if number in unfinished or (f"{number:04d}" in members and last[number] == order):
            continue
        files = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        freed = Freed(freed.checkpoints + 1, freed.size + sum(file.size or 0 for file in files if file.is_file))
        if not dry_run:
            filesystem.delete_dir(path)
    return freed


def _checkpoints(filesystem: fs.FileSystem, root: str) -> Iterator[tuple[int, tuple[int, int], str]]:
    """List trial, order (driver, number) and path of every checkpoint, in that order."""
    found = []
    for driver in _folders(filesystem, f"{root}/{CHECKPOINTS}", _DRIVER):
        for trial in _folders(filesystem, driver.path, _TRIAL):
            for checkpoint in _folders(filesystem, trial.path, _CHECKPOINT):
                order = _number(driver.base_name), _number(checkpoint.base_name)
                found.append((int(trial.base_name), order, checkpoint.path))
    yield from sorted(found)


def _folders(filesystem: fs.FileSystem, path: str, name: re.Pattern[str]) -> list[fs.FileInfo]:
    local = isinstance(filesystem, fs.LocalFileSystem)
    return [
        entry
        for entry in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if entry.type == fs.FileType.Directory and name.fullmatch(entry.base_name)
        if not (local and Path(entry.path).is_symlink())
    ]


def _number(name: str) -> int:
    return int(re.split("[-_]", name)[-1])
