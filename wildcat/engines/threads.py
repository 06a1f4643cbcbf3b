"""Share the cores between forward passes that run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wildcat.device import available_cores


def engine_threads() -> int:
    """Threads for an engine: torch's number (which follows OMP_NUM_THREADS), at most the available cores."""
    return min(torch.get_num_threads(), available_cores())


class Shares:
    """Shares torch's threads between Python threads that compute at the same time.

    A forward pass on all cores waits at every layer for the slowest core, which may be busy decoding an image. Several
    passes with a core each do not wait for each other.

    Attributes:
        total: number of threads to share.
        taken: number of shares in use.
    """

    def __init__(self, total: int) -> None:
        self.total, self.taken, self.lock = total, 0, threading.Lock()

    @contextmanager
    def take(self) -> Iterator[int]:
        """Let torch compute in this thread with its share: `total` divided by the number of shares in use.

        Yields the share. It stays the same when others are taken or returned later.
        """
        with self.lock:
            self.taken += 1
            share = max(1, self.total // self.taken)
            torch.set_num_threads(share)  # a setting per thread in torch's OpenMP
        try:
            yield share
        finally:
            with self.lock:
                self.taken -= 1
