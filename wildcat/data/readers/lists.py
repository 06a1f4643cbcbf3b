"""Images that a list, table or annotation file names: read the list, find the files."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from wildcat.data.dataset import Sample, one_label
from wildcat.data.formats import NAMED_SUFFIXES
from wildcat.data.layout import find_images
from wildcat.errors import DataError


def read_lines(path: Path) -> dict[str, int]:
    """Stripped line -> its number in the file, without blank lines.

    Raises:
        DataError: the file is missing or not UTF-8, or has a line twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file (byte {error.start} is not UTF-8).", "Restore the list.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", "Restore the list.") from error
    lines: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line in lines:
            raise DataError(
                f"{path}, line {number}: {line!r} appears already in line {lines[line]}.",
                "Remove one of the two lines.",
            )
        if line:
            lines[line] = number
    return lines


def missing_image(path: Path, number: int, name: str, folder: Path) -> DataError:
    """The error for line `number` of the list `path`, which names an image that `folder` does not have."""
    return DataError(
        f"{path}, line {number}: image {name!r} is not in {folder}.", "Restore the image, or the list if it was cut."
    )


def read_class_list(folder: Path, path: Path, classes: Sequence[str]) -> list[Sample]:
    """The samples of a list of lines `<class>/<image>`, in its order; images are relative to `folder`.

    Raises:
        DataError: the list is not UTF-8, or names an image twice, a missing image or an unknown class.
    """
    samples = []
    for line, number in read_lines(path).items():
        name = line.partition("/")[0]
        if name not in classes or not (folder / line).is_file():
            raise missing_image(path, number, line, folder)
        samples.append(Sample(line, folder / line, one_label(classes.index(name), len(classes))))
    return samples


def find_named(names: Sequence[str], folders: Iterable[Path]) -> tuple[Path, list[str]] | None:
    """The first of the folders that has all images, and their paths in it; None if no folder has all.

    Names may be written on Windows (`images\\a.jpg`), on another machine (`/data/upload/3/a.jpg`, a URL), in another
    case or Unicode form, or without a suffix: leading folders are dropped, the same number from each name, until every
    name leads to a file of its own.
    """
    parts = [[part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] for name in names]
    if not parts or not all(parts):
        return None
    absolute = names[0].startswith("/")
    for folder in folders:
        listing = _Listing(folder)
        for drop in range(max(map(len, parts))):
            root = "/" if absolute and drop == 0 else ""
            wanted = [root + "/".join(some[min(drop, len(some) - 1) :]) for some in parts]
            if listing.find(wanted[0]) is None:
                continue
            found = [listing.find(name) for name in wanted]
            if None not in found and len(set(found)) == len(set(names)):
                return folder, [name for name in found if name is not None]
    return None


def names_in(names: Iterable[str], folder: Path) -> set[str]:
    """Those of the names that lead to a file of the folder, each without as many leading folders as that takes."""
    listing = _Listing(folder)

    def leads(name: str) -> bool:
        parts = name.replace("\\", "/").split("/")
        return any(listing.find("/".join(parts[drop:])) for drop in range(len(parts)))

    return {name for name in names if leads(name)}


def find_anywhere(names: Sequence[str], root: Path) -> list[str] | None:
    """The paths below `root` of the images with these file names, perhaps without suffix; None unless each has one
    of its own."""
    by_name: dict[str, list[str]] = {}
    for image in find_images(root)[0]:
        file = image.rpartition("/")[2]
        for key in {file, file.rpartition(".")[0]}:
            by_name.setdefault(key, []).append(image)
    found = [by_name.get(name.rpartition("/")[2], []) for name in names]
    if not all(len(images) == 1 for images in found) or len({images[0] for images in found}) < len(set(names)):
        return None
    return [images[0] for images in found]


class _Listing:
    """The files of a folder by name; each folder in it is listed once, as 82,000 queries of a disk take minutes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listed = folder, dict[str, dict[str, str]]()

    def find(self, name: str) -> str | None:
        """The path of the file with this name, or the only one that differs from it in case, form or suffix alone."""
        parent, _, file = name.rpartition("/")
        if name.startswith("/") and not parent:
            parent = "/"
        if parent not in self.listed:
            self.listed[parent] = self._list(parent)
        found = self.listed[parent]
        match = found.get(file) or found.get(f"\0{_folded(file)}") or found.get(f"\0{_folded(file)}.")
        return f"{parent}/{match}".lstrip("/" if not parent else "") if match else None

    def _list(self, parent: str) -> dict[str, str]:
        """Name -> file; and after a zero byte the folded name, and the folded stem and a dot -> the only such file."""
        try:
            files = [path.name for path in (self.folder / parent).iterdir()]
        except OSError:
            return {}
        found: dict[str, str] = {}
        for file in files:
            stem, dot, suffix = _folded(file).rpartition(".")
            keys = [_folded(file), f"{stem}."] if dot and f".{suffix}" in NAMED_SUFFIXES else [_folded(file)]
            for key in keys:
                found[f"\0{key}"] = "" if f"\0{key}" in found else file  # "": several
        return found | {file: file for file in files}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
