"""The cache folder, and how its content stays within a size limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import IO

from wildcat.errors import ConfigError

if sys.platform != "win32":
    import fcntl


def cache_folder() -> Path:
    """The folder named by WILDCAT_CACHE, otherwise `wildcat` in the user's cache folder. It may not exist yet."""
    if named := os.environ.get("WILDCAT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wildcat"


def cache_limit() -> int:
    """The size limit of a cache in bytes: WILDCAT_CACHE_GB, otherwise 100 gigabytes."""
    text = os.environ.get("WILDCAT_CACHE_GB") or "100"
    try:
        size = int(float(text) * 1e9)
    except (ValueError, OverflowError):  # OverflowError: infinite
        size = -1
    if size < 0:
        raise ConfigError(f"WILDCAT_CACHE_GB={text}: give a number of gigabytes.", "The default is 100.")
    return size


def hold(folder: Path) -> IO[bytes] | None:
    """Mark a cache folder (it may not exist yet) as used now, and lock it against removal until the file is closed.

    Returns None if files cannot be locked or written here.
    """
    with contextlib.suppress(OSError):
        if folder.is_dir():
            os.utime(folder)
    return _lock(folder, exclusive=False)


def claim(path: Path, wait: bool) -> IO[bytes] | None:
    """Lock a path (nothing need be there) until the file is closed; a single process at a time has it.

    Returns None, without `wait`, if another process has it; always None if files cannot be locked or written here.
    """
    return _lock(path, exclusive=True, wait=wait)


def make_room(root: Path, limit: int) -> list[Path]:
    """Remove folders of the cache at `root`, the least recently used first, until they take at most `limit` bytes.

    Keeps folders that a process holds. Returns the removed folders.
    """
    sizes, used = {path: _size(path) for path in root.iterdir() if path.is_dir()}, {}
    for path in sizes:
        with contextlib.suppress(OSError):  # another process may have removed it
            used[path] = path.stat().st_mtime
    total, removed = sum(sizes[path] for path in used), []
    for path in sorted(used, key=lambda folder: used[folder]):
        if total > limit and (lock := claim(path, wait=False)):
            with lock:
                shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
            removed.append(path)
    return removed


def _lock(path: Path, exclusive: bool, wait: bool = True) -> IO[bytes] | None:
    """The locked file `<path>.lock` beside a path; it is never removed, so all processes lock the same file."""
    if sys.platform == "win32":  # without locks nothing is removed
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f"{path.name}.lock").open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
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
