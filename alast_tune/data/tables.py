"""Tables: a CSV or Parquet file with the path or the bytes of an image, its label and maybe its split in each row."""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from alast_tune.config import DataConfig
from alast_tune.data.folders import role_of
from alast_tune.data.inspection import Item
from alast_tune.data.machine import cache_folder
from alast_tune.data.sources import Opened, Source
from alast_tune.data.splitting import Indices
from alast_tune.errors import ConfigError
from alast_tune.storage import atomic_write

SUFFIXES = (".csv", ".tsv", ".parquet")

NAMES = {
    "image": ("path", "file", "image", "filename", "file_name", "filepath", "file_path", "image_path"),
    "label": ("label", "class", "target"),
    "split": ("split",),
}
"""What a column is usually called."""

_BATCH = 1024
"""Rows that are copied at a time."""


@dataclass(frozen=True)
class _Table:
    """The columns of a file."""

    names: Sequence[str]
    column: Callable[[str], list[Any]]
    """Gets a column's values."""


def open_table(config: DataConfig) -> Opened:
    """Read a table of images; no image is opened.

    Raises:
        ConfigError: no such table or column, files that are not there or lie outside of the table's folder, labels or
            splits that mean nothing.
    """
    assert config.root
    return _Reader(config, config.root).read()


