"""Images decoded once and kept: a file of their bytes that every process which trains on them maps into its memory.

A file belongs to one list of images, each as large, as old and as much reduced as when it was made. A table at its
beginning has a row an image, then come the images, each at a place of its own:

    (N, 2) uint64   1 + checksum of the image's bytes (0: not there), and their number
    (H, W, 3) uint8 of each image, one after another

The table's row is written after the image. What a killed process has left, or a broken disk, fails the checksum: the
image is decoded again and written again. Two processes that write the same image write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wildcat.data.image_ref import ImageRef, read_ref_reduced
from wildcat.data.images import Reduced, Spare, reduced_size
from wildcat.errors import DataError, ImageError

LAYOUT = 1
"""Part of the name of every file: raise it when its bytes change meaning."""

ROW = 16
"""Bytes of the table for each image."""

SUFFIX = ".rgb"


@dataclass(frozen=True)
class _Place:
    row: int
    start: int
    size: tuple[int, int]
    own_size: tuple[int, int]

    @property
    def bytes(self) -> int:
        return 3 * self.size[0] * self.size[1]


class DecodeCache:
    """Reads images as `read_reduced` does, each from its file once, and from then on from the kept bytes.

    The images of the list are kept in its order until `limit` is reached; those after it are decoded every time, as
    is whatever cannot be kept. Of other lists, files of this folder are removed, the longest unused first, where
    together with this one they would exceed the limit.

    Args:
        folder: where files are kept; made where it does not exist.
        images: paths, and how much smaller each may come; of a path listed twice the first one counts, and what is in
            no file of its own is not kept.
        limit: bytes of disk.
        progress: called with 1 for every image whose size has been looked up.

    Raises:
        DataError: the file cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[tuple[Path | ImageRef, Spare]],
        limit: int,
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        first: dict[Path, Spare] = {}
        for path, spare in images:
            if isinstance(path, Path):
                first.setdefault(path, spare)
        self.places: dict[Path, _Place] = {}
        identity, end = hashlib.sha256(json.dumps([LAYOUT, len(first)]).encode()), ROW * len(first)
        for row, (path, spare) in enumerate(first.items()):
            progress(1)
            try:
                size, own_size = reduced_size(path, spare)
                status = path.stat()
            except (ImageError, OSError):  # whoever reads it will hear why
                continue
            place = _Place(row, end, size, own_size)
            if end + place.bytes > limit:
                break
            self.places[path] = place
            end += place.bytes
            identity.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{size}\0".encode())
        self.path = folder / f"{identity.hexdigest()[:32]}{SUFFIX}"
        self.length = end
        self._opened: tuple[int, mmap.mmap] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            make_room(folder, limit - end, keep=self.path)
            self._opened = self._open()
            os.utime(self.path)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error.strerror or error}.",
                "Leave --cache-images out, or let WILDCAT_CACHE name a folder with room.",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __call__(self, path: Path | ImageRef, spare: Spare) -> Reduced:
        """As `wildcat.data.images.read_reduced`; `spare` is that of the list where the image is in it.

        Raises:
            ImageError: the image is not kept yet and cannot be read.
        """
        place = self.places.get(path) if isinstance(path, Path) else None
        if place is None:
            return read_ref_reduced(path, spare)
        if self._opened is None:  # in another process than the one that made it
            self._opened = self._open()
        handle, memory = self._opened
        kept = np.frombuffer(memory, np.uint8, place.bytes, place.start)
        if tuple(np.frombuffer(memory, np.uint64, 2, ROW * place.row)) == (1 + zlib.crc32(kept.data), place.bytes):
            return Image.frombuffer("RGB", place.size, kept, "raw", "RGB", 0, 1), place.own_size
        image, own_size = read_ref_reduced(path, spare)
        if (image.size, own_size) == (place.size, place.own_size):  # otherwise it has changed since
            content = image.tobytes()
            mark = np.array([1 + zlib.crc32(content), len(content)], np.uint64).tobytes()
            with contextlib.suppress(OSError):  # where the disk is full it is decoded again next time
                if os.pwrite(handle, content, place.start) == len(content):
                    os.pwrite(handle, mark, ROW * place.row)
        return image, own_size

    def _open(self) -> tuple[int, mmap.mmap]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)  # another process may have removed it to make room
        if os.fstat(handle).st_size < self.length:
            os.ftruncate(handle, self.length)  # holes take no disk until they are written
        return handle, mmap.mmap(handle, self.length, access=mmap.ACCESS_READ)


def make_room(folder: Path, room: int, keep: Path) -> None:
    """Remove files of `folder`, the longest unused first, until those left beside `keep` take at most `room` bytes.

    A process that has one open reads on in it: its disk is free when it ends.
    """
    others = [(path.stat(), path) for path in folder.glob(f"*{SUFFIX}") if path != keep]
    for status, path in sorted(others, key=lambda other: -other[0].st_mtime):
        room -= status.st_blocks * 512
        if room < 0:
            path.unlink(missing_ok=True)
