"""Where computed things are kept between commands, and how they are kept from filling the disk."""

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

GIGABYTES = 100.0
"""What each kind of cached thing may take where WILDCAT_CACHE_GB does not say otherwise."""


def cache_folder() -> Path:
    """The folder named by WILDCAT_CACHE, otherwise `wildcat` in the user's cache folder. It may not exist yet."""
    named = os.environ.get("WILDCAT_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wildcat"


def cache_limit() -> int:
    """Bytes that features may take, and graphs of engines as many: WILDCAT_CACHE_GB, otherwise 100 gigabytes.

    Raises:
        ConfigError: WILDCAT_CACHE_GB is no number of at least 0.
    """
    text = os.environ.get("WILDCAT_CACHE_GB") or str(GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ConfigError(f"WILDCAT_CACHE_GB={text}: give a number of gigabytes.", "100 is taken where it is not set.")
    return int(gigabytes * 1e9)


def hold(folder: Path) -> IO[bytes] | None:
    """Keep any process from removing a folder of the cache, which need not exist yet, until what comes back is closed.

    The folder counts as used now. Nothing comes back where files cannot be locked, or nothing be written: whoever has
    to write will say so.
    """
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            os.utime(folder)
    return _locked(folder, alone=False)


def make_room(root: Path, limit: int) -> list[Path]:
    """Remove folders of the cache at `root`, the longest unused first, until they take at most `limit` bytes.

    None is removed that a process holds.

    Returns:
        What was removed.
    """
    folders = [(path, path.stat().st_mtime, _bytes_of(path)) for path in root.iterdir() if path.is_dir()]
    total, removed = sum(size for _, _, size in folders), []
    for path, _, size in sorted(folders, key=lambda folder: folder[1]):
        if total <= limit:
            break
        if lock := _locked(path, alone=True):
            with lock:
                shutil.rmtree(path, ignore_errors=True)
            total -= size
            removed.append(path)
    return removed


def _locked(folder: Path, alone: bool) -> IO[bytes] | None:
    """The open file beside a folder that stands for it, locked; it stays, so that all processes lock the same one."""
    if sys.platform == "win32":  # nothing can be told to be in use, and so nothing is removed
        return None
    try:
        file = folder.with_name(f"{folder.name}.lock").open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:  # another process holds it, or the file system has no locks
        file.close()
        return None
    return file


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may be removing it
            total += path.stat().st_size if path.is_file() else 0
    return total
