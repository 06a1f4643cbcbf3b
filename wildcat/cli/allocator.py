"""Settings of the C allocator for processes that wildcat starts. A library must not change these for its caller."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

# Option numbers of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory instead of returning it to the system; returns whether it could be set.

    A network frees and allocates the same hundreds of megabytes at every step. By default glibc returns such blocks at
    once, and the kernel then has to zero every page again: a third of the CPU time of `wildcat predict` at 448 px.
    Memory use stays at its peak. All threads allocate from one arena: others return blocks above 64 MB all the same.
    Has no effect without glibc (macOS, Windows, musl).
    """
    mallopt = _glibc("mallopt")
    options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26), (_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(number, value) == 1 for number, value in options)


def return_freed_memory() -> bool:
    """Return what `keep_freed_memory` has kept to the system, once; returns whether there was any."""
    trim = _glibc("malloc_trim")
    return trim is not None and trim(0) == 1


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc, or None where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
    return function
