"""Sources as a stream of image references in a fixed order: files, folders, globs, tar shards, Parquet tables.

A reference says where the bytes of its image are and takes a few hundred bytes itself, so that it can be sent to any
process. The order depends on the sources alone.
"""

from __future__ import annotations

import glob
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from wildcat.data import shards
from wildcat.data.formats import VIDEO_SUFFIXES, skipped_note
from wildcat.data.image_ref import EncodedImage, ImageLocation, ImageRef, list_pages, named_page
from wildcat.data.listing import image_files
from wildcat.data.remote import (
    expand_braces,
    file_name,
    file_suffix,
    glob_files,
    is_url,
    local_path,
    path_type,
)
from wildcat.errors import ConfigError, DataError, did_you_mean
from wildcat.scale import parquet

VIDEO_HINT = "wildcat predict without --shard-rows reads the frames of videos; elsewhere extract them, with ffmpeg."


class InputSource(NamedTuple):
    """A file, folder or URL that the user named, and how its images are listed."""

    path: str
    kind: Literal["image", "folder", "tar", "table", "video"]


def find_sources(texts: Sequence[str]) -> list[InputSource]:
    """The sources that the texts name, in order, each once; braces and globs are replaced by the files they match.

    Raises:
        ConfigError: no text, braces that make millions of files, or an unknown store.
        DataError: a source that does not exist, or a glob without a match.
    """
    if not texts:
        raise ConfigError("no images are given.", "Name images, folders of images, or globs in quotes.")
    found = [source for text in texts for part in expand_braces(text) for source in _sources_at(local_path(part))]
    return list(dict.fromkeys(found))


def _sources_at(path: str) -> Iterator[InputSource]:
    kind = path_type(path)
    if kind == "folder":
        yield InputSource(path, "folder")
    elif kind == "file":
        yield _file_source(path)
    elif named_page(path):
        yield InputSource(path, "image")
    elif glob.has_magic(path):
        files = glob_files(path)
        if not files:
            raise DataError(f"no file matches {path}.", "Check the pattern; ** stands for any depth of folders.")
        yield from map(_file_source, files)
    else:
        folder = Path(path).parent
        names = [] if is_url(path) or not folder.is_dir() else [path.name for path in folder.iterdir()]
        raise DataError(
            f"{path} does not exist.",
            did_you_mean(file_name(path), names, folder) or "Give an image, a folder, or a glob in quotes.",
        )


def _file_source(path: str) -> InputSource:
    if file_name(path).lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(
            f"{path} is a compressed archive, whose members cannot be read one by one.",
            "Unpack it to a plain .tar; images are compressed already.",
        )
    suffix = file_suffix(path)
    if suffix in VIDEO_SUFFIXES:
        return InputSource(path, "video")
    return InputSource(path, "tar" if suffix == ".tar" else "table" if suffix in (".parquet", ".pq") else "image")


def image_locations(
    sources: Iterable[InputSource], column: str | None = None, skipped: Counter[str] | None = None
) -> Iterator[ImageLocation]:
    """The images of the sources, in order and in bounded memory; only names, headers and row counts are read.

    Each page of a local TIFF file, and each frame of a DICOM file, is an image.

    Args:
        column: the column of Parquet tables with the images; None: the only possible one.
        skipped: counts what is no image in folders and shards by its type.

    Raises:
        DataError: a folder without images, a truncated tar shard, a table without images.
        ConfigError: a video.
        MissingExtra: a table, and pyarrow is not installed.
    """
    for source in sources:
        if source.kind == "image":
            page = named_page(source.path)
            yield from [page] if page else list_pages(source.path)
        elif source.kind == "video":
            raise ConfigError(f"{source.path} is a video, not an image.", VIDEO_HINT)
        elif source.kind == "tar":
            yield from shards.list_members(source.path, skipped=skipped)
        elif source.kind == "table":
            for row in range(parquet.count_rows(source.path, column)):
                yield ImageLocation(source.path, str(row))
        else:
            yield from _images_below(source.path, skipped)


def _images_below(folder: str, skipped: Counter[str] | None) -> Iterator[ImageLocation]:
    others: Counter[str] = Counter()
    first = None
    for path in image_files(folder, others):
        first = path
        yield from list_pages(path)
    if skipped is not None:
        skipped.update(others)
    if first is None:
        hint = "Give a folder with .jpg, .png, ... files, or the files themselves."
        if tables := sorted({".tar", ".parquet"} & others.keys()):
            hint = f"It holds {' and '.join(tables)} files: name them, such as '{folder}/*{tables[0]}'."
        raise DataError(f"{folder} holds no images.", f"{skipped_note('Below it', others)} {hint}".strip())


def load_cells(images: Sequence[ImageLocation], column: str | None = None) -> Iterator[ImageRef]:
    """The same images, ready to be read in threads: for rows of tables, their bytes are read here, in order.

    Raises:
        DataError: a table is gone or damaged.
    """
    by_file = itertools.groupby(images, lambda image: (image.file, bool(image.member) and image.size < 0))
    for (path, is_cell), group in by_file:
        if not is_cell:
            yield from group
            continue
        cells = list(group)
        contents = parquet.read_images(path, [int(image.member) for image in cells], column)
        for image, (content, fault) in zip(cells, contents, strict=True):
            yield EncodedImage(image, content, fault)
