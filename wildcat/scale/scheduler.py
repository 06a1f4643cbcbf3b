"""Who makes which part: parts are handed to workers that may die, whatever a worker is.

The policy alone: Ray's processes follow it (`wildcat.scale.ray_backend`), and so do those of a simulation
(`benchmarks/failures.py`), in which a thousand machines fail in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from wildcat.errors import RunError, WildcatError
from wildcat.scale.shards import Done, Part

RETRIES = 3
"""How often a part is tried again whose worker died; the last time with care."""


class Died(Exception):
    """A worker died while it made a part; says why, as far as it is known."""


class Crew(Protocol):
    """Workers, numbered from 0, and how to use them."""

    @property
    def size(self) -> int:
        """How many."""

    def give(self, worker: int, part: Part, careful: bool) -> Any:
        """Let an idle worker begin a part; a ticket to wait for.

        Args:
            careful: read each image in a process of its own, which may die without the worker.
        """

    def wait(self, tickets: list[Any]) -> Any:
        """The first of the tickets that is done."""

    def result(self, ticket: Any) -> Done | WildcatError:
        """What became of a part: it is finished, or why it cannot be made.

        Raises:
            Died: its worker did.
        """

    def replace(self, worker: int) -> None:
        """Start a new worker in the place of a dead one."""


def make_parts(crew: Crew, parts: Iterator[Part]) -> Iterator[Done]:
    """The parts, finished, in the order in which they are; none is taken before a worker is free for it.

    A worker that dies is replaced, and its part is made again.

    Raises:
        RunError: a part whose worker died too often.
        WildcatError: as the sources or the maker; what is under way is finished before.
    """
    under_way: dict[Any, tuple[int, Part, int]] = {}  # ticket -> worker, part, attempts before
    idle = list(range(crew.size))
    stopped: Exception | None = None
    while True:
        while idle and stopped is None:
            try:
                part = next(parts, None)
            except Exception as error:  # the source failed: parts under way are whole, and are not thrown away
                stopped = error
                break
            if part is None:
                break
            worker = idle.pop()
            under_way[crew.give(worker, part, careful=False)] = worker, part, 0
        if not under_way:
            break
        ticket = crew.wait(list(under_way))
        worker, part, attempts = under_way.pop(ticket)
        try:
            done = crew.result(ticket)
        except Died as death:
            crew.replace(worker)
            attempts += 1
            if attempts <= RETRIES:
                under_way[crew.give(worker, part, careful=attempts == RETRIES)] = worker, part, attempts
                continue
            done = RunError(
                f"part {part.number} ({part.images[0].name} and what follows) could not be made in "
                f"{attempts} attempts: {death}.",
                "Look for too little memory or a disk that fails, then go on with --resume.",
            )
        idle.append(worker)
        if isinstance(done, Exception):
            stopped = stopped or done
        else:
            yield done
    if stopped is not None:
        raise stopped
