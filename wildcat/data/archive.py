"""Unpacking archives that are not trusted: files and folders only, inside the target, within bounds."""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from wildcat.errors import DataError

MAX_ENTRIES = 1_000_000
"""Members of an archive; MS COCO's largest has 118,288."""

_CHUNK = 1 << 20


def unpack(
    archive: Path,
    folder: Path,
    max_bytes: int,
    max_entries: int = MAX_ENTRIES,
    progress: Callable[[int], object] = lambda done: None,
) -> int:
    """Write the files of a `.zip` or plain `.tar` below `folder`, which must be new or empty, and count them.

    An archive may come from a stranger: what is neither file nor folder (links, devices), a name that is absolute, has
    `..`, a backslash or a drive, or comes twice, is refused, as are more than `max_entries` members and more than
    `max_bytes` of content. Owners, permissions and times are not taken over. What was written before a refusal stays:
    remove `folder` then. `progress` is called with the files written so far.

    Raises:
        DataError: what is refused, or an archive that is cut or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = written = 0
    with _archive_errors(archive):
        for entries, (name, is_folder, content) in enumerate(_members(archive), 1):
            if entries > max_entries:
                raise _refusal(archive, f"has more than {max_entries} members")
            path = folder / _safe_name(archive, name)
            if is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with content() as source, path.open("xb") as target:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise _refusal(archive, f"unpacks to more than {max_bytes} bytes")
                    target.write(chunk)
            files += 1
            progress(files)
    return files


Member = tuple[str, bool, Callable[[], IO[bytes]]]
"""Name, whether it is a folder, and how to open its content."""


def _members(archive: Path) -> Iterator[Member]:
    return _zip_members(archive) if archive.suffix.lower() == ".zip" else _tar_members(archive)


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(archive, f"has the member {info.filename!r}, which is a link or device")
            if info.flag_bits & 1:
                raise _refusal(archive, f"has the member {info.filename!r}, which is encrypted")
            yield info.filename, info.is_dir(), lambda info=info: file.open(info)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as file:
        for info in file:
            if not (info.isreg() or info.isdir()):
                raise _refusal(archive, f"has the member {info.name!r}, which is a link or device")
            content = None if info.isdir() else file.extractfile(info)
            yield info.name, info.isdir(), lambda content=content: content  # type: ignore[misc]
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
        raw.seek(file.offset)
        if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"there is no member and no end at byte {file.offset}")


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\\" in name or "\0" in name:
        raise _refusal(archive, f"has the member {name!r}, which would lie outside its folder")
    return path


def _refusal(archive: Path, fault: str) -> DataError:
    return DataError(
        f"{archive} {fault}, and is not unpacked.", "Do not trust this file: get it from its source again."
    )


@contextmanager
def _archive_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise _refusal(archive, f"has a member twice ({error.filename})") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(
            f"{archive} ({archive.stat().st_size} bytes) is cut or damaged: {error}.", "Fetch or copy it again."
        ) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked ({error.strerror or error}).", "Is the disk full?") from error
