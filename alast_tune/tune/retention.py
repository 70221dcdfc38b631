"""Which checkpoints a sweep keeps once it is over: those of its front, or all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from pyarrow import fs

from alast_tune.checkpoint import FILE
from alast_tune.config import SweepConfig, stored_sweep
from alast_tune.errors import ConfigError, StorageError
from alast_tune.lease import exclusive_driver
from alast_tune.other_seeds import with_knee_of_means
from alast_tune.plots import human_bytes
from alast_tune.results import Reseeded, TrialResult
from alast_tune.storage import CHECKPOINTS, address_of, open_filesystem
from alast_tune.summary import summarise, trial_id
from alast_tune.tune.members import not_asked_yet
from alast_tune.tune.region import region_of
from alast_tune.tune.trainable import first_line
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
        ConfigError: not the folder of a sweep, its study is gone, or its checkpoints lie behind a link.
        StorageError: one cannot be deleted.
    """
    sweep = stored_sweep(folder, "sweep")
    with exclusive_driver(folder, "sweep", say):
        return _drop_unneeded(folder, sweep, open_study(sweep, folder, must_exist=True), dry_run=dry_run)


def keep_front(
    folder: Path, sweep: SweepConfig, study: optuna.Study, check: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Do at a sweep's end what :func:`clean` does later; a sweep that is finished does not fail for it.

    Args:
        folder: of the sweep.
        sweep: its settings.
        study: its trials.
        check: called before each deletion; may raise, to stop.
        say: prints a line.
    """
    try:
        freed = _drop_unneeded(folder, sweep, study, check=check)
    except (ConfigError, StorageError) as error:
        say(f"checkpoints that the front does not need stay: {error}")
        return
    if freed.checkpoints:
        say(f"deleted what the front does not need: {freed} (--keep all keeps them)")


def _drop_unneeded(
    folder: Path,
    sweep: SweepConfig,
    study: optuna.Study,
    *,
    dry_run: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Freed:
    """Delete checkpoints; keep those of the front, of trials to be tested or drawn, and of trials to be resumed."""
    trials = results(study, sweep)
    reference = study.user_attrs.get("reference_point")
    if reference is None:  # nothing has begun
        return Freed()
    ended = [trial for trial in trials if trial.state != "running"]
    region = region_of(sweep, study.user_attrs, study.get_trials(deepcopy=False))
    front = summarise(sweep.name, ended, reference, limits=sweep.limits, region=region)
    front = with_knee_of_means(front, Reseeded.find(folder))
    needed = {member.trial_id for member in front.front}
    needed |= {trial_id(number) for number in not_asked_yet(folder, study, sweep, front)}
    return drop_checkpoints(folder, trials, needed, dry_run=dry_run, check=check)


def drop_checkpoints(
    folder: Path,
    trials: list[TrialResult],
    needed: set[str],
    *,
    dry_run: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Freed:
    """Delete all checkpoints but the last one of each trial that is needed, and those of trials that are to go on.

    Killed in the middle, it leaves what a next time deletes. Links are not followed.

    Args:
        folder: of the sweep; nothing outside of its checkpoints is touched.
        trials: of the sweep.
        needed: ids of trials whose last one stays.
        dry_run: delete nothing.
        check: called before each deletion.

    Raises:
        ConfigError: the folder of all checkpoints is a link.
        StorageError: one cannot be deleted.
    """
    if (folder / CHECKPOINTS).is_symlink():
        raise ConfigError("sweep", folder, f"{CHECKPOINTS} is a link, behind which nothing is deleted; give the folder")
    filesystem, root = open_filesystem(folder)
    unfinished = {trial.number for trial in trials if trial.state == "running"}
    freed, left = Freed(), set(map(int, needed))
    for number, path in _checkpoints(filesystem, root):
        if number in unfinished:
            continue
        files = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        if number in left and any(file.base_name == FILE and file.size for file in files):
            left.remove(number)
            continue
        check()
        if not dry_run:
            try:
                filesystem.delete_dir(path)
            except OSError as error:
                why = first_line(error)
                raise StorageError(f"storage {address_of(folder)}: a checkpoint cannot be deleted: {why}") from None
        freed = Freed(freed.checkpoints + 1, freed.size + sum(file.size or 0 for file in files if file.is_file))
    return freed


def _checkpoints(filesystem: fs.FileSystem, root: str) -> Iterator[tuple[int, str]]:
    """List trial and path of every checkpoint, a trial's newest first."""
    found = []
    for driver in _folders(filesystem, f"{root}/{CHECKPOINTS}", _DRIVER):
        for trial in _folders(filesystem, driver.path, _TRIAL):
            for checkpoint in _folders(filesystem, trial.path, _CHECKPOINT):
                order = _number(driver.base_name), _number(checkpoint.base_name)
                found.append((int(trial.base_name), order, checkpoint.path))
    yield from ((number, path) for number, _, path in sorted(found, reverse=True))


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
