"""Tar shards in the layout of WebDataset: `shard-000.tar` with `key.jpg`, `key.json`, ... one after another."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from wildcat.data.images import IMAGE_SUFFIXES
from wildcat.data.remote import open_place, size_of
from wildcat.errors import DataError

MAX_HEADER = 1 << 20
"""Bytes a member's name and attributes may take; tarfile reads as many as a header claims."""


@dataclass(frozen=True)
class Member:
    """A file in a shard.

    Attributes:
        name: of the member.
        start, size: where its bytes lie in the shard.
        fault: why it will not be read; empty: it will.
    """

    name: str
    start: int
    size: int
    fault: str = ""


class _Headers(io.RawIOBase):
    """A shard of which only headers are read, and a header that claims to be longer than any is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def list_members(shard: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[Member]:
    """The members of a shard with one of the suffixes (images), in its order; others are passed over.

    Links, devices and sparse files are listed with their fault, and never followed. Nothing is unpacked, and of the
    shard only headers are read.

    Raises:
        DataError: the shard is gone, cut or damaged; what was listed before is sound.
    """
    total = size_of(shard)
    with open_place(shard) as raw:
        try:
            with tarfile.open(fileobj=_Headers(raw), mode="r:") as file:
                while (info := file.next()) is not None:
                    file.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member it has seen
                    if info.isreg() and info.offset_data + info.size > total:
                        raise tarfile.ReadError(f"{info.name} ends after the shard")
                    if PurePosixPath(info.name).suffix.lower() in suffixes and not info.isdir():
                        yield Member(info.name, info.offset_data, info.size, _fault_of(info))
                # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
                raw.seek(file.offset)
                if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"there is no member and no end at byte {file.offset:,}")
        except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
            raise DataError(
                f"{shard} ({total:,} bytes) is cut or damaged: {error}.",
                "Copy it again from its source, then go on with --resume.",
            ) from error
        except OSError as error:
            raise DataError(
                f"{shard} cannot be read ({error}).", "Check the disk, then go on with --resume."
            ) from error


def _fault_of(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}, which is not followed"
    if not info.isreg():
        return "is a device"
    return "is a sparse file" if info.issparse() else ""
