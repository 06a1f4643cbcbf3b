"""Divide the cores between networks that run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wildcat.device import available_cores


def engine_threads() -> int:
    """Threads for an engine: as many as torch would take (it heeds OMP_NUM_THREADS), where they are there."""
    return min(torch.get_num_threads(), available_cores())


class Shares:
    """Torch's threads, shared by what runs at the same time in threads of Python.

    A pass through a network that is spread over all cores waits at every layer for the slowest of them, and one that
    decodes an image beside it is slow. Several passes with a core each do not wait for each other.

    Attributes:
        total: threads there are.
        taken: how many hold a share.
    """

    def __init__(self, total: int) -> None:
        self.total, self.taken, self.lock = total, 0, threading.Lock()

    @contextmanager
    def take(self) -> Iterator[int]:
        """Torch computes with this thread's share: all cores if nothing else runs, an equal part of them otherwise.

        The share, which is given, is that at the beginning; who comes later does not change it.
        """
        with self.lock:
            self.taken += 1
            share = max(1, self.total // self.taken)
            torch.set_num_threads(share)  # of the thread that asks, in torch's OpenMP
        try:
            yield share
        finally:
            with self.lock:
                self.taken -= 1
