"""What a user names, as a stream of pictures in a fixed order: files, folders, patterns, tar shards, Parquet tables.

A picture is listed before it is read: a `Listed` says where its bytes lie and is a few hundred bytes itself, so that
any process can be handed any of them. The order follows from the sources alone.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wildcat.bulk import tables
from wildcat.data import shards
from wildcat.data.images import IMAGE_SUFFIXES, Reduced, Spare, as_stored, decode_reduced
from wildcat.data.places import expand_braces, is_address, kind_of, last_part, matches, place_of, suffix_of, walk
from wildcat.data.stored import Listed, StoredPicture, check_size
from wildcat.errors import ConfigError, DataError, ImageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Held(StoredPicture):
    """A picture whose bytes are at hand: a cell of a table."""

    listed: Listed
    content: bytes | None
    fault: str = ""

    @property
    def name(self) -> str:
        """As that of the listed picture."""
        return self.listed.name

    def read(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            ImageError: the cell holds none.
        """
        return self.read_reduced(as_stored)[0]

    def read_reduced(self, spare: Spare) -> Reduced:
        """As `read`, perhaps smaller.

        Raises:
            ImageError: as `read`.
        """
        if self.content is None:
            raise ImageError(f"{self.name} {self.fault}.", "Write the bytes of its picture into the table.")
        check_size(self.name, len(self.content))
        return decode_reduced(self.content, self.name, spare)


@dataclass(frozen=True)
class Source:
    """One thing a user named.

    Attributes:
        place: a file or folder.
        kind: "picture", "folder", "shard" or "table".
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
        raise ConfigError("there is nothing to predict.", "Name pictures, folders, globs in quotes, shards or tables.")
    found = [source for text in texts for part in expand_braces(text) for source in _sources_at(place_of(part))]
    return list(dict.fromkeys(found))


def _sources_at(place: str) -> Iterator[Source]:
    kind = kind_of(place)
    if kind == "folder":
        yield Source(place, "folder")
    elif kind == "file":
        yield Source(place, _kind_of_file(place))
    elif glob.has_magic(place):
        files = matches(place)
        if not files:
            raise DataError(f"no file matches {place}.", "Check the pattern; ** stands for any depth of folders.")
        yield from (Source(file, _kind_of_file(file)) for file in files)
    else:
        folder = Path(place).parent
        there = [] if is_address(place) or not folder.is_dir() else [p.name for p in folder.iterdir()]
        raise DataError(
            f"{place} does not exist.",
            did_you_mean(last_part(place), there)
            or "Give a picture, a folder, a glob in quotes, a .tar or a .parquet.",
        )


def _kind_of_file(place: str) -> str:
    name = last_part(place).lower()
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(
            f"{place} is a compressed archive, in which no picture can be found without reading all before it.",
            "Unpack it to a plain .tar; pictures are compressed already.",
        )
    return {".tar": "shard", ".parquet": "table", ".pq": "table"}.get(suffix_of(place), "picture")


def list_pictures(sources: Iterable[Source], column: str | None = None) -> Iterator[Listed]:
    """The pictures of the sources, in order, in bounded memory; nothing but names, headers and counts is read.

    Args:
        column: of tables, the one with the pictures; None: the one that can only be it.

    Raises:
        DataError: a folder without pictures, a shard that is cut, a table without pictures.
        MissingExtra: a table, and pyarrow is not installed.
    """
    for source in sources:
        if source.kind == "picture":
            yield Listed(source.place)
        elif source.kind == "shard":
            for member in shards.list_members(source.place):
                yield Listed(source.place, member.name, member.start, member.size, member.fault)
        elif source.kind == "table":
            for row in range(tables.count_rows(source.place, column)):
                yield Listed(source.place, str(row))
        else:
            yield from _pictures_below(source.place)


def _pictures_below(folder: str) -> Iterator[Listed]:
    pictures, others = 0, set()
    for place in walk(folder):
        suffix = suffix_of(place)
        if suffix in IMAGE_SUFFIXES:
            pictures += 1
            yield Listed(place)
        elif suffix in (".tar", ".parquet"):
            others.add(suffix)
    if not pictures:
        hint = "Give a folder with .jpg, .png, ... files, or the files themselves."
        if others:
            hint = f"It holds {' and '.join(sorted(others))} files: name them, such as '{folder}/*{min(others)}'."
        raise DataError(f"{folder} holds no pictures.", hint)


def hold_pictures(listed: Sequence[Listed], column: str | None = None) -> Iterator[StoredPicture]:
    """The same pictures, ready to be read in threads: rows of tables with their bytes, which come one after another.

    Raises:
        DataError: a table is gone or damaged.
    """
    for (place, is_cell), group in itertools.groupby(listed, lambda one: (one.place, _is_cell(one))):
        if not is_cell:
            yield from group
            continue
        cells = list(group)
        for one, (content, fault) in zip(
            cells, tables.read_cells(place, [int(one.inside) for one in cells], column), strict=True
        ):
            yield Held(one, content, fault)


def _is_cell(listed: Listed) -> bool:
    return bool(listed.inside) and listed.size < 0