class _Reader:
    def __init__(self, config: DataConfig, root: Path) -> None:
        self._columns = config.columns
        self._root = root
        self._parquet = root.suffix.lower() == ".parquet"

    def read(self) -> Opened:
        if not self._root.exists():
            raise self._refuse("there is no such file; give the path of one that is there")
        try:
            table = self._read_parquet() if self._parquet else self._read_csv()
            image, label = self._find(table, "image"), self._find(table, "label")
            split = self._find(table, "split")
            assert image and label
            classes, labels = self._labels(table.column(label))
            keys, item = self._bytes(image) if self._has_bytes(image) else self._files(table.column(image))
            roles = self._roles(table.column(split)) if split else np.full(len(labels), "all")
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
            kind = "Parquet" if self._parquet else "CSV in UTF-8"
            raise self._refuse(f"cannot be read as {kind} ({error}); repair it, or see to its permissions") from error
        parts = {}
        for role in ("all", "train", "validation", "test"):
            if len(rows := np.flatnonzero(roles == role)):
                place = ("data.root", self._root)
                parts[role] = Source(place, [keys[row] for row in rows], labels[rows], _Rows(item, rows))
        return Opened(classes, parts)

    def _read_csv(self) -> _Table:
        with self._root.open(encoding="utf-8-sig", newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            header, *rows = [row for row in csv.reader(file, delimiter=separator) if row] or [[]]
        names = [name.strip() for name in header]
        for number, row in enumerate(rows, 1):
            if len(row) != len(names):
                raise self._refuse(f"row {number} has {len(row)} values, and the first line {len(names)} names")
        columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
        return _Table(names, lambda name: [value.strip() for value in columns.get(name, ())])

    def _read_parquet(self) -> _Table:
        names = pq.read_schema(self._root).names
        return _Table(names, lambda name: pq.read_table(self._root, columns=[name])[name].to_pylist())

    def _find(self, table: _Table, use: str) -> str | None:
        """Find a column by the name that is given, or else by a usual one; None: no split."""
        given = getattr(self._columns, use)
        there = ", ".join(table.names) or "none"
        if given is not None:
            if given not in table.names:
                remedy = f"{self._root.name} has no such column, it has {there}; give one of them"
                raise ConfigError(f"data.columns.{use}", given, remedy)
            return str(given)
        found = [name for name in table.names if name.lower() in NAMES[use]]
        if len(found) > 1:
            raise self._refuse(f"may have the {use} in {' or '.join(found)}; say which: data.columns.{use}")
        if not found and use != "split":
            usual = ", ".join(NAMES[use])
            raise self._refuse(f"has no column {usual} but {there}; name the {use} column: data.columns.{use}")
        return found[0] if found else None

    def _labels(self, values: list[Any]) -> tuple[tuple[str, ...], Indices]:
        """Read classes, whole numbers in their order and other names in the alphabet's, and the labels (n,)."""
        if not values:
            raise self._refuse("has no rows; it takes one for each image")
        bad = [row for row, value in enumerate(values) if not isinstance(value, str | int) or value == ""]
        self._refuse_rows(bad, lambda row: f"has the label {values[row]!r}; give a name or a whole number")
        names = [unicodedata.normalize("NFC", str(value)) for value in values]
        try:
            classes = sorted(set(names), key=lambda name: (int(name), name))
        except ValueError:
            classes = sorted(set(names))
        order = {name: index for index, name in enumerate(classes)}
        return tuple(classes), np.array([order[name] for name in names], np.int64)

    def _roles(self, words: list[Any]) -> np.ndarray[Any, np.dtype[np.str_]]:
        roles = [role_of(str(word)) for word in words]
        bad = [row for row, role in enumerate(roles) if role is None]
        self._refuse_rows(bad, lambda row: f"has the split {words[row]!r}; give train, validation or test")
        return np.array(roles)

    def _files(self, values: list[Any]) -> tuple[list[str], Callable[[int], Item]]:
        """Find the files that are listed; their keys are their paths in the table's folder."""
        bad = [row for row, value in enumerate(values) if not isinstance(value, str) or not value]
        self._refuse_rows(bad, lambda row: f"has the path {values[row]!r}; give a file's")
        folder = self._root.parent.absolute()
        files = [Path(os.path.normpath(folder / value)) for value in values]
        bad = [row for row, file in enumerate(files) if not file.is_relative_to(folder)]
        self._refuse_rows(bad, lambda row: f"is {values[row]}, outside of the table's folder {folder}; put it there")
        bad = [row for row, file in enumerate(files) if not file.is_file()]
        self._refuse_rows(bad, lambda row: f"is {values[row]}, and there is no such file in {folder}")
        keys = [unicodedata.normalize("NFC", file.relative_to(folder).as_posix()) for file in files]
        first: dict[str, int] = {}
        bad = [row for row, key in enumerate(keys) if first.setdefault(key, row) != row]
        self._refuse_rows(bad, lambda row: f"is {values[row]}, as row {first[keys[row]] + 1} is; list a file once")
        return keys, files.__getitem__

    def _has_bytes(self, image: str) -> bool:
        """Whether a column has the bytes of images, by themselves or beside a path as Hugging Face writes them."""
        if not self._parquet:
            return False
        kind = pq.read_schema(self._root).field(image).type
        return _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    def _bytes(self, image: str) -> tuple[list[str], Callable[[int], Item]]:
        """Map the bytes of images; their keys are hashes of them."""
        table = map_column(self._root, image)
        keys = table["key"].to_pylist()
        bad = [row for row, key in enumerate(keys) if key is None]
        self._refuse_rows(bad, lambda _: "has no bytes of an image")
        return keys, _Bytes(table["bytes"])

    def _refuse_rows(self, rows: Sequence[int], what: Callable[[int], str]) -> None:
        if rows:
            more = f" (one of {len(rows)} such rows)" if len(rows) > 1 else ""
            raise self._refuse(f"row {rows[0] + 1} {what(rows[0])}{more}")

    def _refuse(self, remedy: str) -> ConfigError:
        return ConfigError("data.root", self._root, remedy)


@dataclass(frozen=True)
class _Rows:
    """Items of some rows."""

    item: Callable[[int], Item]
    rows: Indices

    def __call__(self, index: int) -> Item:
        return self.item(int(self.rows[index]))


@dataclass(frozen=True)
class _Bytes:
    """Items of a column of bytes."""

    column: pa.ChunkedArray

    def __call__(self, index: int) -> bytes:
        content: bytes = self.column[index].as_py()
        return content


def map_column(file: Path, column: str) -> pa.Table:
    """Map the images of a Parquet file, which is compressed, from an uncompressed copy that all processes share.

    Returns:
        Columns "bytes" and "key", a hash of them. Where the cache folder cannot be written to, they are in memory.
    """
    stat, place = file.stat(), f"1 {file.resolve()} {column}".encode(errors="surrogateescape")
    name, folder = hashlib.blake2b(place, digest_size=16).hexdigest(), cache_folder() / "tables"
    copy = folder / f"{name}-{stat.st_size}-{stat.st_mtime_ns}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not copy.exists():
                for older in folder.glob(f"{name}-*"):  # of what the file was before
                    older.unlink()
                with atomic_write(copy) as scratch, pa.ipc.new_file(str(scratch), _SCHEMA) as out:
                    for batch in _batches(file, column):
                        out.write_batch(batch)
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()
    except OSError:
        return pa.Table.from_batches(_batches(file, column), _SCHEMA)


_SCHEMA = pa.schema({"bytes": pa.large_binary(), "key": pa.string()})


def _batches(file: Path, column: str) -> Iterator[pa.RecordBatch]:
    for batch in pq.ParquetFile(file).iter_batches(_BATCH, columns=[column]):
        values = batch.column(0)
        if pa.types.is_struct(values.type):
            values = pa.array([value and value["bytes"] for value in values.to_pylist()], pa.large_binary())
        keys = [hashlib.blake2b(value, digest_size=16).hexdigest() if value else None for value in values.to_pylist()]
        yield pa.RecordBatch.from_arrays([values.cast(pa.large_binary()), pa.array(keys, pa.string())], schema=_SCHEMA)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
