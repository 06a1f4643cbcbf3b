"""Several processes at once: who does what, and how their parts come together again. Alone it costs nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch.distributed
from torch import distributed

from wildcat.errors import ConfigError

Part = TypeVar("Part")


def rank() -> int:
    """Number of this process, from 0; 0 where it is alone."""
    return distributed.get_rank() if _started() else 0


def world_size() -> int:
    """How many processes work together; 1 where this one is alone."""
    return distributed.get_world_size() if _started() else 1


def share_of(count: int) -> range:
    """Which of `count` items this process takes: every world-th from its rank on; all shares cover each item once."""
    return range(rank(), count, world_size())


def gather(part: Part) -> list[Part]:
    """The parts of all processes, in the order of their ranks, in every process."""
    if world_size() == 1:
        return [part]
    parts: list[Part | None] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return [p for p in parts if p is not None]


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started together, and part from them at the end; alone, do nothing.

    Raises:
        ConfigError: the environment names a group that cannot be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _started():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but the other processes cannot be joined: {error}.",
            "Start them with torchrun, or unset WORLD_SIZE.",
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _started() -> bool:
    return distributed.is_available() and distributed.is_initialized()
