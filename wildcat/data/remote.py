"""Local paths and URLs (s3://, gs://, https://, memory://, ...) as one: find, list, open and read files.

Files are read with fsspec; local folders are listed by the operating system. `file://` URLs become paths.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from wildcat.errors import ConfigError, DataError, ImageError, did_you_mean

ATTEMPTS, PAUSE = 4, 0.5  # tries of a remote request, and the first pause between them in seconds; each doubles

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_FILES = 10_000_000  # a range of braces may expand to
# Folders that systems make by themselves, in lower case: thumbnails of a NAS, resource forks in a zip, waste bins.
_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def local_path(text: str) -> str:
    """Expand `~` and turn a `file://` URL into a path; other URLs are unchanged.

    >>> local_path("file:///data/a%20b.jpg"), local_path("s3://bucket/a.jpg")
    ('/data/a b.jpg', 's3://bucket/a.jpg')
    """
    if text.lower().startswith("file://"):
        return url2pathname(urlsplit(text).path)
    return text if is_url(text) else os.path.expanduser(text)  # noqa: PTH111  # Path would change "./a" and "a//b"


def is_url(path: str) -> bool:
    """Whether fsspec opens it, not the operating system."""
    return _URL.match(path) is not None


def expand_braces(text: str) -> list[str]:
    """Expand `{000..009}` and `{a,b}` as a shell does; a path that exists as it is written stays.

    >>> expand_braces("s-{08..10}.tar"), expand_braces("{0..10}")[-2:], expand_braces("{a,b}/x")
    (['s-08.tar', 's-09.tar', 's-10.tar'], ['9', '10'], ['a/x', 'b/x'])
    """
    braces = _BRACES.search(text)
    if braces is None or (not is_url(text) and path_type(text)):
        return [text]
    if span := _RANGE.fullmatch(braces[1]):
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= _MAX_FILES:
            raise ConfigError(f"{text} stands for {abs(last - first) + 1:,} files.", "Name a smaller range, or a glob.")
        padded = any(re.match(r"-?0[0-9]", end) for end in span.groups())
        width = max(map(len, span.groups())) if padded else 0
        parts = [f"{n:0{width}d}" for n in range(first, last + 1) or range(first, last - 1, -1)]
    elif "," in braces[1]:
        parts = braces[1].split(",")
    else:
        return [text]
    return [whole for part in parts for whole in expand_braces(text[: braces.start()] + part + text[braces.end() :])]


def path_type(path: str) -> str:
    """`"folder"`, `"file"`, or empty if there is neither (or no path can have that name).

    Raises:
        ConfigError: a URL of an unknown or uninstalled store.
        DataError: the store cannot be reached.
    """
    if not is_url(path):
        return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else ""  # noqa: PTH110, PTH112
    return "folder" if _request(path, "isdir") else "file" if _request(path, "exists") else ""


def glob_files(pattern: str) -> list[str]:
    """The files that match a pattern, sorted; `**` is any depth of folders. Raises as `path_type`."""
    if not is_url(pattern):
        return sorted(p for p in glob.glob(pattern, recursive=True) if not Path(p).is_dir())  # noqa: PTH207  # absolute
    found, system = _request(pattern, "glob", detail=True), _file_system(pattern)[0]
    return sorted(system.unstrip_protocol(name) for name, info in found.items() if info["type"] != "directory")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never part of a data set: hidden, or made by the system.

    >>> is_hidden(".DS_Store"), is_hidden("@eaDir"), is_hidden("cat")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def walk_files(
    folder: str, skipped: Counter[str] | None = None, recursive: bool = True, parents: frozenset[str] = frozenset()
) -> Iterator[str]:
    """The files below a folder in the order of their names, folder by folder; see `is_hidden` for what is skipped.

    Holds the names of one folder per level. Follows links, but not to a parent folder.

    Args:
        skipped: counts the hidden files and folders by their type.
        recursive: also list the folders in it.

    Raises:
        DataError: a folder cannot be listed.
    """
    if is_url(folder):
        system, key = _file_system(folder)
        entries = {
            system.unstrip_protocol(info["name"].rstrip("/")): info["type"] == "directory"
            for info in _request(folder, "ls", detail=True)
            if info["name"].rstrip("/") != key.rstrip("/")  # a store may list the folder itself
        }
    else:
        real = os.path.realpath(folder)
        if real in parents:
            return
        parents |= {real}
        try:
            with os.scandir(folder) as scanned:
                entries = {entry.path: is_folder(entry) for entry in scanned}
        except OSError as error:
            raise DataError(
                f"{folder} cannot be listed ({error.strerror or error}).", "Check that it exists and its permissions."
            ) from error
    for path in sorted(entries):
        name = file_name(path)
        if is_hidden(name):
            if skipped is not None:
                known = name == ".DS_Store" or name.lower() in _SYSTEM_FOLDERS
                skipped[name if known else f"hidden {'folder' if entries[path] else 'file'}"] += 1
        elif not entries[path]:
            yield path
        elif recursive:
            yield from walk_files(path, skipped, recursive, parents)


def open_file(path: str) -> IO[bytes]:
    """A file, open to read and seek; a DataError if it cannot be opened."""
    return _request(path, "open", "rb")  # type: ignore[no-any-return]


def file_size(path: str) -> int | None:
    """Bytes of a file, None if its server does not say; a DataError if there is no such file."""
    size = _request(path, "size")
    return None if size is None else int(size)


def read_range(path: str, start: int, length: int) -> bytes:
    """`length` bytes of a file from `start`, fewer at its end; a DataError if it cannot be read. Thread-safe."""
    return bytes(_request(path, "cat_file", start, start + length))


def file_name(path: str) -> str:
    """The last component of a path or URL, without the query of an http(s) URL.

    >>> file_name("s3://bucket/a/b.jpg"), file_name("a/b/"), file_name("https://host/c.tar?key=d/e")
    ('b.jpg', 'b', 'c.tar')
    """
    if path.lower().startswith(("http://", "https://")):
        path = re.split("[?#]", path, maxsplit=1)[0]
    return path.replace(os.sep, "/").rstrip("/").rpartition("/")[2]


def file_suffix(path: str) -> str:
    """The suffix of a file name in lower case.

    >>> file_suffix("s3://bucket/a.b/C.JPG"), file_suffix("a.b/c")
    ('.jpg', '')
    """
    return Path(file_name(path)).suffix.lower()


def _file_system(path: str) -> tuple[Any, str]:
    """fsspec's file system for a path or URL, and the path in it; a ConfigError if there is none."""
    import fsspec  # noqa: PLC0415  # slow
    from fsspec.registry import known_implementations  # noqa: PLC0415

    if not is_url(path):
        return fsspec.filesystem("file"), path
    scheme = path.partition("://")[0].lower()
    try:
        system, key = fsspec.core.url_to_fs(path)
    except ImportError as error:
        text = known_implementations.get(scheme, {}).get("err", "")
        quoted, other = re.findall(r'"([\w-]+)"', text), re.findall(r"(?:[Ii]nstall|requires) (?:the )?([\w-]+)", text)
        packages = " ".join(quoted or other[:1])
        raise ConfigError(
            f"{scheme}:// needs a package that is not installed: {error}.",
            f"Type: pip install {packages}" if packages else "Install it with pip.",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path}: unknown scheme {scheme}://.",
            did_you_mean(scheme, [*known_implementations, "file"])
            or "Give a path, or a URL such as s3://, gs://, https:// or file://.",
        ) from error
    return system, key


def _request(path: str, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of the path's file system; a remote request is repeated with growing pauses if it fails."""
    system, key = _file_system(path)
    for attempt in itertools.count(1):
        try:
            return getattr(system, method)(key, *arguments, **options)
        except Exception as error:  # each store raises errors of its own client
            if is_url(path) and isinstance(error, FileNotFoundError):
                raise ImageError(f"{path} does not exist.", "Check the URL.") from error
            final = isinstance(error, (PermissionError, TypeError, NotImplementedError))
            if final or attempt == ATTEMPTS or not is_url(path):
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise DataError(
                    f"{path} cannot be read ({reason}).", "Check that it can be reached, then continue with --resume."
                ) from error
            time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError("unreachable")
