"""Settings of the C allocator for processes that wildcat starts. A library must not change these for its caller."""

from __future__ import annotations

import ctypes
import sys

# Option numbers of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory instead of returning it to the system; returns whether it could be set.

    A network frees and allocates the same hundreds of megabytes at every step. By default glibc returns such blocks at
    once, and the kernel then has to zero every page again: a third of the CPU time of `wildcat predict` at 448 px.
    Memory use stays at its peak. All threads allocate from one arena: others return blocks above 64 MB all the same.
    Has no effect without glibc (macOS, Windows, musl).
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26), (_ARENA_MAX, 1))


def _set(*options: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(number, value) == 1 for number, value in options)
