"""Requests that overlap share passes through the network, in threads of their own; and what bounds their number."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from wildcat.serve.limits import Refused

Item = TypeVar("Item")
Answer = TypeVar("Answer")

WAIT = 0.004
"""Seconds an image waits for company."""


class Batcher(Generic[Item, Answer]):
    """Worker threads that answer what is submitted, up to `batch_size` items at a time each.

    An item that nobody waits for any more (its future is cancelled) is left out. Where a batch fails, its items are
    tried one by one, so that none pays for another.

    Args:
        answer: items -> as many answers, in their order.
        batch_size: at least 1.
        workers: batches that are answered at the same time, at least 1.
        wait: seconds the first item of a batch waits for more.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Item]], Sequence[Answer]],
        batch_size: int,
        workers: int = 1,
        wait: float = WAIT,
    ) -> None:
        self.answer, self.batch_size, self.wait = answer, batch_size, wait
        self.waiting: queue.SimpleQueue[tuple[Item, Future[Answer]] | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.closed = False
        self.workers = [
            threading.Thread(target=self._work, name=f"wildcat-network-{i}", daemon=True) for i in range(workers)
        ]
        for worker in self.workers:
            worker.start()

    def submit(self, item: Item) -> Future[Answer]:
        """The answer to come.

        Raises:
            Refused: the service is stopping.
        """
        future: Future[Answer] = Future()
        with self.lock:
            if self.closed:
                raise Refused(503, "this service is stopping.")
            self.waiting.put((item, future))
        return future

    @property
    def alive(self) -> bool:
        """Whether every worker can answer."""
        return all(worker.is_alive() for worker in self.workers) and not self.closed

    def close(self, seconds: float = 10.0) -> None:
        """Answer what was submitted, take no more, and wait at most so long for the workers to end."""
        with self.lock:
            if not self.closed:
                self.closed = True
                for _ in self.workers:
                    self.waiting.put(None)
        until = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        more = True
        while more:
            batch, more = self._gather()
            running = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if running:
                self._settle(running)
            del batch, running  # or the last images stay in memory until the next come

    def _gather(self) -> tuple[list[tuple[Item, Future[Answer]]], bool]:
        """The next batch, and whether more may come after it."""
        first = self.waiting.get()
        if first is None:
            return [], False
        batch, until = [first], time.monotonic() + self.wait
        while len(batch) < self.batch_size:
            try:
                entry = self.waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
        return batch, True

    def _settle(self, batch: Sequence[tuple[Item, Future[Answer]]]) -> None:
        try:
            answers = self.answer([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for entry in batch:
                self._settle([entry])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)


class Line:
    """The requests that are answered or wait; there are never more than `places`."""

    def __init__(self, places: int) -> None:
        self.places, self.taken = places, 0

    def enter(self) -> None:
        """Take a place.

        Raises:
            Refused: all are taken.
        """
        if self.taken >= self.places:
            raise Refused(
                503, f"{self.taken} requests are being answered, as many as may be.", "Try again soon.", retry_after=1
            )
        self.taken += 1

    def leave(self) -> None:
        """Give the place back."""
        self.taken -= 1


class Budget:
    """An amount that is shared by all who need some of it at the same time; they are served in the order they came."""

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self.turn, self.change = asyncio.Lock(), asyncio.Condition()

    @asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Hold `amount`, at most `total`, for the length of the block."""
        async with self.turn, self.change:
            await self.change.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            self.free += amount
            await asyncio.shield(self._tell())

    async def _tell(self) -> None:
        async with self.change:
            self.change.notify_all()
