"""Where files lie: a path of this machine, or an address that fsspec knows (s3://, gs://, memory://, ...).

A place is a text. `file://` addresses become paths, so that an image has one name however it was given.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from wildcat.errors import ConfigError, DataError, ImageError, MissingExtra, did_you_mean

ATTEMPTS, PAUSE = 4, 0.5
"""How often a store is asked before it counts as out of reach, and the first pause in seconds; each doubles."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MAX_PLACES = 10_000_000
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def place_of(text: str) -> str:
    """The place a user means: `~` and `file://` become paths.

    >>> place_of("file:///data/a%20b.jpg"), place_of("s3://bucket/a.jpg")
    ('/data/a b.jpg', 's3://bucket/a.jpg')
    """
    if text.lower().startswith("file://"):
        return url2pathname(urlsplit(text).path)
    return text if is_address(text) else os.path.expanduser(text)  # noqa: PTH111  # Path would change "./a" and "a//b"


def is_address(place: str) -> bool:
    """Whether it is fsspec's to open rather than the operating system's."""
    return _ADDRESS.match(place) is not None


def kind_of(place: str) -> str:
    """`"folder"`, `"file"`, or empty where nothing is.

    Raises:
        ConfigError, MissingExtra, DataError: as `store_of`, or the store cannot be reached.
    """
    if not is_address(place):
        return "folder" if Path(place).is_dir() else "file" if Path(place).exists() else ""
    store, path = store_of(place)
    if asked(place, store.isdir, path):
        return "folder"
    return "file" if asked(place, store.exists, path) else ""


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


def matches(pattern: str) -> list[str]:
    """The files a pattern stands for, sorted; `**` is any depth of folders.

    Raises:
        ConfigError, MissingExtra, DataError: as `kind_of`.
    """
    if not is_address(pattern):
        return sorted(p for p in glob.glob(pattern, recursive=True) if not Path(p).is_dir())  # noqa: PTH207  # absolute
    store, path = store_of(pattern)
    found = asked(pattern, lambda: store.glob(path, detail=True))
    return sorted(store.unstrip_protocol(name) for name, info in found.items() if info["type"] != "directory")


def walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """The files below a folder, one folder after the other, each in the order of its names; hidden ones are skipped.

    No more than a folder's names are held at a time. Links to folders are followed, but never to a folder above.

    Raises:
        DataError: a folder cannot be listed.
    """
    if is_address(folder):
        store, path = store_of(folder)
        inside = {
            store.unstrip_protocol(info["name"].rstrip("/")): info["type"] == "directory"
            for info in asked(folder, store.ls, path, detail=True)
            if info["name"].rstrip("/") != path.rstrip("/")  # a store's folder may list itself
        }
    else:
        real = os.path.realpath(folder)
        if real in above:
            return
        above |= {real}
        try:
            with os.scandir(folder) as entries:
                inside = {entry.path: entry.is_dir() for entry in entries}
        except OSError as error:
            raise DataError(
                f"{folder} cannot be listed ({error.strerror or error}).", "Check that it is there and its permissions."
            ) from error
    for place in sorted(inside):
        if last_part(place).startswith("."):
            continue
        if inside[place]:
            yield from walk(place, above)
        else:
            yield place


def open_place(place: str) -> IO[bytes]:
    """A file to read and seek in.

    Raises:
        DataError: it cannot be opened.
    """
    if is_address(place):
        store, path = store_of(place)
        return asked(place, store.open, path, "rb")  # type: ignore[no-any-return]
    try:
        return Path(place).open("rb")
    except OSError as error:
        raise _lost(place, error.strerror or str(error)) from error


def size_of(place: str) -> int:
    """Bytes of a file.

    Raises:
        DataError: there is none.
    """
    if is_address(place):
        store, path = store_of(place)
        return int(asked(place, store.size, path))
    try:
        return Path(place).stat().st_size
    except OSError as error:
        raise _lost(place, error.strerror or str(error)) from error


def read_bytes(place: str, start: int, length: int) -> bytes:
    """`length` bytes of a file from `start`; fewer where it ends. May be called in threads.

    Raises:
        DataError: it cannot be read.
    """
    if is_address(place):
        store, path = store_of(place)
        return bytes(asked(place, store.cat_file, path, start, start + length))
    with open_place(place) as file:
        try:
            file.seek(start)
            return file.read(length)
        except OSError as error:
            raise _lost(place, error.strerror or str(error)) from error


def last_part(place: str) -> str:
    """The name of a file in its folder.

    >>> last_part("s3://bucket/a/b.jpg"), last_part("a/b/")
    ('b.jpg', 'b')
    """
    return place.replace(os.sep, "/").rstrip("/").rpartition("/")[2]


def suffix_of(place: str) -> str:
    """The suffix of a file's name, in lower case.

    >>> suffix_of("s3://bucket/a.b/C.JPG"), suffix_of("a.b/c")
    ('.jpg', '')
    """
    return Path(last_part(place)).suffix.lower()


def store_of(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it.

    Raises:
        ConfigError: no store is known by its scheme, or its package is not installed.
        MissingExtra: fsspec is not installed.
    """
    try:
        import fsspec  # noqa: PLC0415  # only addresses need it
        from fsspec.registry import known_implementations  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("fsspec", "scale") from error
    scheme = address.partition("://")[0].lower()
    try:
        store, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        asks = re.search(r'(?:[Ii]nstall|requires) "?([\w-]+)', known_implementations.get(scheme, {}).get("err", ""))
        raise ConfigError(
            f"{scheme}:// needs a package that is not installed: {error}.",
            f"Type: pip install {asks[1]}" if asks else "Install it with pip.",
        ) from error
    except ValueError as error:
        known = [*known_implementations, "file"]
        raise ConfigError(
            f"{address}: {scheme}:// is no kind of store that is known here.",
            did_you_mean(scheme, known) or "Give a path, or an address such as s3://, gs://, https:// or file://.",
        ) from error
    return store, path


def asked(place: str, question: Any, *arguments: Any, **options: Any) -> Any:
    """What a store answers; asked again after a pause where it does not.

    Raises:
        ImageError: there is no such file.
        DataError: it did not answer.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return question(*arguments, **options)
        except FileNotFoundError as error:
            raise ImageError(f"{place} does not exist.", "Check the address.") from error
        except Exception as error:  # each store raises its own client's errors
            if attempt == ATTEMPTS or isinstance(error, (PermissionError, TypeError, NotImplementedError)):
                raise _lost(place, str(error) or type(error).__name__) from error
            time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _lost(place: str, reason: str) -> DataError:
    return DataError(f"{place} cannot be read ({reason}).", "Check that it can be reached, then go on with --resume.")
