"""What a user names, as a stream of pictures in a fixed order: files, folders, patterns, tar shards, Parquet tables.

A picture is listed before it is read: a `Listed` says where its bytes lie and is a few hundred bytes itself, so that
any process can be handed any of them. The order follows from the sources alone.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wildcat.bulk import shards, tables
from wildcat.bulk.places import (
    is_address,
    kind_of,
    last_part,
    matches,
    place_of,
    read_bytes,
    size_of,
    suffix_of,
    walk,
)
from wildcat.data.images import IMAGE_SUFFIXES, Reduced, Spare, as_stored, decode_reduced, read_reduced
from wildcat.data.pictures import StoredPicture
from wildcat.errors import ConfigError, DataError, ImageError, did_you_mean

MAX_BYTES = 1 << 28
"""Of one picture's file: 256 MB. What is larger is refused unread."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_PLACES = 10_000_000


@dataclass(frozen=True, slots=True)
class Listed(StoredPicture):
    """A picture of a source, not read yet.

    Attributes:
        place: the file it lies in.
        inside: what names it there: a member of a shard, or the number of a table's row; empty: the file itself.
        start, size: where its bytes lie in the file; size -1: they are found by `inside`, or are the whole file.
        fault: why it will not be read; empty: it will.
    """

    place: str
    inside: str = ""
    start: int = 0
    size: int = -1
    fault: str = ""

    @property
    def name(self) -> str:
        """`place`, or `place#inside`."""
        return f"{self.place}#{self.inside}" if self.inside else self.place

    def read(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            ImageError: it is refused, gone or broken.
            DataError: what holds it is gone as well.
        """
        return self.read_reduced(as_stored)[0]

    def read_reduced(self, spare: Spare) -> Reduced:
        """As `read`, perhaps smaller.

        Raises:
            ImageError, DataError: as `read`.
        """
        if self.fault:
            raise ImageError(f"{self.name} {self.fault}.", "It is left out; give the picture itself instead.")
        if not self.inside and not is_address(self.place):
            try:
                return read_reduced(self.place, spare)
            except ImageError:
                folder = Path(self.place).parent
                if not folder.is_dir():
                    raise DataError(f"{folder} has vanished.", "Bring it back, then go on with --resume.") from None
                raise
        size = size_of(self.place) if self.size < 0 else self.size
        check_size(self.name, size)
        return decode_reduced(read_bytes(self.place, self.start, size), self.name, spare)


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


def check_size(name: str, size: int) -> None:
    """Refuse the bytes of a picture before they are read.

    Raises:
        ImageError: more than `MAX_BYTES`.
    """
    if size > MAX_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read.", "Save it smaller.")


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


def expand_braces(text: str) -> list[str]:
    """The texts that `{000..009}` and `{a,b}` stand for; a path that exists as it is written stays.

    >>> expand_braces("s-{08..10}.tar"), expand_braces("{a,b}/x")
    (['s-08.tar', 's-09.tar', 's-10.tar'], ['a/x', 'b/x'])
    """
    braces = _BRACES.search(text)
    if braces is None or (not is_address(text) and Path(text).exists()):
        return [text]
    inside, made = braces[1], []
    if span := _RANGE.fullmatch(inside):
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= _MAX_PLACES:
            raise ConfigError(f"{text} stands for {abs(last - first) + 1:,} files.", "Name a smaller range, or a glob.")
        width = max(len(span[1]), len(span[2])) if span[1].startswith("0") or span[2].startswith("0") else 0
        made = [f"{n:0{width}d}" for n in range(first, last + 1) or range(first, last - 1, -1)]
    elif "," in inside:
        made = inside.split(",")
    else:
        return [text]
    return [whole for part in made for whole in expand_braces(text[: braces.start()] + part + text[braces.end() :])]


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
