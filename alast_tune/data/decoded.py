"""Images of a source, RGB and resized: decoded once a machine into a file that all processes map, or when needed.

Trials, ranks and loader processes share the file's pages, which the system may take back: none of them is memory of a
process. Files are named by what is in them, so the same images at the same size are never decoded again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from alast_tune.data.machine import available_bytes, cache_folder, cpu_count
from alast_tune.data.sources import Source
from alast_tune.data.splitting import Indices
from alast_tune.errors import ConfigError
from alast_tune.models import InputSpec, Resizing, resizer
from alast_tune.storage import atomic_write

Pixels: TypeAlias = NDArray[np.uint8]

MEMORY_SHARE = 0.25
"""Of the memory that is available, what decoded images may take for ``cache: auto``."""

DISK_SHARE = 0.1
"""Of the disk with the cache folder, what all decoded files may take; the ones used least recently go first."""

_MADE_BY = f"1 Pillow {PIL.__version__}"
"""Part of a file's name: what else decides about pixels. The number goes up when ``to_rgb`` or the resizing changes."""

_SUFFIXES: dict[type[np.generic], str] = {np.uint8: "u8", np.float32: "f32"}
"""Of files, by what is in them: pixels, or features."""

_CHUNK = 64
"""Images that are decoded between two writes to the file, for each processor."""


class Started(list[int]):
    """Numbers of images that threads are decoding, a part of them each."""

    def __init__(self, batch: Sequence[int], parts: Sequence[Future[Pixels]]) -> None:
        super().__init__(batch)
        self.parts = parts


class Decoded:
    """Gets the pixels of some images of a source.

    Args:
        source: of the images.
        indices: (n,) which of them.
        spec: to resize them to.
        cache: ``data.cache``: "none"; "memory" to keep them; "auto" to keep them if that works, once
            :func:`worth_keeping` has said that they fit.
    """

    def __init__(self, source: Source, indices: Indices, spec: InputSpec, cache: str) -> None:
        self.source = source
        self.indices = indices
        self.spec = spec
        self.cache = cache
        self._kept: Pixels | None = None

    def __call__(self, batch: list[int]) -> Tensor:
        """Get the pixels of a batch, uint8 (B, 3, S, S).

        Raises:
            ConfigError: a file is gone, or no image any more.
        """
        if isinstance(batch, Started):
            return torch.from_numpy(np.concatenate([part.result() for part in batch.parts]))
        if self._kept is not None:
            return torch.from_numpy(self._kept[batch])
        return torch.from_numpy(self._decode(batch))

    def start(self, batch: list[int], pool: Executor, parts: int) -> list[int]:
        """Let a pool's threads decode a batch in ``parts`` parts, unless it is decoded already."""
        if self._kept is not None:
            return batch
        chunks = [chunk for chunk in np.array_split(batch, parts) if len(chunk)]
        return Started(batch, [pool.submit(self._decode, chunk.tolist()) for chunk in chunks])

    def prepare(self) -> None:
        """Decode all images, if they are to be kept and no process of this machine has done so before.

        Raises:
            ConfigError: an image cannot be read, or the file not be written.
        """
        if self.cache == "none" or self._kept is not None:
            return
        size, resizing = self.spec.image_size, self.spec.resizing
        shape = (len(self.indices), 3, size, size)
        how = str(size) if resizing == Resizing() else f"{size} {resizing} {self.spec.mean}"
        content = "\n".join([_MADE_BY, how, *self.source.checksums(self.indices)])
        name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        try:
            self._kept = share_array(f"{name}-{size}", shape, self._chunks)
        except OSError as error:
            if self.cache == "auto":
                self.cache = "none"
                return
            remedy = f"decoded images cannot be kept in {_folder()} ({error}); set XDG_CACHE_HOME, or take cache: none"
            raise ConfigError("data.cache", self.cache, remedy) from error

    def _chunks(self) -> Iterator[Pixels]:
        size = _CHUNK * cpu_count()
        with ThreadPoolExecutor(cpu_count()) as pool:
            for start in range(0, len(self.indices), size):
                yield np.stack(list(pool.map(self._decode_one, range(start, min(start + size, len(self.indices))))))

    def _decode(self, batch: list[int]) -> Pixels:
        return np.stack([self._decode_one(index) for index in batch])

    def _decode_one(self, index: int) -> Pixels:
        image = resizer(self.spec)(self.source.decode(int(self.indices[index])))
        # Not a tensor: torch would start a team of threads of its own in each thread of a pool that gets here. One
        # memory layout, fresh or kept: convolutions round another one differently.
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def worth_keeping(size_bytes: int) -> bool:
    """Whether decoded images, or features, fit into the available memory, shared, and onto the cache folder's disk."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(_folder()).free if os.access(_folder(), os.W_OK) else 0
    except OSError:
        free = 0
    return size_bytes <= MEMORY_SHARE * available_bytes() and 2 * size_bytes <= free


def share_array(
    name: str, shape: tuple[int, ...], chunks: Callable[[], Iterator[NDArray[Any]]], dtype: type[np.generic] = np.uint8
) -> NDArray[Any]:
    """Map a file of this machine's cache folder; written first, whole or not at all, if it is not there.

    Args:
        name: of the file, which says what is in it.
        shape: of the array.
        chunks: makes its parts, along the first axis.
        dtype: of its numbers.

    Raises:
        OSError: it cannot be written.
    """
    file = _folder() / f"{name}.{_SUFFIXES[dtype]}"
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if not file.exists() or file.stat().st_size != size_bytes:
            _make_room(size_bytes)
            with atomic_write(file) as scratch:
                try:
                    with scratch.open("wb") as out:
                        for chunk in chunks():
                            out.write(chunk.tobytes())
                        out.flush()
                        os.fsync(out.fileno())
                except BaseException:
                    scratch.unlink(missing_ok=True)
                    raise
        with suppress(OSError):
            os.utime(file)  # when it was last used
        return np.memmap(file, dtype, "r", shape=shape)


def _make_room(size_bytes: int) -> None:
    """Remove files, and beginnings of some, used least recently, until all take their share."""
    found = (file for suffix in _SUFFIXES.values() for file in _folder().glob(f"*.{suffix}*"))
    files = sorted(found, key=lambda file: file.stat().st_mtime)
    over = sum(file.stat().st_size for file in files) + size_bytes - DISK_SHARE * shutil.disk_usage(_folder()).total
    for file in files:
        if over <= 0:
            break
        lock = FileLock(_folder() / f"{file.name.partition('.')[0]}.lock", timeout=0)
        with suppress(OSError, Timeout), lock:
            over -= file.stat().st_size
            file.unlink()


def _folder() -> Path:
    return cache_folder() / "decoded"
