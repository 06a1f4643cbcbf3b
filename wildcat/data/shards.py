"""List the members of tar shards in the layout of WebDataset: `shard-000.tar` with `key.jpg`, `key.json`, ...

The `webdataset` package streams shards: it has no random access, so an epoch is no exact permutation of the images.
Here each member's byte range is listed once, and any process then reads any member directly.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from typing import IO

from wildcat.data.formats import SNIFFED_BYTES, needs_content, skipped_type
from wildcat.data.image_ref import ImageLocation
from wildcat.data.remote import file_size, file_suffix, is_hidden, open_file
from wildcat.errors import DataError

MAX_HEADER = 1 << 20  # bytes of a member's name and attributes; tarfile would read as many as a header claims


class _Headers(io.RawIOBase):
    """A shard for tarfile to read headers from; refuses a header that claims more than `MAX_HEADER` bytes."""

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


def list_members(
    shard: str, suffixes: Collection[str] = (), skipped: Counter[str] | None = None
) -> Iterator[ImageLocation]:
    """The images of a shard, and members with one of the suffixes, in its order; unpacks nothing.

    Reads headers, and the beginning of members whose suffix does not say what they are (see `skipped_type`). Links,
    devices and sparse files are listed with an `error` and never followed.

    Args:
        skipped: counts all other members by their type.

    Raises:
        DataError: the shard is missing, cut, damaged or of unknown size; what was listed before is sound.
    """
    total = file_size(shard)
    if total is None:
        raise DataError(f"the server of {shard} does not say its size.", "Download the shard and give the file.")
    with open_file(shard) as raw:
        try:
            with tarfile.open(fileobj=_Headers(raw), mode="r:") as file:
                while (info := file.next()) is not None:
                    file.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member it has read
                    if info.isreg() and info.offset_data + info.size > total:
                        raise tarfile.ReadError(f"{info.name} ends after the shard")
                    if info.isdir():
                        continue
                    kind = "" if file_suffix(info.name) in suffixes else _skipped_member_type(raw, info)
                    if not kind:
                        yield ImageLocation(shard, info.name, info.offset_data, info.size, _member_error(info))
                    elif skipped is not None:
                        skipped[kind] += 1
                # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
                raw.seek(file.offset)
                if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"there is no member and no end at byte {file.offset:,}")
        except (tarfile.TarError, ValueError, EOFError, OverflowError, OSError) as error:
            raise DataError(
                f"{shard} ({total:,} bytes) is cut or damaged: {error}.",
                "Copy it again from its source, then continue with --resume.",
            ) from error


def _skipped_member_type(raw: IO[bytes], info: tarfile.TarInfo) -> str:
    """`skipped_type` of a member."""
    if any(is_hidden(part) for part in info.name.split("/") if part not in ("", ".", "..")):
        return "hidden file"
    if not info.isreg() or not needs_content(info.name):
        return skipped_type(info.name, None)
    raw.seek(info.offset_data)
    return skipped_type(info.name, io.BytesIO(raw.read(min(info.size, SNIFFED_BYTES))))


def _member_error(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}, which is not followed"
    if not info.isreg():
        return "is a device"
    return "is a sparse file" if info.issparse() else ""
