"""Where sweeps are kept: folders, or object storage (``s3://``, ``gs://``), worked on in a copy on this machine.

The copy's path follows from the address and the other way round, so that all code has plain paths. What is in
the object storage is the truth: a copy is brought up to date before it is used. Files that only grow (``.jsonl``) are
there in segments, a database as it once was and its differences. Checkpoints are never in a copy; workers write them
where the sweep is kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from filelock import FileLock, Timeout
from pydantic import AfterValidator, PlainSerializer

from alast_tune.differences import bring_up_to_date
from alast_tune.errors import ConfigError
from alast_tune.objects import Objects
from alast_tune.segments import SUFFIX, Segment, name_at, parse, segments_of

if TYPE_CHECKING:
    from pyarrow import fs

SCHEMES = ("s3", "gs")
STUDY = "study.db"
STUDY_JOURNAL = "study.jsonl"
"""A study that only grows: in object storage the default."""
CHECKPOINTS = "tune"
"""The part of a sweep's folder that workers write."""
_LOCK = "driver.lock"
LEASE = "driver.json"
"""In object storage: which driver holds a sweep; each renewal is another version of it."""
SUBMITTED_FROM = "ALAST_TUNE_SUBMITTED_FROM"
"""Environment variable of a job that ``alast-tune submit`` has made: the folder that it was given in."""
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
ELSEWHERE = frozenset({CHECKPOINTS, _LOCK, LEASE, "promoted", "verify"})
"""What of a sweep's folder a copy does not share with the original."""
_TRIES = 5
"""So often a copy is brought up to date anew if a driver merges segments meanwhile."""


def expand_path(path: str | Path, *, here: bool = False) -> Path:
    """Write out a path that somebody has given: ``~``, ``$NAME`` and ``${NAME}``.

    A Ray job runs in a copy of its submitter's folder, which goes away: there a relative path means that folder.

    Args:
        path: as it was given.
        here: a file of the copy itself will do, a preset say, which is only read.

    Raises:
        ValueError: a variable that is not set, nobody's home, or a relative path in a job of an unknown submitter.
    """
    try:
        found = Path(_VARIABLE.sub(_value_of, str(path))).expanduser()
    except RuntimeError:
        raise ValueError("there is no home folder of that name; write the path out") from None
    if here or found.is_absolute() or not _in_a_copy():
        return found
    if SUBMITTED_FROM not in os.environ:
        remedy = "is relative, but a job runs in a copy of its submitter's folder, which goes away; give the whole path"
        raise ValueError(remedy)
    return Path(os.environ[SUBMITTED_FROM], found)


def _value_of(variable: re.Match[str]) -> str:
    name = variable[1] or variable[2]
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set; set it, or write the path out")
    return os.environ[name]


def _in_a_copy() -> bool:
    """Whether this is a Ray job with a working directory of its own, or a worker of one."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return SUBMITTED_FROM in os.environ or bool((job.get("runtime_env") or {}).get("working_dir"))


def copy_of(place: str | Path) -> Path:
    """Path of a place: of ``s3://bucket/sweeps`` that of its copy on this machine, of a folder its own.

    Raises:
        ValueError: an address of another kind, or a path that cannot be written out.
    """
    place = _VARIABLE.sub(_value_of, str(place))
    address = re.fullmatch(r"([A-Za-z0-9+]+):(/.*)?", place)  # a Path of it has one slash less
    if address is None:
        return expand_path(place)
    scheme, rest = address[1], address[2] or ""
    if "@" in rest.strip("/").partition("/")[0]:
        raise ValueError("holds a password, which would be logged; leave it to AWS_PROFILE or the like")
    if ".." in rest.split("/"):
        raise ValueError("leads out of its bucket; write it without ..")
    if scheme not in SCHEMES or "?" in rest or not rest.strip("/"):
        raise ValueError("no folder, and not s3://BUCKET/... or gs://BUCKET/...; an endpoint goes to AWS_ENDPOINT_URL")
    return _copies() / scheme / rest.strip("/")


def address_of(folder: Path) -> str:
    """Address of a folder: where it is kept if it is a copy, else its absolute path."""
    with suppress(ValueError):
        scheme, *parts = folder.absolute().relative_to(_copies()).parts
        return f"{scheme}://{'/'.join(parts)}"
    return str(folder.absolute())


def is_copy(folder: Path) -> bool:
    """Whether a folder is the copy of one in object storage."""
    return folder.absolute().is_relative_to(_copies())


def display_path(path: Path) -> str:
    """Write a path as a person gave it: a copy by its address."""
    return address_of(path) if is_copy(path) else str(path)


def words_for(storage: Path) -> list[str]:
    """Say to a command where sweeps are, in few words; in none if that is where it looks anyway."""
    place = storage.absolute()
    if place == Path("runs").absolute():
        return []
    below = not is_copy(storage) and place.is_relative_to(Path.cwd())
    return ["--storage", str(place.relative_to(Path.cwd())) if below else display_path(storage)]


Place = Annotated[
    Path,
    AfterValidator(copy_of),
    PlainSerializer(lambda path: display_path(path), return_type=str, when_used="json"),
]
"""A folder, or an address in object storage, which becomes the path of its copy and is written as the address."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: to the path that this gives, which then takes the file's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.tmp")
    yield scratch
    scratch.replace(path)


