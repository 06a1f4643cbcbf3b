"""Start a group of processes as torchrun does, but faster: they fork from one that has imported torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wildcat.train.distributed import process_group

PATIENCE = 120
"""Seconds after which processes count as hung."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["wildcat.cli", "wildcat.train.loop"])


def run_processes(size: int, folder: Path, work: Callable[..., Any], *arguments: Any, joined: bool = True) -> list[Any]:
    """What `work(*arguments)` gives in each of `size` processes, or the error or exit code it ends with.

    Args:
        folder: to keep results in.
        work: of a module, so that processes find it by name.
        joined: whether they are in one group before they call it, or only told how to join one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"result-{rank}" for rank in range(size)]
    environment = {**os.environ, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        CONTEXT.Process(target=_run, args=({**environment, "RANK": str(rank)}, file, work, arguments, joined))
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
        assert not any(process.is_alive() for process in processes), "a process hangs"
    finally:
        for process in processes:
            process.kill()
    return [
        pickle.loads(file.read_bytes()) if file.is_file() else process.exitcode
        for file, process in zip(files, processes, strict=True)
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(
    environment: dict[str, str], file: Path, work: Callable[..., Any], arguments: tuple[Any, ...], joined: bool
) -> None:
    os.environ |= environment
    try:
        with process_group() if joined else contextlib.nullcontext():
            result = work(*arguments)
    except BaseException as error:  # the test looks at it
        traceback.print_exc()
        result = error
    file.write_bytes(pickle.dumps(result))
