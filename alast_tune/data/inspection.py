"""A look at every image, once: whether it can be read, and a checksum of what is in it.

What was found is remembered by path, size and time of change, or by checksum where an image is no file, in this
user's cache folder, so that nothing is decoded again that has not changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from alast_tune.data.machine import cache_folder, cpu_count
from alast_tune.data.rgb import PixelRangeError, to_rgb
from alast_tune.errors import ConfigError
from alast_tune.storage import atomic_write

Item: TypeAlias = Path | bytes | Image.Image | NDArray[Any]
"""An image as it lies there: a file, the bytes of one, a Pillow image, or an array (H, W, 3)."""

Place: TypeAlias = tuple[str, object]
"""Setting that names a data set, and its value."""

DARK = 16
"""An image whose brightest pixel, of 255, is below this is no picture of anything bright."""


@dataclass(frozen=True)
class Verdict:
    """What a look at an image has found."""

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


def inspect(
    place: Place, item: Callable[[int], Item], name: Callable[[int], str], indices: Sequence[int], decode: bool = False
) -> list[Verdict]:
    """Checksum images, and decode them if so asked; files only where they are new or have changed since.

    JPEGs are decoded at an eighth of their size, which finds those that are cut short.

    Args:
        place: setting that names the data, and its value, to which the memory and the errors belong.
        item: gets image i as it lies there.
        name: says to a person which image i is.
        indices: (n,) of the images.
        decode: read the images too.

    Returns:
        (n,) what was found.

    Raises:
        ConfigError: naming the first image that is gone, none, or cut short.
    """
    silence_pillow()
    if not indices:
        return []
    if isinstance(item(indices[0]), np.ndarray):  # of a data set in memory: decoded, and quickly read again
        return [Verdict(0, 0, _checksum(item(index).tobytes()), True) for index in indices]  # type: ignore[union-attr]
    with _remembered(place[1]) as known:

        def look(index: int) -> tuple[str | None, Verdict] | ConfigError | str:
            try:
                return _look(item(index), known, decode)
            except ConfigError as error:
                return error
            except Exception as error:  # the formats' readers raise nearly anything on rubbish
                return fault(name(index), error)

        with ThreadPoolExecutor(min(16, 2 * cpu_count())) as pool:
            found = list(pool.map(look, indices, chunksize=64))
        good = [one for one in found if isinstance(one, tuple)]
        known |= {name: verdict for name, verdict in good if name is not None}
    if len(good) < len(found):
        first = next(one for one in found if not isinstance(one, tuple))
        if isinstance(first, ConfigError):
            raise first
        more = f" (one of {len(found) - len(good)} such files)" if len(found) - len(good) > 1 else ""
        raise ConfigError(*place, f"{first}{more}")
    return [verdict for _, verdict in good]


def _look(item: Item, known: Mapping[str, Verdict], decode: bool) -> tuple[str | None, Verdict]:
    """Look at one image; gives what was found, and the name under which to remember that."""
    if isinstance(item, Image.Image | np.ndarray):
        shown = to_rgb(item if isinstance(item, Image.Image) else Image.fromarray(item))
        return None, Verdict(0, 0, _checksum(f"{shown.size}".encode() + shown.tobytes()), True)
    if isinstance(item, bytes):
        name = checksum = _checksum(item)
        size, changed_ns = len(item), 0
    else:
        name, stat, checksum = str(item), item.stat(), None
        size, changed_ns = stat.st_size, stat.st_mtime_ns
    before = known.get(name)
    if before and (before.size, before.changed_ns) == (size, changed_ns) and (before.decoded or not decode):
        return name, before
    content, dark = item if isinstance(item, bytes) else item.read_bytes(), False
    if decode:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (1, 1))
            shown = to_rgb(image)
            dark = image.mode.startswith("I") and int(np.asarray(shown).max()) < DARK
    return name, Verdict(size, changed_ns, checksum or _checksum(content), decode, dark)


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fault(file: str, error: Exception) -> str:
    """Say what is wrong with an image, and what to do about it."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "more pixels"
        return f"{file} has {size}, and Pillow opens {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} at most; shrink it"
    if isinstance(error, PixelRangeError):
        return f"{file} {error}"
    words = re.sub(r" <_io\.BytesIO.*?>", "", str(error))  # of the file, which is read in one piece
    return f"{file} is no readable image ({type(error).__name__}: {words}); repair or remove it"


@contextmanager
def _remembered(where: object) -> Iterator[dict[str, Verdict]]:
    """Give what is known of the images at a place, and remember what has been added to it; one process at a time.

    Where the cache folder cannot be written to, nothing is remembered.
    """
    text = str(where.resolve() if isinstance(where, Path) else where)
    name = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()
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
