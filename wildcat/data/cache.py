"""The cache folder, and how its content stays within a size limit."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from pathlib import Path
from typing import IO

from wildcat.errors import ConfigError

if sys.platform != "win32":
    import fcntl

GIGABYTES = 100.0  # default of WILDCAT_CACHE_GB


def cache_folder() -> Path:
    """The folder named by WILDCAT_CACHE, otherwise `wildcat` in the user's cache folder. It may not exist yet."""
    named = os.environ.get("WILDCAT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wildcat"


def cache_limit() -> int:
    """The size limit of a cache in bytes: WILDCAT_CACHE_GB, otherwise 100 gigabytes.

    Raises:
        ConfigError: WILDCAT_CACHE_GB is no number of at least 0.
    """
    text = os.environ.get("WILDCAT_CACHE_GB") or str(GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ConfigError(f"WILDCAT_CACHE_GB={text}: give a number of gigabytes.", "The default is 100.")
    return int(gigabytes * 1e9)


def hold(folder: Path) -> IO[bytes] | None:
    """Lock a folder of the cache, which need not exist yet, against removal until the returned file is closed.

    Marks the folder as used now. Returns None if files cannot be locked or written here.
    """
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            os.utime(folder)
    return _lock(folder, exclusive=False)


def make_room(root: Path, limit: int) -> list[Path]:
    """Remove folders of the cache at `root`, the least recently used first, until they take at most `limit` bytes.

    Keeps folders that a process holds. Returns the removed folders.
    """
    folders = [(path, path.stat().st_mtime, _size(path)) for path in root.iterdir() if path.is_dir()]
    total, removed = sum(size for _, _, size in folders), []
    for path, _, size in sorted(folders, key=lambda folder: folder[1]):
        if total <= limit:
            break
        if lock := _lock(path, exclusive=True):
            with lock:
                shutil.rmtree(path, ignore_errors=True)
            total -= size
            removed.append(path)
    return removed


def _lock(folder: Path, exclusive: bool) -> IO[bytes] | None:
    """The locked file `<folder>.lock` beside a folder; it is never removed, so all processes lock the same file."""
    if sys.platform == "win32":  # without locks nothing is removed
        return None
    try:
        file = folder.with_name(f"{folder.name}.lock").open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError:  # another process holds it, or the file system has no locks
        file.close()
        return None
    return file


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may be removing it
            total += path.stat().st_size if path.is_file() else 0
    return total
