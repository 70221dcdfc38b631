"""Image folders: which folders are splits, which are classes, which files are images; what is passed over is said.

Everything that Pillow opens is an image, whatever its name. What systems and programs leave behind never is.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from alast_tune.errors import ConfigError
from alast_tune.text import shorten_list

_LEFT_BEHIND = {
    "__macosx", "__pycache__", "@eadir", "@recently-snapshot", "@recycle", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "found.000", "recycler", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "icon\r",
}  # fmt: skip
"""Names of folders and files, in lower case, that systems leave in any folder."""

_SPLIT_NAME = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val|valid|validation|dev|development|eval|evaluation)"
    r"|(?P<test>test(?:ing)?))"
    r"(?:[ _.-]*(?:set|split|data|images?|imgs?))?[ _.-]*\d*",
    re.IGNORECASE,
)
"""train, Training, train_set, train2017; val, valid, dev; test, Testing, ..."""

_UNDECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow recognizes but cannot read by itself."""

_VAGUE = {"FITS", "FLI", "GBR", "IM", "IMT", "IPTC", "MCIDAS", "MSP", "PCD", "PCX", "PIXAR", "SPIDER", "TGA", "XVTHUMB"}
"""Formats with hardly a signature: for those the name has to speak too."""


@dataclass
class Part:
    """The images of one split, in the order of their keys within each class."""

    folder: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    """Name -> image files; all keys in one order on every system."""

    def key(self, file: Path) -> str:
        """Name of a file that stays as the folder moves: its path within this part."""
        return unicodedata.normalize("NFC", file.relative_to(self.folder).as_posix())


@dataclass
class ImageFolder:
    """The splits of an image folder: "train", maybe "validation", maybe "test"; or "all" where nobody has split it."""

    parts: dict[str, Part]
    notes: tuple[str, ...]
    """What was not used, a line each."""


def open_folder(root: Path | None) -> ImageFolder:
    """Find splits, classes and images; no image is decoded, and none opened whose name says what it is.

    Raises:
        ConfigError: no such folder, or one that may mean different things.
    """
    if root is None:
        raise ConfigError("data.root", root, "an image folder must be given; it holds train/<class>/* or <class>/*")
    if not root.is_dir():
        raise ConfigError("data.root", root, "no such folder; give one that holds train/<class>/* or <class>/*")
    try:
        return _Reader(root).read()
    except OSError as error:
        raise ConfigError("data.root", root, f"cannot be read ({error}); see to its permissions") from error


@dataclass
class _Listing:
    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)