def _copies() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alast-tune" / "storage"


def listing(folder: Path) -> list[fs.FileInfo]:
    """List what is in a folder where it is kept, nothing if it is not there.

    Raises:
        ConfigError: the storage cannot be read.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(folder)
    try:
        found: list[fs.FileInfo] = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise unusable(folder, error) from None
    return found


def names_with(storage: Path, file: str) -> list[str]:
    """Name the folders of a storage that hold a file."""
    filesystem, _ = open_filesystem(storage)
    there = [entry for entry in listing(storage) if filesystem.get_file_info(f"{entry.path}/{file}").is_file]
    return sorted(entry.base_name for entry in there)


def fetch(path: Path) -> None:
    """Bring the copy of a sweep's folder up to date, unless a driver on this machine works on it.

    Nothing to do for a folder that is no copy.

    Args:
        path: of the folder, or of a JSON file in it.

    Raises:
        ConfigError: the object storage cannot be read.
    """
    folder = path.parent if path.suffix == ".json" else path
    if is_copy(folder):
        with suppress(Timeout), driver_lock(folder):
            download(folder, objects_of(folder))


def path_below(folder: Path, *names: str) -> Path:
    """Path of a folder of ours in a sweep's folder, which may be somebody else's: no link leads out of it.

    Raises:
        ConfigError: one does.
    """
    path = folder.joinpath(*names)
    linked = any(one.is_symlink() for one in path.rglob("*"))
    if linked or not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("sweep", folder, f"{path} leads out of it, by a link; remove that")
    return path


def driver_lock(folder: Path) -> FileLock:
    """Make the lock of a folder among the processes that share it; the system takes it from one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / _LOCK, timeout=0)


def open_filesystem(folder: Path) -> tuple[fs.FileSystem, str]:
    """Open where a folder is kept; returns the filesystem and the path in it.

    Raises:
        ConfigError: no such object storage.
    """
    from pyarrow import fs  # a second to import, and the training core has no need of it

    if not is_copy(folder):
        return fs.LocalFileSystem(), str(folder.absolute())
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(address_of(folder))
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from None
    return found


def objects_of(folder: Path, seconds: float = 120.0) -> Objects:
    """Open what a copy is the copy of.

    Args:
        folder: a copy.
        seconds: that a request may take.

    Raises:
        ConfigError: no such object storage.
    """
    filesystem, _ = open_filesystem(folder)
    return Objects(address_of(folder), getattr(filesystem, "region", None), seconds)


def download(folder: Path, objects: Objects) -> None:
    """Bring a copy up to date, which nobody else may be doing.

    Another machine's driver may be at work on the original: a file that only grows is then a prefix of it.

    Raises:
        ConfigError: the object storage cannot be read.
    """
    try:
        for _ in range(_TRIES):
            objects.list(without=ELSEWHERE)
            files = {parse(name)[0] for name in objects.sizes}
            # An object may be called anything.
            fetched = [_fetched(folder / file, file, objects) for file in files if ".." not in Path(file).parts]
            if all(fetched):
                return
    except OSError as error:
        raise unusable(folder, error) from None


def _fetched(path: Path, file: str, objects: Objects) -> bool:
    """Write a file of the copy; False if a part of it was merged into another in the meantime."""
    grows = file.endswith(SUFFIX)
    segments = segments_of(file, objects.sizes)[0] if grows else [Segment(0, objects.sizes[file], file)]
    contents, there = b"", True
    for segment in segments:
        if segment.start < len(contents):  # merged into the one before since they were listed
            continue
        part = objects.get(segment.name)
        if part is None:
            there = False
            break
        contents += part
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    for trace in (f"{path}-wal", f"{path}-shm"):  # SQLite's, of what was there before
        Path(trace).unlink(missing_ok=True)
    differences = [] if grows else sorted(start for of, start in map(parse, objects.sizes) if of == file and start)
    if there and differences:
        return bring_up_to_date(path, differences, lambda number: objects.get(name_at(file, number)))
    return there


def unusable(folder: Path, error: Exception) -> ConfigError:
    """Make the error of an object storage that cannot be used."""
    return ConfigError("storage", address_of(folder), f"cannot be used ({words_of(error)}); see clusters/README.md")


def words_of(error: BaseException) -> str:
    """Put an error of pyarrow, which says much, into a few words."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rpartition("Details: ")[2].rpartition("AWS Error ")[2][:160]
