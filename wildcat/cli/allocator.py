"""What the command line sets for its own process; a library must leave such things as its caller has them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the allocator keep what is freed instead of giving it back to the system; whether it could be asked to.

    Networks free and take the same hundreds of megabytes at every step. By default glibc returns such blocks at once,
    and the kernel hands them out again page by page, zeroed: on a CPU that costs up to as much as the computation
    (benchmarks/allocator.py). Memory stays at its peak instead, which is reached anyway. Does nothing where the C
    library is another (macOS, Windows, musl).
    """
    return _ask_allocator((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))


def share_one_arena() -> bool:
    """Let threads that start from now on take their memory where the first one does; whether it could be asked for.

    For networks that run in threads: arenas of their own would go on returning blocks of more than 64 MB, whatever
    `keep_freed_memory` has asked for. Threads that only compute small things are a little slower for it.
    """
    return _ask_allocator((_ARENA_MAX, 1))


def _ask_allocator(*settings: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Of the processes that `torchrun` started, let the first alone print what all of them would.

    A traceback is printed by whichever process it comes from, since it leaves this context.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
