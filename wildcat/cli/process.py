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
    (benchmarks/allocator.py). Memory stays at its peak instead, which is reached anyway. All threads share one arena:
    those of their own would go on returning blocks of more than 64 MB. Does nothing where the C library is another
    (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))
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
