"""List the images of a folder or of a remote store."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from wildcat.data.formats import SNIFFED_BYTES, needs_content, skipped_type
from wildcat.data.remote import is_url, read_range, walk_files
from wildcat.errors import DataError


def list_images(folder: str | Path, recursive: bool = True, skipped: Counter[str] | None = None) -> list[Path]:
    """The image files of `folder`, sorted by path; skips hidden files and folders, follows links.

    A file is an image if its suffix says so, or if Pillow opens it.

    Args:
        skipped: counts everything else by its type, see `wildcat.data.formats.skipped_note`.

    Raises:
        DataError: `folder` is not a folder, or cannot be listed.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder.", "Give a folder that holds images.")
    return [Path(path) for path in sorted(image_files(str(folder), skipped, recursive))]


def holds_images(folder: Path) -> bool:
    """Whether `folder` holds an image at any depth."""
    return any(image_files(str(folder)))


def image_files(folder: str, skipped: Counter[str] | None = None, recursive: bool = True) -> Iterator[str]:
    """The image files of a folder or URL, in the order of `walk_files`; see `list_images`."""
    for path in walk_files(folder, skipped, recursive):
        kind = _skipped_file_type(path)
        if not kind:
            yield path
        elif skipped is not None:
            skipped[kind] += 1


def _skipped_file_type(path: str) -> str:
    """`skipped_type` of a local or remote file."""
    if not needs_content(path):
        return skipped_type(path, None)
    if is_url(path):
        return skipped_type(path, io.BytesIO(read_range(path, 0, SNIFFED_BYTES)))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait  # noqa: PTH116
            return "special file"
        with open(path, "rb") as file:  # noqa: PTH123
            return skipped_type(path, file)
    except OSError:
        return skipped_type(path, None)
