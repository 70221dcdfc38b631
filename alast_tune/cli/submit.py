"""Run `alast-tune sweep` as a Ray job on a cluster, from anywhere: no checkout is needed here.

    alast-tune submit --address http://head:8265 --preset demo --storage s3://bucket/sweeps
    alast-tune submit --preset mine.yaml --storage /shared/sweeps --trials 64
    alast-tune submit --resume demo --storage s3://bucket/sweeps

All other options are those of `alast-tune sweep`. The log is shown until the sweep ends, and its exit code is this
command's; Ctrl-C ends only the watching. Relative paths mean this folder, which all nodes then have to see; a preset's
file is sent along, and in a checkout of alast-tune the whole of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alast_tune.cli.guard import guarded
from alast_tune.config import given_file, read_mapping
from alast_tune.errors import ConfigError


@guarded
def main(arguments: list[str] | None = None) -> None:
    """Submit a sweep, follow it, and end as it does."""
    parser = argparse.ArgumentParser(
        "alast-tune submit",
        "alast-tune submit [--address URL] [--no-wait] --storage PLACE [options of alast-tune sweep]",
        __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        help="of the head's dashboard, as http://HOST:8265; unset: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS",
    )
    parser.add_argument("--storage", help="where sweeps are: a folder or bucket that all nodes see")
    parser.add_argument("--no-wait", action="store_true", help="print the job's name, and end")
    options, words = parser.parse_known_args(arguments)
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        remedy = "give the address of a head's dashboard, as http://HOST:8265, or set RAY_API_SERVER_ADDRESS"
        raise ConfigError("address", "not given", remedy)
    if not words:
        raise ConfigError("preset", "not given", "give what alast-tune sweep shall do, as --preset demo")
    preset = given_preset(words)
    if options.storage is None and not (preset and "storage" in read_mapping(preset)):
        remedy = f"give --storage, a folder or bucket that all nodes of {address} see"
        raise ConfigError("storage", "not given", remedy)
    words += ["--storage", options.storage] if options.storage else []
    _choose_authentication()
    from alast_tune.tune.jobs import Job  # Ray takes seconds to import, and reads its settings as it does

    with sent_along(preset) as folder:
        if preset:  # the last one given is the one that counts
            words += ["--preset", os.path.relpath(preset, Path.cwd()) if folder == Path.cwd() else preset.name]
        job = Job(address, ["python", "-m", "alast_tune.cli", "sweep", *words], folder)
    print(f"job: {job.id} at {address}; ray job stop --address {address} {job.id} stops it", flush=True)
    if options.no_wait:
        return
    try:
        code = job.follow(lambda lines: print(lines, end="", flush=True))
    except KeyboardInterrupt:
        print(f"the job goes on; ray job logs --follow --address {address} {job.id} shows it", file=sys.stderr)
        raise
    if code:
        print(f"job: {job.id} has ended with exit code {code}", file=sys.stderr)
        sys.exit(code)


def given_preset(words: Sequence[str]) -> Path | None:
    """Find the file that ``--preset`` names in a command for ``alast-tune sweep``; None for a preset's name.

    Raises:
        ConfigError: there is no such file here.
    """
    written = _written(words)
    if written is None or written.suffix not in {".yaml", ".yml", ".json"}:
        return None
    file = given_file("preset", str(written))
    if not file.exists():
        raise ConfigError("preset", written, "there is no such file here")
    return file


def _written(words: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", type=Path)
    found: Path | None = parser.parse_known_args(list(words))[0].preset
    return found


@contextmanager
def sent_along(preset: Path | None) -> Iterator[Path | None]:
    """Give the folder that a job runs in a copy of.

    In a checkout that is the checkout, so that the job runs its code; else a folder with nothing but the preset's
    file; None where the cluster's own alast-tune needs nothing from here.
    """
    here = Path.cwd()
    if (here / "alast_tune" / "__init__.py").exists():
        yield here
    elif preset is None:
        yield None
    else:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(preset, folder)
            yield Path(folder)


def _choose_authentication() -> None:
    """Send Ray's token if there is one: Ray itself only does where the mode says so."""
    known = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if known or (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE") or "token"
