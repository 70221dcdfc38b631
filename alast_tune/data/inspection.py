"""A look at every image file, once: whether it can be read, and a checksum of what is in it.

What was found is remembered by path, size and time of change, in this user's cache folder, so that nothing is read
again that has not changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from alast_tune.data.machine import cache_folder, cpu_count
from alast_tune.data.rgb import PixelRangeError, to_rgb
from alast_tune.errors import ConfigError
from alast_tune.storage import atomic_write

DARK = 16
"""An image whose brightest pixel, of 255, is below this is no picture of anything bright."""


@dataclass(frozen=True)
class Verdict:
    """What a look at a file has found."""

    size: int
    """Bytes."""
    changed_ns: int
    """When the file was last written, nanoseconds."""
    checksum: str
    """Of all of its bytes; hexadecimal."""
    decoded: bool
    """Whether it was also read as an image."""
    dark: bool = False
    """Whether it is an image with 16 bits of which it uses 12 at most, so that it is nearly black."""


def silence_pillow() -> None:
    """Keep Pillow's warnings off the screen: what matters of them is said in one line, or is an error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def inspect(root: Path | None, files: Sequence[Path], decode: bool = False) -> list[Verdict]:
    """Checksum files, and read them as images if so asked; only those that are new or have changed since.

    JPEGs are decoded at an eighth of their size, which finds those that are cut short.

    Args:
        root: ``data.root``, to which the memory and the errors belong.
        files: (n,) paths.
        decode: read the images too.

    Returns:
        (n,) what was found.

    Raises:
        ConfigError: naming the first file that is gone, no image, or cut short.
    """
    silence_pillow()
    with _remembered(root) as known:

        def look(file: Path) -> Verdict | str:
            before = known.get(str(file))
            try:
                stat = file.stat()
                same = before and (before.size, before.changed_ns) == (stat.st_size, stat.st_mtime_ns)
                if before and same and (before.decoded or not decode):
                    return before
                content, dark = file.read_bytes(), False
                if decode:
                    with Image.open(io.BytesIO(content)) as image:
                        image.draft("RGB", (1, 1))
                        shown = to_rgb(image)
                        dark = image.mode.startswith("I") and int(np.asarray(shown).max()) < DARK
            except Exception as error:  # the formats' readers raise nearly anything on rubbish
                return fault(file, error)
            checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
            return Verdict(stat.st_size, stat.st_mtime_ns, checksum, decode, dark)

        with ThreadPoolExecutor(min(16, 2 * cpu_count())) as pool:
            found = list(pool.map(look, files, chunksize=64))
        good = [verdict for verdict in found if isinstance(verdict, Verdict)]
        known |= {
            str(file): verdict for file, verdict in zip(files, found, strict=True) if isinstance(verdict, Verdict)
        }
    if len(good) < len(found):
        first = next(verdict for verdict in found if isinstance(verdict, str))
        more = f" (one of {len(found) - len(good)} such files)" if len(found) - len(good) > 1 else ""
        raise ConfigError("data.root", root, f"{first}{more}")
    return good


def fault(file: Path, error: Exception) -> str:
    """Say what is wrong with an image file, and what to do about it."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "more pixels"
        return f"{file} has {size}, and Pillow opens {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} at most; shrink it"
    if isinstance(error, PixelRangeError):
        return f"{file} {error}"
    words = re.sub(r" <_io\.BytesIO.*?>", "", str(error))  # of the file, which is read in one piece
    return f"{file} is no readable image ({type(error).__name__}: {words}); repair or remove it"


@contextmanager
def _remembered(root: Path | None) -> Iterator[dict[str, Verdict]]:
    """Give what is known of the files below a root, and remember what has been added to it; one process at a time.

    Where the cache folder cannot be written to, nothing is remembered.
    """
    name = hashlib.blake2b(str(root and root.resolve()).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    file = cache_folder() / "inspected" / f"{name}.json"
    known: dict[str, Verdict] = {}
    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_suffix(".lock")))
        with suppress(OSError, ValueError, TypeError):  # none yet, or damaged: look again
            known = {path: Verdict(*values) for path, values in json.loads(file.read_text()).items()}
        before = dict(known)
        yield known
        if known != before:
            with suppress(OSError), atomic_write(file) as scratch:
                scratch.write_text(json.dumps({path: astuple(verdict) for path, verdict in known.items()}))