class _Reader:
    """One pass over an image folder, counting what is no image."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._passed: Counter[tuple[str, str]] = Counter()
        """(kind, folder) -> files or folders that are passed over."""
        self._lists: dict[Path, _Listing] = {}

    def read(self) -> ImageFolder:
        splits, others = self._splits()
        parts = {role: self._part(folder) for role, folder in splits.items()}
        self._check_classes(parts["train"] if "train" in parts else parts["all"])
        if "train" in parts:
            self._make_agree(parts)
        notes = self._unused(others) if splits.keys() != {"all"} else []
        if self._passed:
            notes.append(f"passed over in {self._root}: {', '.join(self._kinds())}")
        return ImageFolder(parts, tuple(notes))

    def _kinds(self) -> Iterator[str]:
        """Say what was passed over, by kind and folder."""
        for kind in dict.fromkeys(kind for (kind, _), _ in self._passed.most_common()):
            counts = {where: count for (other, where), count in self._passed.items() if other == kind}
            yield f"{sum(counts.values())} {kind} (in {shorten_list(counts)})"

    def _splits(self) -> tuple[dict[str, Path], list[Path]]:
        """Tell the folders that are splits, by name and content, from the others."""
        splits: dict[str, Path] = {}
        others = []
        for folder in self._list(self._root).folders:
            role, inside = role_of(folder.name), self._list(folder)
            if role is None or not inside.folders:
                others.append(folder)
                continue
            if inside.images:
                raise self._refuse(
                    f"{folder.name}/ holds both images and folders; if it is a split, put each image into a folder of "
                    "its class, if it is a class, put its images beside one another"
                )
            if role in splits:
                names = f"{splits[role].name}/ and {folder.name}/"
                raise self._refuse(f"{names} both look like the {role} split; keep one, or rename the other")
            splits[role] = folder
        unlike = [folder for folder in others if role_of(folder.name) is None]
        if not splits:
            like = [folder.name for folder in others if folder not in unlike]
            if len({role_of(name) for name in like}) > 1 or (like and not unlike):
                names = shorten_list(like)
                raise self._refuse(
                    f"{names} look like splits, but hold no class folders; put images into <split>/<class>/"
                )
            return {"all": self._root}, others
        if classes := [f"{folder.name}/" for folder in unlike if self._list(folder).images]:
            split = next(iter(splits.values())).name
            raise self._refuse(
                f"{split}/ looks like a split (train, val, test), but {shorten_list(classes)} like classes of an "
                f"undivided folder; move these into a split, or if {split} is a class, put its images into {split}/ "
                "itself"
            )
        if "train" not in splits:
            names = ", ".join(sorted(folder.name for folder in splits.values()))
            raise self._refuse(f"has {names} but no train folder; add it")
        return {role: splits[role] for role in ("train", "validation", "test") if role in splits}, others

    def _part(self, folder: Path) -> Part:
        """Find the classes of a split."""
        part, top = Part(folder), self._list(folder)
        if top.images:
            self._passed["images without a class", self._where(folder)] += len(top.images)
        for inner in top.folders:
            found = self._list(inner)
            images = sorted(self._images_below(inner), key=part.key)
            if images and not found.images:
                names = shorten_list(deeper.name for deeper in found.folders)
                raise self._refuse(
                    f"{self._where(inner)} holds only folders ({names}), and a class is one folder of images; "
                    "set data.root to the folder that holds the classes, or put the images of a class together"
                )
            name = unicodedata.normalize("NFC", inner.name)
            if name in part.classes:
                raise self._refuse(
                    f"{self._where(inner)} is there twice, in two Unicode forms; put both into one folder"
                )
            part.classes[name] = images
        return part

    def _make_agree(self, parts: dict[str, Part]) -> None:
        """Let all parts have the classes to train on, in one order; a held-out one may have no image of some."""
        train = parts["train"]
        for part in parts.values():
            odd = [name for name, files in part.classes.items() if files and name not in train.classes]
            if odd:
                raise self._refuse(
                    f"{part.folder.name}/ and train/ hold different classes ({shorten_list(odd)}); make them agree"
                )
            if not any(part.classes.values()) and part is not train:
                raise self._refuse(f"{part.folder.name}/ holds no image in a class folder; add some, or remove it")
            part.classes = {name: part.classes.get(name, []) for name in train.classes}

    def _check_classes(self, part: Part) -> None:
        """Refuse a part to train on without images of a class, or without a choice of classes."""
        where = f"{part.folder.name}/"
        empty = [name for name, files in part.classes.items() if not files]
        if empty:
            place = self._where(part.folder / empty[0])
            kinds = [f"{count} {kind}" for (kind, found), count in self._passed.items() if found.startswith(place)]
            but = f", but {shorten_list(kinds)}" if kinds else ""
            raise self._refuse(f"{place} has no image that can be read{but}; add images, or remove the class")
        if len(part.classes) < 2:
            found = f"one class only ({next(iter(part.classes))})" if part.classes else "no class folders"
            raise self._refuse(f"{where} holds {found}; it takes one folder of images for each of 2 or more classes")

    def _unused(self, folders: Iterable[Path]) -> list[str]:
        """Say which folders beside the splits hold images, or look like splits, and are not used."""
        counts = {folder: len(list(self._images_below(folder))) for folder in folders}
        unused = [
            f"{folder.name}/ ({count} images)" for folder, count in counts.items() if count or role_of(folder.name)
        ]
        return [f"not used, since no train, val or test folder of classes: {shorten_list(unused)}"] if unused else []

    def _list(self, folder: Path) -> _Listing:
        """What a folder itself holds, looked at once."""
        if folder not in self._lists:
            found = self._lists[folder] = _Listing()
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                path = folder / entry.name
                if _left_behind(entry.name):
                    self._passed["hidden or of a system", self._where(folder)] += 1
                elif entry.is_dir():
                    found.folders.append(path)
                elif _is_image(path):
                    found.images.append(path)
                else:
                    self._passed[path.suffix.lower() or "without a suffix", self._where(folder)] += 1
        return self._lists[folder]

    def _images_below(self, folder: Path, around: tuple[Path, ...] = ()) -> Iterator[Path]:
        """The images in a folder and in those in it."""
        real = folder.resolve()
        if real in around:
            raise self._refuse(f"{self._where(folder)} is a link to a folder that it lies in; remove it")
        found = self._list(folder)
        yield from found.images
        for inner in found.folders:
            yield from self._images_below(inner, (*around, real))

    def _where(self, folder: Path) -> str:
        return f"{folder.relative_to(self._root).as_posix()}/"

    def _refuse(self, remedy: str) -> ConfigError:
        return ConfigError("data.root", self._root, remedy)


def role_of(name: str) -> str | None:
    """Which split something looks like by its name: "train", "validation", "test"; None: none."""
    match = _SPLIT_NAME.fullmatch(name)
    return match and match.lastgroup


def _left_behind(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in _LEFT_BEHIND


@cache
def _suffixes() -> frozenset[str]:
    """Suffixes of files that Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _UNDECODED)


def _is_image(file: Path) -> bool:
    """Whether a file is to be read as an image: by its name, or else by how it begins."""
    if file.suffix.lower() in _suffixes():
        return True
    try:
        Image.open(file, formats=sorted(Image.OPEN.keys() - _UNDECODED - _VAGUE)).close()
    except Exception:  # the formats' readers raise nearly anything on what is none of theirs
        return False
    return True
