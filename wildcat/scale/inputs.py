"""What a user names, as a stream of images in a fixed order: files, folders, patterns, tar shards, Parquet tables.

An image is listed before it is read: an `ImageLocation` is a few hundred bytes, so that any process can be handed any
of them. The order follows from the sources alone.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wildcat.data import shards
from wildcat.data.image_ref import ImageLocation, ImageRef, check_size
from wildcat.data.images import IMAGE_SUFFIXES, Decoded, MaxDownscale, decode_bytes, full_size
from wildcat.data.remote import (
    expand_braces,
    file_name,
    file_suffix,
    glob_files,
    is_url,
    local_path,
    path_type,
    walk_files,
)
from wildcat.errors import ConfigError, DataError, ImageError, did_you_mean
from wildcat.scale import parquet as tables


@dataclass(frozen=True, slots=True)
class Held(ImageRef):
    """An image whose bytes are at hand: a cell of a table."""

    listed: ImageLocation
    content: bytes | None
    fault: str = ""

    @property
    def name(self) -> str:
        """As that of the listed image."""
        return self.listed.name

    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        """As `ImageRef.decode`.

        Raises:
            ImageError: the cell holds none.
        """
        if self.content is None:
            raise ImageError(f"{self.name} {self.fault}.", "Write the bytes of its image into the table.")
        check_size(self.name, len(self.content))
        return decode_bytes(self.content, self.name, max_downscale)


@dataclass(frozen=True)
class Source:
    """One thing a user named.

    Attributes:
        place: a file or folder.
        kind: "image", "folder", "shard" or "table".
    """

    place: str
    kind: str


def find_sources(texts: Sequence[str]) -> list[Source]:
    """What the texts stand for, in their order, each once: braces and patterns replaced by the files they mean.

    Raises:
        ConfigError: no text, braces that make millions, an unknown store.
        DataError: nothing is there, or a pattern fits no file.
    """
    if not texts:
        raise ConfigError("there is nothing to predict.", "Name images, folders, globs in quotes, shards or tables.")
    found = [source for text in texts for part in expand_braces(text) for source in _sources_at(local_path(part))]
    return list(dict.fromkeys(found))


def _sources_at(place: str) -> Iterator[Source]:
    kind = path_type(place)
    if kind == "folder":
        yield Source(place, "folder")
    elif kind == "file":
        yield Source(place, _kind_of_file(place))
    elif glob.has_magic(place):
        files = glob_files(place)
        if not files:
            raise DataError(f"no file matches {place}.", "Check the pattern; ** stands for any depth of folders.")
        yield from (Source(file, _kind_of_file(file)) for file in files)
    else:
        folder = Path(place).parent
        there = [] if is_url(place) or not folder.is_dir() else [p.name for p in folder.iterdir()]
        raise DataError(
            f"{place} does not exist.",
            did_you_mean(file_name(place), there) or "Give an image, a folder, a glob in quotes, a .tar or a .parquet.",
        )


def _kind_of_file(place: str) -> str:
    name = file_name(place).lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(
            f"{place} is a compressed archive, in which no image can be found without reading all before it.",
            "Unpack it to a plain .tar; images are compressed already.",
        )
    return {".tar": "shard", ".parquet": "table", ".pq": "table"}.get(file_suffix(place), "image")


def list_images(sources: Iterable[Source], column: str | None = None) -> Iterator[ImageLocation]:
    """The images of the sources, in order, in bounded memory; nothing but names, headers and counts is read.

    Args:
        column: of tables, the one with the images; None: the one that can only be it.

    Raises:
        DataError: a folder without images, a shard that is cut, a table without images.
        MissingExtra: a table, and pyarrow is not installed.
    """
    for source in sources:
        if source.kind == "image":
            yield ImageLocation(source.place)
        elif source.kind == "shard":
            yield from shards.list_members(source.place)
        elif source.kind == "table":
            for row in range(tables.count_rows(source.place, column)):
                yield ImageLocation(source.place, str(row))
        else:
            yield from _images_below(source.place)


def _images_below(folder: str) -> Iterator[ImageLocation]:
    images, others = 0, set()
    for place in walk_files(folder):
        suffix = file_suffix(place)
        if suffix in IMAGE_SUFFIXES:
            images += 1
            yield ImageLocation(place)
        elif suffix in (".tar", ".parquet"):
            others.add(suffix)
    if not images:
        hint = "Give a folder with .jpg, .png, ... files, or the files themselves."
        if others:
            hint = f"It holds {' and '.join(sorted(others))} files: name them, such as '{folder}/*{min(others)}'."
        raise DataError(f"{folder} holds no images.", hint)


def hold_images(listed: Sequence[ImageLocation], column: str | None = None) -> Iterator[ImageRef]:
    """The same images, ready to be read in threads: rows of tables with their bytes, which come one after another.

    Raises:
        DataError: a table is gone or damaged.
    """
    for (place, is_cell), group in itertools.groupby(listed, lambda one: (one.file, _is_cell(one))):
        if not is_cell:
            yield from group
            continue
        cells = list(group)
        for one, (content, fault) in zip(
            cells, tables.read_cells(place, [int(one.member) for one in cells], column), strict=True
        ):
            yield Held(one, content, fault)


def _is_cell(listed: ImageLocation) -> bool:
    return bool(listed.member) and listed.size < 0
